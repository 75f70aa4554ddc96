"""A connection to Redis as an event loop uses it: nothing waits in it, and what arrives is handed on at once.

The client opens it, with its password, certificate and Sentinel; its streams would cost each answer two more turns of
the loop.
"""

import asyncio
import select
from collections.abc import Callable
from typing import Any

#: Words of the server that are handed on before others on the loop have their turn: three for a result, or one.
TURN = 150
#: What the parser gives where an answer is not complete yet; None is an answer.
_NOTHING = object()


class Wire(asyncio.Protocol):
    """Writes commands to a connection that is open, and hands on what the server says."""

    def __init__(self, connection: Any, answered: Callable[[Any], object], pushed: Callable[[Any], object]) -> None:
        """
        Args:
            connection: The client's own; whoever has it closes it.
            answered: Called with each answer in its order, with an exception for an error. What it raises ends the
                connection, as with the next one.
            pushed: Called with what the server says unasked, as what is published.
        """
        from hiredis import PushNotification, Reader, pack_command
        from redis.exceptions import InvalidResponse

        self._loop = asyncio.get_running_loop()
        self._pack, self._push = pack_command, PushNotification
        self._answered, self._pushed = answered, pushed
        self._parser = Reader(
            protocolError=InvalidResponse, replyError=connection._parser.parse_error, notEnoughData=_NOTHING
        )
        self._goes_on = False
        #: Fails when the connection is lost.
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._transport: Any = connection._writer.transport
        self._before = self._transport.get_protocol()
        self._transport.set_protocol(self)
        self._poll = select.poll()
        self._poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)

    def write(self, *commands: tuple[Any, ...]) -> None:
        """Send commands, in one piece."""
        self._transport.write(b"".join(map(self._pack, commands)))

    def is_quiet(self) -> bool:
        """Whether the server has neither said anything nor hung up, as far as can be seen without asking."""
        if self.lost.done() or self._transport.is_closing():
            return False
        return not self._poll.poll(0)

    def data_received(self, data: bytes) -> None:
        """The server has said something."""
        self._parser.feed(data)
        if not self._goes_on:
            self._hand_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended; the client waits for that, too."""
        from redis.exceptions import ConnectionError

        self._before.connection_lost(exc)
        self._end(exc or ConnectionError("the server has closed the connection"))

    def _hand_on(self) -> None:
        words, self._goes_on = 0, False
        try:
            while (said := self._parser.gets()) is not _NOTHING:
                (self._pushed if isinstance(said, self._push) else self._answered)(said)
                words += len(said) if isinstance(said, list) else 1
                if words >= TURN:
                    self._goes_on = True
                    self._loop.call_soon(self._hand_on)
                    return
        except Exception as error:
            self._end(error)

    def _end(self, error: Exception) -> None:
        if not self.lost.done():
            self.lost.set_exception(error)
            self.lost.exception()  # nobody has to look
