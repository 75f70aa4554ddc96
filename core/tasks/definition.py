"""What a task is once it is declared, and the ways to call it."""

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, ParamSpec, TypeVar, Unpack, overload

from core import config
from core.errors import ArgumentsError, OptionError, PublishManyError
from core.tasks import bridge, celery_app, publish, runner
from core.tasks.arguments import Arguments
from core.tasks.context import current_or_none
from core.tasks.envelope import Call, new_id
from core.tasks.options import CALL_OPTIONS, CallOptions, TaskOptions, check_call_options
from core.tasks.result import TaskResult
from core.tasks.retry import RetryPolicy
from core.tasks.timeout import Limit
from core.tasks.unique import lock_name

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

#: The arguments of one call of `delay_many`.
CallArguments = tuple[Any, ...] | Mapping[str, Any]

#: Seconds that `delay_many` encodes before others on the loop have their turn.
LONGEST_TURN = 0.005


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
        self.arguments = Arguments(function, name.rpartition(".")[2], options.sensitive)

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
        task_id = options.pop("task_id", None) or new_id()
        lock = self.lock(args, kwargs)
        there = await publish.send(Call(self, task_id, wire_args, wire_kwargs, options, current_or_none(), "", *lock))
        return self._handle(there, there != task_id)

    def _handle(self, task_id: str, deduplicated: bool = False) -> TaskResult[R_co]:
        ignored = self.options_declared.ignore_result
        return TaskResult(task_id, self.arguments, ignored=ignored, deduplicated=deduplicated)

    def lock(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, int]:
        """The lock of a call with these arguments, and the seconds after which it ends; ("", 0) for a task whose calls
        are not unique.

        Raises:
            OptionError: The broker cannot keep it, or `unique_key` returned what has no form in JSON.
        """
        options = self.options_declared
        if not options.unique:
            return "", 0
        settings = config.get_settings()
        if not settings.uses_core_transport:
            raise OptionError(
                f"{self.name} is unique: that needs Redis as the broker, with task_broker_transport core."
            )
        seconds = options.unique_for or settings.task_result_expires
        return lock_name(self.name, self.arguments, options.unique_key, args, kwargs), math.ceil(seconds)

    async def delay_many(self, calls: Iterable[CallArguments]) -> list[TaskResult[R_co]]:
        """Queue many calls in their order, many in a round trip, and return their handles in that order.

        All are checked before any is sent. Type checkers cannot see whether the arguments fit the task: a
        `ParamSpec` describes one call, and no collection of them.

        Args:
            calls: For each call a tuple of positional arguments, or a mapping of keyword arguments.

        Raises:
            ArgumentsError: A call does not fit the task or JSON, or is no tuple or mapping; it is named by its place,
                `calls[0]` being the first. Nothing was sent.
            TasksDisabled: `task_enabled` is False. Nothing was sent.
            PublishManyError: No broker took all in time; it has those that were sent, perhaps sent and not sent.
        """
        return await self._send_many(calls, {})

    async def _send_many(self, calls: Iterable[CallArguments], options: CallOptions) -> list[TaskResult[R_co]]:
        if "task_id" in options:
            raise OptionError(f"task_id={options['task_id']!r} is one id; delay_many gives each call its own.")
        most, caller = config.get_settings().task_max_argument_bytes, current_or_none()
        made: list[Call] = []
        now = asyncio.get_running_loop().time
        turn = now()
        for number, call in enumerate(calls):
            try:
                if isinstance(call, tuple):
                    wire_args, wire_kwargs = self.arguments.encode(call, {}, most)
                elif isinstance(call, Mapping):
                    wire_args, wire_kwargs = self.arguments.encode((), call, most)
                else:
                    kind = type(call).__name__
                    raise ArgumentsError(f"a call is a tuple of arguments or a mapping of them, and no {kind}.")
            except ArgumentsError as error:
                raise ArgumentsError(f"calls[{number}]: {error}") from None
            given, named = (call, {}) if isinstance(call, tuple) else ((), call)
            lock = self.lock(given, named)
            made.append(Call(self, new_id(), wire_args, wire_kwargs, dict(options), caller, "", *lock))
            if now() > turn + LONGEST_TURN:
                await asyncio.sleep(0)
                turn = now()
        done = await publish.send_many(made) if made else publish.Sent()
        if done.error is not None:
            kinds = ([self._handle(call.id) for call in some] for some in (done.sent, done.maybe_sent, done.not_sent))
            raise PublishManyError(self.name, str(done.error), *kinds) from done.error
        return [self._handle(done.there.get(call.id, call.id), call.id in done.there) for call in made]

    def delay_many_sync(self, calls: Iterable[CallArguments]) -> list[TaskResult[R_co]]:
        """`delay_many` for code without an event loop; it blocks until the calls are queued.

        Raises:
            SyncInLoop: This thread runs an event loop.
        """
        name = self.__name__
        return bridge.run(self.delay_many(calls), f"{name}.delay_many_sync()", f"{name}.delay_many()")

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

    def body(self) -> runner.Body:
        """What has to be known of this task to run it."""
        options = self.options_declared
        return runner.Body(
            name=self.name,
            function=self.function,
            is_coroutine=inspect.iscoroutinefunction(self.function),
            arguments=self.arguments,
            policy=self.policy(),
            limit=self.limit(),
            queue=options.queue,
            priority=options.priority,
            ignore_result=options.ignore_result,
        )

    def bind(self, app: Any) -> Any:
        """Register this task with a Celery application; called when there is one."""
        return runner.register(app, self.body())


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

    async def delay_many(self, calls: Iterable[CallArguments]) -> list[TaskResult[R_co]]:
        """Queue many calls with these options, as the task's own `delay_many` does."""
        return await self._task._send_many(calls, self._options)

    def delay_many_sync(self, calls: Iterable[CallArguments]) -> list[TaskResult[R_co]]:
        """`delay_many` for code without an event loop."""
        return bridge.run(self.delay_many(calls), "delay_many_sync()", "delay_many()")


@dataclass(frozen=True)
class Schedule:
    """When a periodic task runs, and with what."""

    cron: str | None
    interval: float | None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    enabled: bool = True
    #: Seconds by which a run may be late and is still worth sending; None is any time.
    max_lateness: float | None = None

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
