"""TLS in front of a Redis that has none."""

import contextlib
import socket
import ssl
import threading

import trustme


class TLSProxy:
    """Takes TLS connections on a free port and passes what they say to a plain Redis."""

    def __init__(self, certificate: trustme.LeafCert, target: int) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._server]
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            client = self._context.wrap_socket(plain, server_side=True)
        except OSError:  # the client does not like the certificate
            plain.close()
            return
        server = socket.create_connection(("127.0.0.1", self._target))
        self._open += [client, server]
        # One thread each way: an SSL socket may be read and written by two at once.
        threading.Thread(target=self._pass, args=(server, client), daemon=True).start()
        self._pass(client, server)

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        for end in self._open:
            end.close()
