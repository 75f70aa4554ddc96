"""The time one attempt may take, kept inside the process that runs the body.

Celery's own limits work by killing a process, and are silently off where a pool has none. This one
cancels a coroutine on its loop and interrupts a plain function in a main thread, the same on every pool.
"""

import asyncio
import contextlib
import contextvars
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from itertools import takewhile
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

from core.errors import TaskTimeout
from core.tasks import bridge

#: Seconds that a cancelled body has for its `finally`, before it counts as one that would not stop.
GRACE = 10.0


@dataclass(frozen=True)
class Limit:
    """A number of seconds, and the option or setting that it came from."""

    seconds: float
    source: str

    @property
    def hard(self) -> float:
        """When a pool that can kill may do so: the limit and its grace."""
        return self.seconds + GRACE


class Alarms:
    """What is to be done a while after it was set, the same while for all: so one timer does for many.

    It belongs to one event loop, on which alone it may be used.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: When each rings, and what is done then: the earliest come first.
        self._set: dict[Any, tuple[float, Callable[[], object]]] = {}
        self._looks = False
        #: It rings for many calls, in the context of none, and keeps that of none.
        self._context = contextvars.Context()

    def add(self, key: Any, ring: Callable[[], object]) -> None:
        """Call *ring* when the time has passed, unless *key* is dropped before."""
        loop = asyncio.get_running_loop()
        at = loop.time() + self._seconds
        self._set[key] = at, ring
        if not self._looks:
            self._looks = True
            loop.call_at(at, self._look, context=self._context)

    def drop(self, key: Any) -> None:
        """Forget it, if it has not rung."""
        self._set.pop(key, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = list(takewhile(lambda alarm: alarm[1][0] <= now, self._set.items()))
        try:
            for key, (_, ring) in due:
                if self._set.pop(key, None):
                    ring()
        finally:
            first = next(iter(self._set.values()), None)
            self._looks = first is not None
            if first is not None:
                loop.call_at(first[0], self._look, context=self._context)


#: Each loop's, by their seconds.
_limits: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, Alarms]] = WeakKeyDictionary()


def _alarms(seconds: float) -> Alarms:
    """The running loop's, for a limit of so many seconds."""
    loop = asyncio.get_running_loop()
    try:
        return _limits[loop][seconds]
    except KeyError:
        return _limits.setdefault(loop, {}).setdefault(seconds, Alarms(seconds))


class Timed:
    """A body on the running loop, which ends within its limit. It can be cancelled, once."""

    def __init__(
        self,
        body: Coroutine[Any, Any, Any],
        limit: Limit | None,
        name: str,
        done: Callable[[Any, BaseException | None], None],
    ) -> None:
        """
        Args:
            limit: When it is cancelled; None is never.
            name: The task's name, for the error.
            done: Called once, with what the body returned or raised. Past the limit that is a TaskTimeout,
                whatever the body then returns or raises.
        """
        self._limit, self._name = limit, name
        self._done: Callable[[Any, BaseException | None], None] | None = done
        self._late = self.cancelled = False
        self._timer: asyncio.TimerHandle | None = None
        self._alarms = _alarms(limit.seconds) if limit else None
        if self._alarms is not None:
            self._alarms.add(self, self._too_late)
        self._task = asyncio.get_running_loop().create_task(body)
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Cancel the body, unless it is cancelled already: a second time would cut off its cleanup."""
        if not self.cancelled and not self._task.done():
            self.cancelled = True
            self._task.cancel()

    def _too_late(self) -> None:
        self._late = True
        self.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(GRACE, self._end, None, self._timeout(stopped=False))

    def _timeout(self, stopped: bool) -> TaskTimeout:
        assert self._limit is not None
        return TaskTimeout(self._name, self._limit.seconds, self._limit.source, stopped)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        value, error = bridge.outcome(task)
        if self._late:
            cause, error = error, self._timeout(stopped=True)
            error.__cause__ = None if isinstance(cause, asyncio.CancelledError) else cause
        self._end(value, error)

    def _end(self, value: Any, error: BaseException | None) -> None:
        if self._alarms is not None:
            self._alarms.drop(self)
        if self._timer is not None:
            self._timer.cancel()
        done, self._done = self._done, None
        if done is not None:
            done(value, error)


@contextlib.contextmanager
def interrupting(limit: Limit | None, name: str) -> Iterator[None]:
    """Interrupt a plain function at its limit, where it runs in the main thread.

    In another thread nothing can interrupt it: there it has failed when it ends, if that is too late.

    Raises:
        TaskTimeout: The limit passed.
    """
    if limit is None:
        yield
        return
    error = TaskTimeout(name, limit.seconds, limit.source)
    if threading.current_thread() is not threading.main_thread():
        began = time.monotonic()
        yield
        if time.monotonic() - began > limit.seconds:
            raise error
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise error

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, limit.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
