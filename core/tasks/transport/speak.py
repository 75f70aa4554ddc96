"""Tells Redis how calls end, from the event loop on which they run: no other thread has to wake for it.

What has ended when the loop turns goes in one round trip, and what ends meanwhile shares the next. The connection is
the Redis client's own, written to and read only where neither can block; the rest is left to the holder's thread.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from core.tasks.timeout import Alarms
from core.tasks.transport.held import Holder, Loan

#: Seconds that a body runs before its call is stored as started: a shorter one goes straight to its result.
STARTED_AFTER = 0.02
#: For how long the consumer waits at most until the loop tells Redis of an end: seconds, and turns of the loop, in
#: which a body that does not wait for anything has come to its end.
MOMENT, TURNS = 0.001, 6
#: Seconds for which a take may keep the loop busy, as long as it can be told from the last ones, and calls that are
#: taken at first. What one process cannot begin with soon is for others.
WORK, AT_FIRST = 0.05, 16
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
        #: What answers come by.
        self._fd = -1
        self._turned = threading.Event()
        #: How many calls and when, of each take with which the loop is not through yet.
        self._taken: deque[tuple[int, float]] = deque()
        #: How many calls may be taken at once.
        self.credit = AT_FIRST
        #: Calls that have begun a moment ago, which are stored as started if they go on. On the loop only.
        self.starts = Alarms(STARTED_AFTER)
        self._since = 0.0
        self._patience: asyncio.TimerHandle | None = None
        loop.call_soon_threadsafe(self._connect)

    def is_here(self) -> bool:
        """Whether this is the loop's thread."""
        return threading.get_ident() == self._thread

    def has_taken(self, calls: int) -> None:
        """So many calls were just given to the loop, by the consumer's thread."""
        self._turned.clear()
        self._taken.append((calls, time.monotonic()))
        self._loop.call_soon_threadsafe(self._turn, TURNS)

    def let_go_first(self) -> None:
        """Wait a moment until the loop has run what it was given, and told. The consumer's thread asks, and is not it.

        Else the two would fight for the interpreter, and the call would wait for the consumer's next turn.
        """
        self._turned.wait(MOMENT)

    def is_busy(self) -> bool:
        """Whether the loop is not through yet with what was taken last. It wakes the consumer when it is."""
        return bool(self._taken)

    def _turn(self, left: int) -> None:
        if left:
            self._loop.call_soon(self._turn, left - 1)
            return
        calls, since = self._taken.popleft()
        took = max(time.monotonic() - since, 1e-6)
        self.credit = max(1, min(self.credit * 2, int(WORK * calls / took)))
        self._turned.set()
        self._freed()

    def soon(self) -> None:
        """Tell what there is to tell when the loop turns. Any thread may ask."""
        if not self._due:
            self._due = True
            if self.is_here():
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
            self._turned.set()
            if self._fd < 0:
                self._fd = connection._sock.fileno()
                self._loop.add_reader(self._fd, self._answered)
            self._since = self._loop.time()
            if self._patience is None:
                self._look()
        except (RedisError, OSError):
            self._lose()

    def _look(self) -> None:
        """See whether an answer takes too long. One timer does for many, which come in no time."""
        self._patience = None
        if self._loan is None:
            return
        until = self._since + (self._connection.socket_timeout or PATIENCE)
        if until <= self._loop.time():
            self._lose()
        else:
            self._patience = self._loop.call_at(until, self._look)

    def _answered(self) -> None:
        if self._loan is None:
            self._lose()  # nothing was asked: the server has hung up
            return
        try:
            said = self._connection.read_response()
        except (RedisError, OSError):
            self._lose()
            return
        loan, self._loan = self._loan, None
        self._holder.told(loan, said)
        self._freed()

    def _lose(self) -> None:
        """Leave it to the holder's thread, which can wait, and begin with another connection."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)  # the client may have closed it already
            self._fd = -1
        loan, self._loan = self._loan, None
        self._connection.disconnect()
        self._connect()
        self._holder.untold(loan)
