"""The options of a task and of a call, and which of their values mean something."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import EllipsisType
from typing import Any, TypedDict

from core.errors import OptionError

#: Options of a call that `delay` reads from its keywords; no task parameter may have such a name.
CALL_OPTIONS = ("countdown", "eta", "expires", "queue", "priority", "task_id")

#: Three centuries in seconds; what is longer than that, dates and timers cannot hold.
LARGEST = 10_000_000_000


def number(name: str, value: object, *, zero: bool, whole: bool = False) -> None:
    """Refuse what is no number above zero, or from zero on: NaN, infinity and booleans too.

    Raises:
        OptionError: naming the option and the value.
    """
    kinds = int if whole else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not fits or not 0 <= value <= LARGEST or (value == 0 and not zero):  # type: ignore[operator]
        what = "a whole number" if whole else "a number of seconds"
        limit = f" up to {LARGEST:,}" if fits and value > 0 else ""  # type: ignore[operator]
        raise OptionError(f"{name}={value!r} is not {what} {'from 0 on' if zero else 'above 0'}{limit}.")


def text(name: str, value: object) -> None:
    """Refuse what is no text, or empty, or has spaces around it.

    Raises:
        OptionError: naming the option and the value.
    """
    if (
        not isinstance(value, str)
        or not value
        or value != value.strip()
        or value.encode(errors="ignore").decode() != value
    ):
        raise OptionError(f"{name}={value!r} is not a name; write text without spaces around it.")


@dataclass(frozen=True)
class TaskOptions:
    """Every option of `@task` and `@periodic_task`; None, or `...` for the timeout, means the settings' default."""

    name: str | None = None
    queue: str | None = None
    max_retries: int | None = None
    retry_delay: float | None = None
    retry_on: tuple[type[Exception], ...] = ()
    retry_backoff: bool = False
    timeout: float | EllipsisType | None = ...
    ignore_result: bool = False
    priority: int | None = None
    unique: bool = False
    unique_for: float | None = None
    unique_key: Callable[..., object] | tuple[str, ...] | None = None
    sensitive: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("name", "queue"):
            if getattr(self, name) is not None:
                text(name, getattr(self, name))
        if self.max_retries is not None:
            number("max_retries", self.max_retries, zero=True, whole=True)
        if self.retry_delay is not None:
            number("retry_delay", self.retry_delay, zero=True)
        if self.timeout is not None and self.timeout is not ...:
            number("timeout", self.timeout, zero=False)
        if self.priority is not None:
            _priority(self.priority)
        for name in ("retry_backoff", "ignore_result", "unique"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r} is neither True nor False.")
        kinds = self.retry_on if isinstance(self.retry_on, tuple | list) else (self.retry_on,)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise OptionError(f"retry_on={self.retry_on!r} is not a tuple of exception classes.")
        object.__setattr__(self, "retry_on", tuple(kinds))
        hidden = (self.sensitive,) if isinstance(self.sensitive, str) else self.sensitive
        if not isinstance(hidden, tuple | list) or not all(isinstance(name, str) for name in hidden):
            raise OptionError(f"sensitive={hidden!r} is not a tuple of parameters' names.")
        object.__setattr__(self, "sensitive", tuple(hidden))
        self._check_unique()

    def _check_unique(self) -> None:
        if self.unique_for is not None:
            number("unique_for", self.unique_for, zero=False)
        key = (self.unique_key,) if isinstance(self.unique_key, str) else self.unique_key
        if key is not None and not callable(key):
            if not isinstance(key, tuple | list) or not all(isinstance(name, str) for name in key):
                raise OptionError(f"unique_key={key!r} is neither a function nor a tuple of parameters' names.")
            key = tuple(key)
        object.__setattr__(self, "unique_key", key)
        if not self.unique and not (self.unique_for is None and key is None):
            raise OptionError("unique_for= and unique_key= say how calls are unique; add unique=True.")


def _priority(value: object) -> None:
    number("priority", value, zero=True, whole=True)
    if value > 9:  # type: ignore[operator]
        raise OptionError(f"priority={value!r} is not between 0 (first) and 9 (last).")


class CallOptions(TypedDict, total=False):
    """The options of one call."""

    countdown: float
    eta: datetime
    expires: float | datetime
    queue: str
    priority: int
    task_id: str


def check_call_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a call that mean nothing.

    Raises:
        OptionError: naming the option and the value.
    """
    for name, value in options.items():
        if name in ("queue", "task_id"):
            text(name, value)
        elif name == "priority":
            _priority(value)
        elif name == "countdown":
            number(name, value, zero=True)
        elif isinstance(value, datetime):
            if value.tzinfo is None:
                raise OptionError(f"{name}={value!r} has no time zone; write datetime.now(UTC) + timedelta(...).")
        elif name == "eta":
            raise OptionError(f"eta={value!r} is not a datetime with a time zone; for seconds use countdown=.")
        else:
            number(name, value, zero=False)
    if "countdown" in options and "eta" in options:
        raise OptionError("A call takes countdown= or eta=, not both.")
