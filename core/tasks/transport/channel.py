"""kombu's Redis transport, with a worker's way of taking calls.

kombu pops a message and records it a moment later; a worker that is killed in between takes it along. Here one script
does both. Only the channel that a worker consumes its queues from takes so: publishing, events, control and their
answers are kombu's own.
"""

from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any

import kombu.transport
import kombu.transport.redis as stock
from kombu.transport import virtual

from core.tasks.transport.held import Holder
from core.tasks.transport.message import parsed
from core.tasks.transport.take import Taker

#: What connections say of their client. Where nobody says it, each looks anew for what is installed.
CLIENT: dict[str, Any] = {}
with suppress(ImportError):  # before 7.2 redis-py looks once
    from redis.driver_info import DriverInfo

    CLIENT["driver_info"] = DriverInfo()


class QoS(stock.QoS):
    """kombu's count of what was delivered; what becomes of it is the holder's business."""

    channel: Any
    _delivered: Any

    def append(self, message: Any, delivery_tag: str) -> None:
        """Count a message that was delivered."""
        if self.channel.taker is None:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]
        else:
            self._delivered[delivery_tag] = message

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        if self.channel.taker is None:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        else:
            self.channel.taker.holder.settle(delivery_tag, "done")

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back, or end its call."""
        if self.channel.taker is None:
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]
        elif requeue:
            self.channel.taker.holder.settle(delivery_tag, "back")
        else:
            self.channel.taker.holder.ends(delivery_tag, "failed", "rejected")
            self.channel.taker.holder.settle(delivery_tag, "done")

    def free(self, delivery_tag: str) -> None:
        """Let another call be taken in this one's place."""
        self._delivered.pop(delivery_tag, None)

    def restore_unacked(self, client: Any = None) -> None:
        """Forget what was delivered: the next connection says what is still held."""
        if self.channel.taker is None:
            super().restore_unacked(client)  # type: ignore[no-untyped-call]
        else:
            self._delivered.clear()


class Message(virtual.Message):
    """kombu's message, whose body is read by a faster decoder than kombu's where that is enough."""

    body: Any

    def _decode(self) -> Any:
        if self.content_type == "application/json" and self.content_encoding == "utf-8":
            try:
                if isinstance(self.body, bytes) and b'"__type__"' not in self.body:
                    return parsed(self.body)
            except ValueError:
                pass
        return super()._decode()  # type: ignore[no-untyped-call]


class Channel(stock.Channel):
    """kombu's channel; a worker makes it take calls with `hold`."""

    QoS = QoS
    Message = Message
    #: One for each list that is waited for, and kombu's own.
    max_connections = 1000
    taker: Taker | None = None
    client: Any
    _in_poll: Any
    _brpop_sent_at: Any

    def hold(self, holder: Holder, hub: Any) -> None:
        """Take calls for *holder* from now on."""
        if self._in_poll:  # kombu's own way, for the answers of other workers at start
            self.client.connection.disconnect()
        self.taker = Taker(self, holder, hub)
        holder.qos = self.qos
        for call in list(holder.calls.values()):  # they run, and count
            self.qos.append(call.message, call.tag)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        return {**super()._connparams(asynchronous), **CLIENT}  # type: ignore[no-untyped-call]

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self.taker is None:
            super()._brpop_start(timeout)  # type: ignore[no-untyped-call]
            return
        connection = self.client.connection
        if self.taker.ask(connection):
            self._in_poll, self._brpop_sent_at = connection, monotonic()

    def _brpop_read(self, **options: Any) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.taker is None:
            return bool(super()._brpop_read(**options))  # type: ignore[no-untyped-call]
        if not self._in_poll:  # nothing is expected: the server has hung up
            self.client.connection.disconnect()
            raise Empty
        try:
            self.taker.receive(self._in_poll)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Give up the connections."""
        if self.taker is not None:
            # kombu would wait for an answer, and Redis would take calls for it.
            if self._in_poll:
                self._in_poll.disconnect()
            self._in_poll = None
            self.taker.close()
        super().close()  # type: ignore[no-untyped-call]


class Transport(stock.Transport):
    """kombu's transport, with channels that a worker can make its own."""

    Channel = Channel


class SentinelChannel(Channel, stock.SentinelChannel):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The same, for the server that Sentinel names."""


class SentinelTransport(stock.SentinelTransport):
    """The same, for the server that Sentinel names."""

    Channel = SentinelChannel


#: The names of ours, by what kombu has for the same URLs.
OURS = {stock.Transport: "core+redis", stock.SentinelTransport: "core+sentinel"}
kombu.transport.TRANSPORT_ALIASES["core+redis"] = f"{__name__}:Transport"
kombu.transport.TRANSPORT_ALIASES["core+sentinel"] = f"{__name__}:SentinelTransport"
