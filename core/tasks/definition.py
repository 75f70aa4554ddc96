"""What a task is once it is declared: its options, and the ways to call it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import EllipsisType
from typing import Any, Generic, ParamSpec, TypedDict, TypeVar, Unpack, overload
from uuid import uuid4

from core import config
from core.errors import OptionError
from core.tasks import bridge, celery_app, publish, runner
from core.tasks.arguments import Arguments
from core.tasks.result import TaskResult
from core.tasks.retry import RetryPolicy
from core.tasks.timeout import Limit

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

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
    if not isinstance(value, str) or not value or value != value.strip():
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
        for name in ("retry_backoff", "ignore_result"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r} is neither True nor False.")
        kinds = self.retry_on if isinstance(self.retry_on, tuple | list) else (self.retry_on,)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise OptionError(f"retry_on={self.retry_on!r} is not a tuple of exception classes.")
        object.__setattr__(self, "retry_on", tuple(kinds))


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


class Task(Generic[P, R_co]):
    """A declared task: call it to run the function here, `delay` it to run it in a worker."""

    def __init__(self, function: Callable[..., Any], name: str, options: TaskOptions, location: str) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.__name__: str = function.__name__
        #: The task's name on the wire.
        self.name = name
        self.options_declared = options
        #: Where it was declared, as `file:line`.
        self.location = location
        #: The import that declared it; a reload is another one.
        self.imported_by = function.__globals__.get("__spec__")
        self.arguments = Arguments(function, name.rpartition(".")[2])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} ({self.location})>"

    @property
    def queue(self) -> str | None:
        """The queue it is declared for; None is the default queue."""
        return self.options_declared.queue

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the function here and now: no broker, no retry, no timeout."""
        result: R_co = await self.function(*args, **kwargs)
        return result

    @overload
    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R_co]: ...
    @overload
    async def delay(
        self,
        *args: Any,
        countdown: float,
        expires: float | datetime = ...,
        queue: str = ...,
        priority: int = ...,
        task_id: str = ...,
        **kwargs: Any,
    ) -> TaskResult[R_co]: ...
    @overload
    async def delay(
        self,
        *args: Any,
        eta: datetime,
        expires: float | datetime = ...,
        queue: str = ...,
        priority: int = ...,
        task_id: str = ...,
        **kwargs: Any,
    ) -> TaskResult[R_co]: ...
    @overload
    async def delay(
        self,
        *args: Any,
        queue: str,
        expires: float | datetime = ...,
        priority: int = ...,
        task_id: str = ...,
        **kwargs: Any,
    ) -> TaskResult[R_co]: ...
    @overload
    async def delay(
        self, *args: Any, priority: int, expires: float | datetime = ..., task_id: str = ..., **kwargs: Any
    ) -> TaskResult[R_co]: ...
    @overload
    async def delay(
        self, *args: Any, expires: float | datetime, task_id: str = ..., **kwargs: Any
    ) -> TaskResult[R_co]: ...
    @overload
    async def delay(self, *args: Any, task_id: str, **kwargs: Any) -> TaskResult[R_co]: ...
    async def delay(self, *args: Any, **kwargs: Any) -> TaskResult[R_co]:
        """Queue a call and return at once with a handle to its result.

        The task's own arguments come first; beside them go, as keywords:

        Args:
            countdown: Seconds to wait before the call may run.
            eta: When it may run, as a datetime with a time zone; instead of *countdown*.
            expires: Seconds, or a datetime, after which it is not worth running.
            queue: Another queue than the task's own.
            priority: 0 (first) to 9 (last).
            task_id: The call's id; None makes a new one.

        Raises:
            ArgumentsError: The arguments do not fit the task or JSON. Nothing was sent.
            OptionError: An option has a bad value. Nothing was sent.
            UnknownQueue: No worker would serve the queue. Nothing was sent.
            TasksDisabled: `task_enabled` is False. Nothing was sent.
            PublishError: No broker took the call in time; its `maybe_sent` says whether it may have arrived.
        """
        options = {name: kwargs.pop(name) for name in CALL_OPTIONS if name in kwargs}
        return await self._send(args, kwargs, options)

    async def _send(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: dict[str, Any]
    ) -> TaskResult[R_co]:
        check_call_options(options)
        settings = config.get_settings()
        wire_args, wire_kwargs = self.arguments.encode(args, kwargs, settings.task_max_argument_bytes)
        task_id = options.pop("task_id", None) or str(uuid4())
        await publish.send(publish.Call(self, task_id, wire_args, wire_kwargs, options))
        return TaskResult(task_id, self.arguments, ignored=self.options_declared.ignore_result)

    def delay_sync(self, *args: Any, **kwargs: Any) -> TaskResult[R_co]:
        """`delay` for code without an event loop; it blocks until the call is queued.

        Raises:
            SyncInLoop: This thread runs an event loop.
        """
        return bridge.run(self.delay(*args, **kwargs), f"{self.__name__}.delay_sync()", f"{self.__name__}.delay()")

    def options(self, **options: Unpack[CallOptions]) -> "CallWith[P, R_co]":
        """Fix the options of calls, so that `delay` takes the task's own arguments only, fully typed.

        Raises:
            OptionError: An option has a bad value.
            TypeError: An option is unknown.
        """
        if unknown := set(options) - set(CALL_OPTIONS):
            raise TypeError(f"options() knows no {min(unknown)!r}; it takes {', '.join(CALL_OPTIONS)}.")
        check_call_options(options)
        return CallWith(self, options)

    @property
    def celery_task(self) -> Any:
        """The Celery task underneath, bound to this process's application."""
        return celery_app.celery_task(self)

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """A Celery signature, for chain, group and chord. Its arguments may be partial."""
        wire_args, wire_kwargs = self.arguments.partial(args, kwargs)
        return self.celery_task.s(*wire_args, **wire_kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Any:
        """An immutable Celery signature: it ignores the result of the task before it in a chain."""
        wire_args, wire_kwargs = self.arguments.partial(args, kwargs)
        return self.celery_task.si(*wire_args, **wire_kwargs)

    def limit(self) -> Limit | None:
        """The time one attempt may take, and where that number comes from; None is no limit."""
        declared = self.options_declared.timeout
        if declared is ...:
            seconds = config.get_settings().task_default_timeout
            return Limit(seconds, "task_default_timeout") if seconds is not None else None
        return Limit(float(declared), "the timeout of its decorator") if declared is not None else None

    def policy(self) -> RetryPolicy:
        """How often and when this task is tried again."""
        options, settings = self.options_declared, config.get_settings()
        return RetryPolicy(
            max_retries=settings.task_default_max_retries if options.max_retries is None else options.max_retries,
            delay=settings.task_default_retry_delay if options.retry_delay is None else options.retry_delay,
            backoff=options.retry_backoff,
            retry_on=options.retry_on,
        )

    def bind(self, app: Any) -> Any:
        """Register this task with a Celery application; called when there is one."""
        options = self.options_declared
        return runner.register(
            app,
            runner.Body(
                name=self.name,
                function=self.function,
                arguments=self.arguments,
                policy=self.policy(),
                limit=self.limit(),
                queue=options.queue,
                priority=options.priority,
                ignore_result=options.ignore_result,
            ),
        )


class SyncTask(Task[P, R_co]):
    """A task made of a plain `def`: calling it runs it here, like the function it was."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:  # type: ignore[override]
        result: R_co = self.function(*args, **kwargs)
        return result


class CallWith(Generic[P, R_co]):
    """A task together with options for its calls. It can be kept and used many times."""

    def __init__(self, task: Task[P, R_co], options: CallOptions) -> None:
        self._task = task
        self._options = options

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R_co]:
        """Queue a call with these options; every keyword is the task's own."""
        return await self._task._send(args, kwargs, dict(self._options))

    def delay_sync(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R_co]:
        """`delay` for code without an event loop."""
        return bridge.run(self.delay(*args, **kwargs), "delay_sync()", "delay()")


@dataclass(frozen=True)
class Schedule:
    """When a periodic task runs, and with what."""

    cron: str | None
    interval: float | None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    enabled: bool = True

    def __str__(self) -> str:
        return f"cron {self.cron}" if self.cron else f"every {self.interval:g} s"


class PeriodicTask(Task[P, R_co]):
    """A task that the scheduler calls; everything else of a task works as well."""

    def __init__(
        self, function: Callable[..., Any], name: str, options: TaskOptions, location: str, schedule: Schedule
    ) -> None:
        super().__init__(function, name, options, location)
        self.schedule = schedule


class SyncPeriodicTask(PeriodicTask[P, R_co], SyncTask[P, R_co]):
    """A periodic task made of a plain `def`."""
