"""Tells Redis how calls end, from the event loop on which they run: no other thread has to wake for it.

What has ended when the loop turns goes in one round trip, and what ends meanwhile shares the next. The connection is
the Redis client's own, written to and read only where neither can block; the rest is left to the holder's thread.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from core.tasks.transport.held import Holder, Loan

#: Bytes that a socket takes at once, however busy its server is.
MOST = 65_536
#: Seconds between two tries to connect, and seconds that an answer may take where the client sets none.
PAUSE, PATIENCE = 0.5, 5.0


class Speaker:
    """Speaks for a holder from one event loop."""

    def __init__(self, holder: Holder, loop: asyncio.AbstractEventLoop, freed: Callable[[], object]) -> None:
        """
        Args:
            freed: Called on the loop when Redis knows of the ends of some calls: others can be taken.
        """
        self._holder, self._loop, self._freed = holder, loop, freed
        self._thread: int | None = None
        self._connection: Any = None
        self._loan: Loan | None = None
        self._due = False
        #: What the answer comes by, and when it is not waited for any more.
        self._fd = -1
        self._patience: asyncio.TimerHandle | None = None
        loop.call_soon_threadsafe(self._connect)

    def soon(self) -> None:
        """Tell what there is to tell when the loop turns. Any thread may ask."""
        if not self._due:
            self._due = True
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._say)
            else:
                self._loop.call_soon_threadsafe(self._say)

    def _connect(self) -> None:
        self._thread = threading.get_ident()
        self._connection = None
        connecting = self._loop.run_in_executor(None, self._holder.client.connection_pool.get_connection)
        connecting.add_done_callback(self._connected)

    def _connected(self, connecting: "asyncio.Future[Any]") -> None:
        if not connecting.cancelled() and connecting.exception() is None:
            self._connection = connecting.result()
        else:
            self._loop.call_later(PAUSE, self._connect)

    def _say(self) -> None:
        self._due = False
        if self._loan is not None:
            return  # what is pending goes with the next one
        connection = self._connection
        loan = self._holder.lend(lasting=True) if connection is not None else None
        if loan is None or connection is None:
            self._holder.tell()
            return
        words = connection.pack_command(*loan.command)
        if sum(map(len, words)) > MOST:
            self._holder.untold(loan)
            return
        self._loan = loan
        try:
            if connection._sock is None:
                raise OSError  # to connect would block
            connection.send_packed_command(words, check_health=False)
            self._fd = connection._sock.fileno()
            self._loop.add_reader(self._fd, self._answered)
            self._patience = self._loop.call_later(connection.socket_timeout or PATIENCE, self._lose)
        except (RedisError, OSError):
            self._lose()

    def _answered(self) -> None:
        assert self._loan is not None
        try:
            said = self._connection.read_response()
        except (RedisError, OSError):
            self._lose()
            return
        self._stop_waiting()
        loan, self._loan = self._loan, None
        self._holder.told(loan, said)
        self._freed()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._loop.remove_reader(self._fd)  # the client may have closed it already
        self._patience = None

    def _lose(self) -> None:
        """Leave it to the holder's thread, which can wait, and begin with another connection."""
        self._stop_waiting()
        loan, self._loan = self._loan, None
        self._connection.disconnect()
        self._connect()
        self._holder.untold(loan)
