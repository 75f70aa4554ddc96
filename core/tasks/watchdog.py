"""Says who keeps a worker's event loop from turning, since every other call on it stands still meanwhile.

A thread asks the loop for a sign of life, over and over. Where none comes in time, the stack of the loop's thread
shows which code sits there; the log says so once, and once more when the loop goes on.
"""

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from itertools import dropwhile
from types import FrameType
from typing import Any

from core.tasks.context import current_in

logger = logging.getLogger("core.tasks")

#: Packages whose frames stand between a thread's beginning and the project's code.
MACHINERY = ("threading", "asyncio", "core", "celery")


class _Watchdog:
    """Watches one loop, from a thread of its own, until the loop is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slow: float) -> None:
        self.loop, self._slow = loop, slow
        self._every = max(slow / 4, 0.05)
        self._asked = 0.0, 0.0
        self._turned = threading.Event()
        self._turned.set()
        #: Seconds that the last sign took, or that the next one is waited for; and the longest that one has taken.
        self.lag = self.longest = 0.0
        loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._thread = threading.get_ident()
        threading.Thread(target=self._run, name="core-tasks-watchdog", daemon=True).start()

    def _run(self) -> None:
        self._passed()
        while not self.loop.is_closed():
            time.sleep(self._every)
            self._tick(self._passed() - self._every)

    def _passed(self) -> float:
        """Seconds since this was asked last, without those for which the process was stopped."""
        (now, spent), self._asked = self._asked, (time.monotonic(), time.process_time())
        # A process that was stopped has spent nothing. One in which C code let no other thread run has.
        return min(self._asked[0] - now, max(self._every * 2, self._asked[1] - spent))

    def _tick(self, late: float) -> None:
        """Ask for a sign, and wait for it.

        Args:
            late: Seconds that it should have been asked for before.
        """
        self.lag, due, said = late, self._slow, ""
        self._turned.clear()
        if late >= due and not self._waits():  # code that let no thread run; to ask is to let the loop go on
            due, said = late + self._slow, self._tell("")
        with suppress(RuntimeError):  # closed at this moment
            self.loop.call_soon_threadsafe(self._turned.set)
        self.lag += self._passed()
        while not self._turned.is_set() and not self.loop.is_closed():
            if self.lag >= due:
                due, said = self.lag + self._slow, self._tell(said)
            self._turned.wait(self._every)
            self.lag += self._passed()
        self.longest = max(self.longest, self.lag)
        if said:
            logger.warning("%s: the loop went on after %.1f s", said, self.lag)

    def _tell(self, said: str) -> str:
        """Say who sits there, unless that was *said* already."""
        who, _, frames = self._sits()
        if who == said or self._turned.is_set():  # then these are the frames of whoever came next
            return said
        stack = "".join(traceback.StackSummary.extract(iter(frames)).format()).rstrip()
        logger.warning("the event loop has not turned for %.1f s: %s sits here:\n%s", self.lag, who, stack)
        return who

    def blocked(self) -> tuple[float, str | None]:
        """For how many seconds the loop has not turned, and the id of the call that keeps it, if one does."""
        call = None if self._turned.is_set() else self._sits()[1]
        return (0.0 if self._turned.is_set() else self.lag), call

    def _waits(self) -> bool:
        """Whether the loop has nothing to do."""
        return _module(sys._current_frames()[self._thread]) == "selectors"

    def _sits(self) -> tuple[str, str | None, list[tuple[FrameType, int]]]:
        """Who runs on the loop as the log names it, the id of its call if it is one, and its part of the stack."""
        frames = list(traceback.walk_stack(sys._current_frames()[self._thread]))[::-1]
        own = list(dropwhile(lambda at: _module(at[0]).partition(".")[0] in MACHINERY, frames)) or frames
        for frame, _ in reversed(frames):
            if call := _call(frame):
                return f"{call[0]}[{call[1]}]", call[1], own
        first = own[0][0]
        if _module(first) == "selectors":
            return "another thread or a busy machine", None, own
        return f"{_module(first)}.{first.f_code.co_qualname}", None, own


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _call(frame: FrameType) -> tuple[Any, Any] | None:
    """Name and id of the call that a frame works for, if it shows: all that the loop runs begins in one of these."""
    match _module(frame), frame.f_code.co_name:
        case "asyncio.events", "_run":  # a step of a body, or of a task or a callback that a body has started
            context = getattr(frame.f_locals.get("self"), "_context", None)
            running = current_in(context) if context is not None else None
            return (running.name, running.id) if running else None
        case "celery.concurrency.base", "apply_target":  # Celery's tracer, on the asyncio pool
            name, id, *_ = frame.f_locals["args"]
            return name, id
    return None


class _Process:
    """What watches this process's loop. A forked child has neither that loop nor the thread."""

    watchdog: _Watchdog | None = None


_process = _Process()


def _after_fork() -> None:
    _process.watchdog = None


os.register_at_fork(after_in_child=_after_fork)


def watch(loop: asyncio.AbstractEventLoop, slow: float) -> None:
    """Watch the loop that this process's bodies run on, from its next turn until it is closed.

    What blocks it for longer than *slow* seconds is named in the log. It is looked at every quarter of that (at least
    0.05 s), so that what blocks for less than a quarter more may go unseen. Time for which the process was stopped
    does not count.

    Args:
        slow: Seconds.
    """
    if _process.watchdog is None or _process.watchdog.loop is not loop:
        _process.watchdog = _Watchdog(loop, slow)


def blocked() -> tuple[float, str | None]:
    """For how many seconds the watched loop has not turned, and the id of the call that keeps it, if one does."""
    return _process.watchdog.blocked() if _process.watchdog else (0.0, None)


def lag() -> dict[str, float]:
    """Seconds that the watched loop took, or takes, to react: the last time, and the longest of all."""
    watchdog = _process.watchdog
    return {"last": round(watchdog.lag, 6), "longest": round(watchdog.longest, 6)} if watchdog else {}
