"""Whether the broker answers, asked without the Redis client where that is possible.

Loading the client takes as long as everything else together, and a probe asks every few seconds. So the words of a PING
are written to a socket here. What comes back and is no plain answer is left to the client, which knows what it means.
"""

import socket
import ssl
from contextlib import suppress
from typing import Any

from core import config, embedded
from core.broker_error import broker_error
from core.errors import BrokerUnreachable
from core.redis_url import BrokerURL, RedisURL


def broker() -> str | None:
    """Ask the broker, and return where it is; None where it is no Redis. Starts no development server.

    Raises:
        BrokerUnreachable: It does not answer.
        ConfigurationError: It does not let us in.
    """
    url = config.get_settings().broker_url
    if isinstance(url, BrokerURL):
        return None
    if url is None:
        return _development_server()
    try:
        if not url.sentinels and _answers(url):
            return str(url)
    except OSError as error:
        raise broker_error(error, url) from error
    from redis.exceptions import RedisError

    try:
        with url.client() as client:
            client.ping()
    except (RedisError, OSError) as error:
        raise broker_error(error, url) from error
    return str(url)


def _development_server() -> str:
    path = embedded.socket_path(config.get_project().root)
    with suppress(OSError):
        if embedded.is_own(path) and _answers(RedisURL(socket=str(path))):
            return str(path)
    raise BrokerUnreachable(str(path), "the development server is not up")


def _answers(url: RedisURL) -> bool:
    """Whether a server says PONG; False when it says something else. Raises OSError when it says nothing."""
    from hiredis import ProtocolError, Reader, ReplyError, pack_command

    words: list[tuple[Any, ...]] = [("PING",)]
    if url.db:
        words.insert(0, ("SELECT", str(url.db)))
    if url.username or url.password:
        words.insert(0, ("AUTH", *([url.username] if url.username else []), url.password or ""))
    reader, answers = Reader(), list[Any]()
    with _connected(url) as connection:
        connection.sendall(b"".join(map(pack_command, words)))
        while len(answers) < len(words):
            if not (data := connection.recv(4096)):
                raise ConnectionError("the connection was closed")
            reader.feed(data)
            try:
                while (answer := reader.gets()) is not False:
                    answers.append(answer)
            except ProtocolError:
                return False
    return answers[-1] == b"PONG" and not any(isinstance(answer, ReplyError) for answer in answers)


def _connected(url: RedisURL) -> socket.socket:
    limits, context = url.timeouts(), _tls(url) if url.tls else None
    if not url.socket:
        plain = socket.create_connection((str(url.host), url.port), limits["socket_connect_timeout"])
        plain.settimeout(limits["socket_timeout"])
        return context.wrap_socket(plain, server_hostname=url.host) if context else plain
    local = socket.socket(socket.AF_UNIX)
    try:
        local.settimeout(limits["socket_timeout"])
        local.connect(url.socket)
    except OSError:
        local.close()
        raise
    return local


def _tls(url: RedisURL) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not url.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if url.ca_certs:
        context.load_verify_locations(url.ca_certs)
    return context
