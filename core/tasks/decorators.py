"""`@task` and `@periodic_task`: check the options, build a definition, register it.

Every mistake is raised right here, while the module is imported, with the file and line of the function.
Nothing is read, opened or made: a module with tasks is cheap to import before settings exist.
"""

import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from difflib import get_close_matches
from types import CodeType, EllipsisType, FunctionType
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar, overload

from core import discovery
from core.errors import CoreError, DuplicateTask, OptionError, TaskDefinitionError
from core.tasks import celery_app, schedule
from core.tasks.definition import PeriodicTask, Schedule, SyncPeriodicTask, SyncTask, Task
from core.tasks.options import CALL_OPTIONS, TaskOptions, number

P = ParamSpec("P")
T = TypeVar("T")

TASK_OPTIONS = tuple(option.name for option in fields(TaskOptions))
PERIODIC_OPTIONS = ("cron", "interval", "args", "kwargs", "enabled", "max_lateness", "overlap")
#: What a periodic task cannot be given.
NOT_PERIODIC = ("retry_on", "retry_backoff", "ignore_result", "priority", "unique", "unique_for", "unique_key")


class _Decorator(Protocol):
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Task[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> SyncTask[P, T]: ...


class _PeriodicDecorator(Protocol):
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> PeriodicTask[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> SyncPeriodicTask[P, T]: ...


@overload
def task(  # type: ignore[overload-overlap]
    function: Callable[P, Coroutine[Any, Any, T]], /
) -> Task[P, T]: ...
@overload
def task(function: Callable[P, T], /) -> SyncTask[P, T]: ...
@overload
def task(
    *,
    name: str | None = ...,
    queue: str | None = ...,
    max_retries: int | None = ...,
    retry_delay: float | None = ...,
    retry_on: tuple[type[Exception], ...] | type[Exception] = ...,
    retry_backoff: bool = ...,
    timeout: float | EllipsisType | None = ...,
    ignore_result: bool = ...,
    priority: int | None = ...,
    unique: bool = ...,
    unique_for: float | None = ...,
    unique_key: Callable[..., object] | tuple[str, ...] | str | None = ...,
    sensitive: tuple[str, ...] | str = ...,
) -> _Decorator: ...
def task(function: Any = None, /, *more: Any, **options: Any) -> Any:
    """Make a task of a function: `async def` first, a plain `def` as well.

    Args:
        name: The name on the wire; by default the module's path from the project's root and the function's name.
        queue: The queue its calls go to; None is `task_default_queue`.
        max_retries: Retries after the first attempt: 3 is up to 4 attempts, 0 never retries. None is
            `task_default_max_retries`.
        retry_delay: Seconds between attempts. None is `task_default_retry_delay`.
        retry_on: Exception classes that are retried beside TaskError.
        retry_backoff: Whether the delay doubles from attempt to attempt, up to an hour.
        timeout: Seconds one attempt may take; None is no limit, left out it is `task_default_timeout`.
        ignore_result: Whether the result is thrown away; `get()` and `status()` then have nothing to read.
        priority: 0 (first) to 9 (last) within its queue.
        unique: Whether a call is not queued while one with the same arguments waits or runs: `delay` then returns the
            handle to that one, with `deduplicated` set. Needs Redis as the broker,
            with `task_broker_transport` core.
        unique_for: Seconds after which another one may be queued all the same; None is when the first has ended, or a
            day has passed (`task_result_expires`).
        unique_key: What makes calls the same, in place of all arguments: parameters' names, or a function of the
            arguments that returns a key.
        sensitive: Parameters whose values no log, event, stored result or list of dead calls shows. They are in
            the message all the same, so that whoever can read Redis can read them.

    Raises:
        TaskDefinitionError: An option is unknown, a parameter has a reserved name, or it is the wrong kind of
            function (a TypeError).
        OptionError: An option has a bad value, or the name is taken (a ValueError).
    """
    return _decorate("task", function, more, options)


@overload
def periodic_task(
    *,
    cron: str,
    args: Sequence[Any] = ...,
    kwargs: Mapping[str, Any] = ...,
    enabled: bool = ...,
    max_lateness: float | None = ...,
    overlap: bool = ...,
    name: str | None = ...,
    queue: str | None = ...,
    timeout: float | EllipsisType | None = ...,
    max_retries: int | None = ...,
    retry_delay: float | None = ...,
    sensitive: tuple[str, ...] | str = ...,
) -> _PeriodicDecorator: ...
@overload
def periodic_task(
    *,
    interval: float | timedelta,
    args: Sequence[Any] = ...,
    kwargs: Mapping[str, Any] = ...,
    enabled: bool = ...,
    max_lateness: float | None = ...,
    overlap: bool = ...,
    name: str | None = ...,
    queue: str | None = ...,
    timeout: float | EllipsisType | None = ...,
    max_retries: int | None = ...,
    retry_delay: float | None = ...,
    sensitive: tuple[str, ...] | str = ...,
) -> _PeriodicDecorator: ...
def periodic_task(function: Any = None, /, *more: Any, **options: Any) -> Any:
    """Make a task that the scheduler calls by itself. It can also be called and delayed like any task.

    Args:
        cron: Five fields, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`, in `task_timezone`.
        interval: Seconds (or a timedelta) between two runs. Exactly one of *cron* and *interval* is given.
        args: Positional arguments of every run.
        kwargs: Keyword arguments of every run.
        enabled: Whether the scheduler runs it.
        max_lateness: Seconds; a run that the scheduler could not send for longer, as while it was down, is left out.
            None sends it whenever the scheduler is back, once however many times have passed.
        overlap: Whether a run may begin while the last one has not ended; False leaves it out. Needs Redis as the
            broker, with `task_broker_transport` core.
        name, queue, timeout, max_retries, retry_delay, sensitive: As for `@task`.

    Raises:
        TaskDefinitionError: As for `@task`; also both or neither of *cron* and *interval*, or parameters that
            nobody fills.
        OptionError: As for `@task`; also cron text or an interval that means nothing.
    """
    return _decorate("periodic_task", function, more, options)


def _decorate(decorator: str, function: Any, more: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if more or (function is not None and (options or isinstance(function, str | int | float | timedelta))):
        example = "interval=300" if decorator == "periodic_task" else 'queue="emails"'
        _fail(TaskDefinitionError, f"@{decorator} takes its options by name: @{decorator}({example}).", _caller())
    if function is None:
        return lambda decorated: _declare(decorator, decorated, options)
    return _declare(decorator, function, options)


def _declare(decorator: str, function: Any, options: dict[str, Any]) -> Any:
    location = _location(function)
    try:
        return _build(decorator, function, dict(options), location)
    except CoreError as error:
        if isinstance(error, DuplicateTask):
            raise
        kind = OptionError if isinstance(error, OptionError) else TaskDefinitionError
        _fail(kind, str(error), location, error.__cause__)


def _fail(kind: type[CoreError], message: str, location: str, cause: BaseException | None = None) -> NoReturn:
    raise kind(f"{location}: {message}") from cause


def _build(decorator: str, function: Any, given: dict[str, Any], location: str) -> Task[Any, Any]:
    _check_function(decorator, function)
    periodic = decorator == "periodic_task"
    known = TASK_OPTIONS + PERIODIC_OPTIONS if periodic else TASK_OPTIONS
    if periodic:
        known = tuple(option for option in known if option not in NOT_PERIODIC)
    for option in given:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            guess = f"; did you mean {near[0]!r}?" if near else "."
            raise TaskDefinitionError(f"@{decorator} has no option {option!r}{guess} It takes {', '.join(known)}.")
    timing = {name: given.pop(name) for name in PERIODIC_OPTIONS if name in given}
    if not _overlap(timing):
        given |= {"unique": True, "unique_key": ()}
    options = TaskOptions(**given)
    module = discovery.module_path(_written(function).co_filename, function.__module__)
    name = options.name or f"{module}.{function.__qualname__.replace('<locals>.', '')}"
    asynchronous = inspect.iscoroutinefunction(function)
    if periodic:
        declared: Task[Any, Any] = (PeriodicTask if asynchronous else SyncPeriodicTask)(
            function, name, options, location, _schedule(function, timing)
        )
    else:
        declared = (Task if asynchronous else SyncTask)(function, name, options, location)
    _check_names(declared)
    resolved = declared.arguments.prepare()
    if isinstance(declared, PeriodicTask):
        _check_schedule_arguments(declared, declared.schedule, resolved)
    other = celery_app.find(name)
    if isinstance(other, Task) and not _same(other, declared):
        raise DuplicateTask(name, other.location, location)
    celery_app.declare(declared)
    return declared


def _overlap(timing: dict[str, Any]) -> bool:
    overlap = timing.get("overlap", True)
    if not isinstance(overlap, bool):
        raise OptionError(f"overlap={overlap!r} is neither True nor False.")
    return overlap


def _check_function(decorator: str, function: Any) -> None:
    if isinstance(function, Task):
        raise TaskDefinitionError(f"{function.__name__} is a task already; take one decorator away.")
    if inspect.isclass(function):
        raise TaskDefinitionError(f"@{decorator} goes on a function, and {function.__name__} is a class.")
    if isinstance(function, staticmethod | classmethod) or not isinstance(function, FunctionType):
        what = type(function).__name__
        raise TaskDefinitionError(f"@{decorator} goes on a function made with `async def` or `def`, not on a {what}.")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TaskDefinitionError(f"{function.__name__} is a generator: a task returns one value. Return a list.")
    owner = function.__qualname__.rpartition(".")[0]
    if owner and not owner.endswith("<locals>"):
        raise TaskDefinitionError(
            f"{function.__qualname__} is a method; a worker has no {owner} to call it on. Move it out of the class."
        )
    if function.__name__ == "<lambda>":
        raise TaskDefinitionError("A lambda has no name that a worker could find it by. Use `def`.")
    for name in inspect.signature(function).parameters:
        if name in CALL_OPTIONS:
            raise TaskDefinitionError(
                f"{function.__name__} has a parameter {name!r}, which delay() reads as an option of the call. "
                f"Rename the parameter; the option itself is also spelled .options({name}=...).delay(...)."
            )


def _schedule(function: Any, timing: dict[str, Any]) -> Schedule:
    cron, interval = timing.get("cron"), timing.get("interval")
    if (cron is None) == (interval is None):
        amount = "neither" if cron is None else "both"
        raise TaskDefinitionError(f"{function.__name__} has {amount} of cron= and interval=; give exactly one.")
    args, kwargs, enabled = timing.get("args", ()), timing.get("kwargs", {}), timing.get("enabled", True)
    if not isinstance(args, list | tuple):
        raise OptionError(f"args={args!r} is not a list or tuple.")
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise OptionError(f"kwargs={kwargs!r} is not a dict with names as keys.")
    if not isinstance(enabled, bool):
        raise OptionError(f"enabled={enabled!r} is neither True nor False.")
    if (most := timing.get("max_lateness")) is not None:
        number("max_lateness", most, zero=False)
    return Schedule(
        cron=None if cron is None else schedule.parse_cron(cron),
        interval=None if interval is None else schedule.parse_interval(interval),
        args=tuple(args),
        kwargs=dict(kwargs),
        enabled=enabled,
        max_lateness=most,
    )


def _check_names(declared: Task[Any, Any]) -> None:
    options, known = declared.options_declared, declared.arguments.signature.parameters
    for option, names in (("unique_key", options.unique_key), ("sensitive", options.sensitive)):
        for name in names if isinstance(names, tuple) else ():
            if name not in known:
                raise OptionError(f"{option} names {name!r}, and {declared.__name__} has no such parameter.")


def _check_schedule_arguments(declared: Task[Any, Any], planned: Schedule, resolved: bool) -> None:
    try:
        declared.arguments.signature.bind(*planned.args, **planned.kwargs)
    except TypeError as error:
        raise TaskDefinitionError(
            f"{declared.__name__}{declared.arguments.signature} cannot be called by the scheduler: {error}. "
            "Give the parameter a default, or fill it with args= or kwargs=."
        ) from None
    if resolved:
        declared.arguments.encode(planned.args, planned.kwargs, sys.maxsize)


def _same(first: Task[Any, Any], second: Task[Any, Any]) -> bool:
    """Whether two tasks of one name are one function met twice: by another import path, or by a reload."""
    if _identity(first.function) != _identity(second.function):
        return False
    # A second function of one name further down in a module runs in the same import as the first one.
    once = first.imported_by is second.imported_by and first.function.__globals__ is second.function.__globals__
    return not once or first.location == second.location


def _identity(function: Any) -> tuple[str, str]:
    return os.path.realpath(_written(function).co_filename), function.__qualname__


def _written(function: Any) -> CodeType:
    """The code that the author of a task wrote, under the decorators of others."""
    code: CodeType = inspect.unwrap(function).__code__
    return code


def _location(function: Any) -> str:
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    if code is None:
        return _caller()
    return f"{_short(code.co_filename)}:{code.co_firstlineno}"


def _caller() -> str:
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


def _short(file: str) -> str:
    """A file's path from the current directory where it is below it: what an editor's terminal can open."""
    here = os.getcwd() + os.sep
    return file.removeprefix(here)
