"""What a running task knows of itself: `current()`."""

from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from core.errors import OutsideTask
from core.tasks import bridge
from core.tasks.progress import Progress


@dataclass(frozen=True)
class CurrentTask:
    """The attempt that is running. It is the same object for the whole attempt, in every coroutine of it."""

    #: The call's id, the one its `TaskResult` has.
    id: str
    #: The task's name.
    name: str
    #: Counts from 1; 2 is the first retry.
    attempt: int
    #: The queue that the call came from.
    queue: str
    #: What the message's headers carry beside Celery's own.
    headers: Mapping[str, Any]
    #: When this attempt is stopped (UTC); None without a timeout.
    deadline: datetime | None
    #: The id of the call that made this one, if a task did.
    parent_id: str | None
    #: The id of the first call in the chain of calls that led here; its own id if it is the first.
    root_id: str
    _report: Callable[[Progress], object] = field(default=lambda _: None, repr=False, compare=False)

    async def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far this call is, for `result.progress()`, `core result --follow` and Celery's own clients.

        It waits for nobody, and may be said as often as you like: of one call about five a second leave this
        process, and the last one does. After the attempt has ended, nothing happens.

        Args:
            done: How much is done, from 0 on, in any measure.
            total: How much there is, from 0 on; None where that is not known.
            message: What it is about, for people.

        Raises:
            OptionError: A number is none, or below 0; the message is no text (a ValueError).
        """
        self._report(Progress(done, total, message))

    def progress_sync(self, done: float, total: float | None = None, message: str = "") -> None:
        """`progress` for a plain `def`.

        Raises:
            OptionError: As `progress`.
            SyncInLoop: This thread runs an event loop.
        """
        bridge.run(self.progress(done, total, message), "progress_sync()", "progress()")


# Celery's own notion of the current task is bound to a thread, and a coroutine runs on another one.
_current: ContextVar[CurrentTask | None] = ContextVar("core_tasks_current", default=None)


def current() -> CurrentTask:
    """The task that is running here.

    Raises:
        OutsideTask: No task is running in this context.
    """
    running = _current.get()
    if running is None:
        raise OutsideTask
    return running


def current_or_none() -> CurrentTask | None:
    """The task that is running here, or None."""
    return _current.get()


def current_in(context: Context) -> CurrentTask | None:
    """The task that is running in another context, or None."""
    return context.get(_current)


def enter(running: CurrentTask) -> None:
    """Make *running* the current task of this context and of what it starts."""
    _current.set(running)
