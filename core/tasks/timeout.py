"""The time one attempt may take, kept inside the process that runs the body.

Celery's own limits work by killing a process, and are silently off where a pool has none. This one
cancels a coroutine on its loop and interrupts a plain function in a main thread, the same on every pool.
"""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from core.errors import TaskTimeout

T = TypeVar("T")

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


async def within(limit: Limit | None, task: "asyncio.Task[T]", name: str) -> T:
    """Await a body's asyncio task, and cancel it at its limit.

    Raises:
        TaskTimeout: The limit passed. That the body then returned something, or raised, changes nothing.
    """
    if limit is None:
        return await task
    done, _ = await asyncio.wait({task}, timeout=limit.seconds)
    if done:
        return task.result()
    task.cancel()
    stopped, _ = await asyncio.wait({task}, timeout=GRACE)
    cause = None
    if stopped and not task.cancelled():
        cause = task.exception()
    raise TaskTimeout(name, limit.seconds, limit.source, bool(stopped)) from cause


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
