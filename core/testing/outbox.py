"""What a test has queued, to look at."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.tasks.definition import Task
    from core.tasks.result import TaskResult


@dataclass(frozen=True)
class CapturedCall:
    """One call that was queued."""

    #: The task, as it is declared.
    task: "Task[..., Any]"
    #: The arguments that `delay` was given, as the body gets them: from JSON, and rebuilt.
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: The options that `delay` was given: countdown, eta, expires, queue, priority.
    options: dict[str, Any]
    #: The call's id.
    id: str
    #: The queue that it went to, whoever has chosen it.
    queue: str

    def __str__(self) -> str:
        options = {"queue": self.queue, **{name: value for name, value in self.options.items() if name != "queue"}}
        return f"{_call(self.task, self.args, self.kwargs)} {_pairs(options)}"


class Outbox:
    """The calls that were queued in a test, in their order."""

    def __init__(self, run: Callable[[], Awaitable[list["TaskResult[Any]"]]]) -> None:
        self._run = run
        #: Every call, also those that have run.
        self.calls: list[CapturedCall] = []

    def assert_queued(
        self,
        task: "Task[..., Any]",
        *args: Any,
        queue: str | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
        priority: int | None = None,
        task_id: str | None = None,
        times: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Fail unless there is such a call.

        Args:
            task: The task that was called.
            args: Its arguments, all of them, by position or by name as you like; without any, every call of the task
                counts. A parameter that is called `times` is given by position.
            queue: The queue, whether `delay` or the task has named it. For this and what follows None is any.
            countdown: What `delay` was given, in seconds.
            eta: What `delay` was given.
            expires: What `delay` was given.
            priority: What `delay` was given.
            task_id: The call's id.
            times: How many such calls there are, exactly; None is at least one.

        Raises:
            AssertionError: There is none, or another number; it lists what was queued.
            ArgumentsError: The arguments do not fit the task.
        """
        __tracebackhide__ = True
        asked = {"countdown": countdown, "eta": eta, "expires": expires, "priority": priority}
        wanted = {name: value for name, value in asked.items() if value is not None}
        bound = _bound(task, *_rebuilt(task, args, kwargs)) if args or kwargs else None
        found = [
            call
            for call in self.calls
            if call.task is task
            and (queue is None or call.queue == queue)
            and (task_id is None or call.id == task_id)
            and all(call.options.get(name) == value for name, value in wanted.items())
            and (bound is None or _bound(task, call.args, call.kwargs) == bound)
        ]
        if (found and times is None) or len(found) == times:
            return
        named = {"queue": queue, "task_id": task_id}
        said = _pairs({name: value for name, value in named.items() if value is not None} | wanted)
        what = f"{_call(task, args, kwargs) if bound is not None else task.name} {said}".rstrip()
        count = "not queued" if times is None else f"queued {_times(len(found))}, not {_times(times)}"
        raise AssertionError(f"{what} was {count}. {self._told()}")

    def assert_nothing_queued(self) -> None:
        """Fail if there is any call.

        Raises:
            AssertionError: There is; it lists what was queued.
        """
        __tracebackhide__ = True
        if self.calls:
            raise AssertionError(f"Something was queued. {self._told()}")

    async def run_all(self) -> list["TaskResult[Any]"]:
        """Run the calls that have not run yet, in their order; return their handles, whose `get()` has the outcomes.

        What they queue waits for another `run_all`.
        """
        return await self._run()

    def _told(self) -> str:
        if not self.calls:
            return "Nothing was queued."
        return "\n".join(["What was queued:", *(f"  {number}. {call}" for number, call in enumerate(self.calls, 1))])


def _rebuilt(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as the body would get them."""
    from core import config

    arguments = task.arguments
    wire_args, wire_kwargs = arguments.encode(args, kwargs, config.get_settings().task_max_argument_bytes)
    rebuilt: tuple[tuple[Any, ...], dict[str, Any]] = arguments.decode(wire_args, wire_kwargs)
    return rebuilt


def _bound(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = task.arguments.signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _call(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    shown_args, shown_kwargs = task.arguments.shown(args, kwargs)
    given = [*map(repr, shown_args), *(f"{name}={value!r}" for name, value in shown_kwargs.items())]
    return f"{task.name}({', '.join(given)})"


def _pairs(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={value!r}" for name, value in options.items())


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
