"""How many attempts a call has, and how long it waits between them. Pure: no clock, no broker."""

import contextlib
from dataclasses import dataclass

from core.errors import TaskError

#: The longest pause that a doubling delay grows to, in seconds.
LONGEST_BACKOFF = 3600.0


@dataclass(frozen=True)
class RetryPolicy:
    """What a task's options, or the settings in their place, say about trying again."""

    max_retries: int
    delay: float
    backoff: bool = False
    retry_on: tuple[type[Exception], ...] = ()

    def retries(self, error: BaseException) -> bool:
        """Whether this error is one that a later attempt may not meet.

        An error that came out of another call's `get()` is that call's last word: it counts only where
        `retry_on` names it, or each of its attempts would be multiplied by ours.
        """
        if isinstance(error, self.retry_on):
            return True
        return isinstance(error, TaskError) and not is_from_call(error)

    def next_delay(self, error: BaseException, attempt: int) -> float | None:
        """Seconds until the next attempt after *attempt* (counted from 1) failed; None when there is none."""
        if attempt > self.max_retries or not self.retries(error):
            return None
        asked = getattr(error, "retry_in", None) if isinstance(error, TaskError) else None
        if asked is not None:
            return float(asked)
        if not self.backoff:
            return self.delay
        # 2**62 seconds is long past every limit, and a larger power may not fit a float.
        return float(min(self.delay * 2 ** min(attempt - 1, 62), max(LONGEST_BACKOFF, self.delay)))


_MARK = "__core_tasks_from_call__"


def mark_from_call(error: BaseException) -> None:
    """Note that an error was raised by another call and only passed on by its `get()`."""
    with contextlib.suppress(AttributeError):  # a class with __slots__ and no __dict__
        setattr(error, _MARK, True)


def is_from_call(error: BaseException) -> bool:
    """Whether `mark_from_call` has seen this error."""
    return getattr(error, _MARK, False) is True
