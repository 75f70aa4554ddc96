"""How an attempt ended, as it is told: to the log, and to whoever awaits the call's result."""

import logging
import pickle
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from core.errors import ArgumentsError, CoreError, TaskFailed, TaskTimeout
from core.tasks.context import CurrentTask
from core.tasks.retry import RetryPolicy, is_from_call

logger = logging.getLogger("core.tasks")


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended that no worker has run."""

    #: What the body returned, as JSON's own values.
    value: Any = None
    error: Exception | None = None
    #: Seconds until the next attempt; None where there is none.
    retry_in: float | None = None
    cancelled: bool = False


class Log:
    """What the log has of one attempt.

    Args:
        stored: Whether its outcome is stored, where a command shows it.
    """

    def __init__(self, here: CurrentTask, policy: RetryPolicy, stored: bool = False) -> None:
        self._here, self._policy, self._stored = here, policy, stored
        self._began = time.perf_counter()

    def __call__(self, level: int, outcome: str, *values: Any, error: BaseException | None = None) -> None:
        seconds = time.perf_counter() - self._began
        logger.log(level, "%s[%s] " + outcome, self._here.name, self._here.id, *values, seconds, exc_info=error)

    def failed(self, error: Exception) -> float | None:
        """Tell of a failure; return the seconds until the next attempt, None where there is none."""
        policy, number = self._policy, self._here.attempt
        delay = None if isinstance(error, ArgumentsError) else policy.next_delay(error, number)
        if delay is None:
            see = f" See `core result {self._here.id}`" if self._stored else ""
            self(logging.ERROR, "%s%s (%.3f s)", ending(policy, error, number), see, error=error)
        else:
            self(logging.WARNING, "retry in %g s (attempt %d of %d failed: %s) after %.3f s",
                 delay, number, policy.max_retries + 1, said(error))  # fmt: skip
        return delay


def said(error: BaseException) -> str:
    """An error in one line, for the log."""
    if isinstance(error, CoreError):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


def ending(policy: RetryPolicy, error: Exception, attempt: int) -> str:
    """Why there is no further attempt, for the log."""
    kind = type(error).__name__
    if policy.retries(error):
        return f"failed on attempt {attempt} of {policy.max_retries + 1}: {said(error)}"
    if isinstance(error, ArgumentsError):
        why = str(error).rstrip(".")
    elif isinstance(error, TaskTimeout):
        why = f"{str(error).rstrip('.')}. Add retry_on=(TaskTimeout,) if another attempt may be faster"
    elif is_from_call(error):
        why = f"{kind} was raised by a call that it waited for. Add retry_on=({kind},) to try again"
    elif isinstance(error, TaskFailed):
        why = str(error).rstrip(".")
    else:
        why = f"{kind} is not a TaskError. Raise TaskError, or add retry_on=({kind},)"
    return f"failed and was not retried: {why}."


def from_the_body(error: Exception) -> TracebackType | None:
    """An error's traceback from the body's own first line on; what is before it is the same for every call."""
    found = at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_globals.get("__name__") == "core.tasks.runner":
            found = at.tb_next or found
        at = at.tb_next
    return found


def as_failure(error: BaseException) -> TaskFailed:
    """What becomes of an exit or a cancellation that a body raised by itself: an ordinary failure."""
    return TaskFailed(type(error).__name__, str(error) or f"the body raised {type(error).__name__}")


def portable(error: Exception) -> Exception:
    """The error itself if the caller can build it again, else a TaskFailed that tells of it."""
    try:
        same = pickle.loads(pickle.dumps(error))
        fits = type(same) is type(error) and type(type(error)(*error.args)) is type(error)
        fits = fits and not isinstance(error, MemoryError)  # Celery would take it for its own, and end the worker
    except Exception:
        fits = False
    if fits:
        return error
    kind = type(error)
    return TaskFailed(f"{kind.__module__}.{kind.__qualname__}", str(error))
