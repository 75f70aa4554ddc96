"""The declared tasks, as people name, read and call them."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from core import config
from core.errors import OptionError, ResultUnavailable
from core.tasks import celery_app
from core.tasks.definition import PeriodicTask, SyncPeriodicTask, SyncTask, Task
from core.tasks.options import CallOptions
from core.tasks.result import TaskResult
from core.tasks.retry import is_from_call


@dataclass(frozen=True)
class Entry:
    """A task in one line."""

    name: str
    queue: str
    #: Retries after the first attempt.
    max_retries: int
    #: Seconds that one attempt may take; None is no limit.
    timeout: float | None
    #: When the scheduler calls it; None where nobody does by himself.
    schedule: str | None
    #: Where it is declared, as `file:line`, from the project's root where it is below that.
    location: str


def entries() -> list[Entry]:
    """The tasks of the project, by name.

    Raises:
        ProjectImportError: A module failed.
    """
    return [_entry(task) for task in _tasks()]


def details(name: str) -> dict[str, Any]:
    """What there is to say of a task.

    Args:
        name: Its whole name, or the last word of it where only one task has that.

    Raises:
        OptionError: No task has this name, or several have.
    """
    task = find(name)
    policy, options = task.policy(), task.options_declared
    return {
        **vars(_entry(task)),
        "signature": f"{task.__name__}{inspect.signature(task.function)}",
        "doc": inspect.getdoc(task.function),
        "kind": "plain function" if isinstance(task, SyncTask | SyncPeriodicTask) else "coroutine",
        "retry_delay": policy.delay,
        "retry_backoff": policy.backoff,
        "retry_on": [kind.__name__ for kind in policy.retry_on],
        "priority": options.priority,
        "ignore_result": options.ignore_result,
        "unique": options.unique,
        "sensitive": list(options.sensitive),
    }


def find(name: str) -> Task[Any, Any]:
    """The task of which the whole name or its last word is given.

    Raises:
        OptionError: No task has this name, or several have.
    """
    tasks = {task.name: task for task in _tasks()}
    return tasks[whole_name(name, list(tasks), "The project has no task", "core tasks list")]


def call(
    name: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    countdown: float | None = None,
    queue: str | None = None,
    wait: bool = False,
) -> str:
    """Queue a call of a task, and return its id.

    Args:
        name: As for `find`.
        args: Its arguments as JSON's own values, as they are in a message.
        kwargs: Its arguments by name, likewise.
        countdown: Seconds to wait before it may run.
        queue: Another queue than the task's own.
        wait: Whether its result is wanted.

    Raises:
        OptionError: No task has this name, or several have; or an option means nothing.
        ArgumentsError: The arguments do not fit the task.
        ResultUnavailable: Its result is wanted, and the task keeps none. Nothing was sent.
        UnknownQueue: No worker would serve the queue.
        PublishError: No broker took the call.
    """
    task = find(name)
    if wait and task.options_declared.ignore_result:
        raise ResultUnavailable(f"{task.name} is declared with ignore_result=True, so nothing is kept of its calls.")
    options: CallOptions = {}
    if countdown is not None:
        options["countdown"] = countdown
    if queue is not None:
        options["queue"] = queue
    # `unique_key` is a function of what the body gets.
    given, named = task.arguments.decode(args, kwargs or {})
    return task.options(**options).delay_sync(*given, **named).id


def outcome(task_id: str, timeout: float | None) -> tuple[Any, Exception | None]:
    """Wait for a call, and return its result as JSON's own values, or the error with which it failed.

    Args:
        timeout: Seconds to wait; None is for ever.

    Raises:
        ResultTimeout: It has not finished by then.
        BrokerUnreachable: Redis does not answer.
    """
    try:
        return TaskResult.from_id(task_id).get_sync(timeout), None
    except Exception as error:
        if not is_from_call(error):
            raise
        return None, error


def whole_name(name: str, known: Sequence[str], missing: str, listed_by: str) -> str:
    """The one of the known names that is meant by itself, or by its last word.

    Args:
        missing: How the message begins when there is none.
        listed_by: The command that lists them.

    Raises:
        OptionError: None is meant, or several are.
    """
    if name in known:
        return name
    ends = [whole for whole in known if whole.rpartition(".")[2] == name]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise OptionError(f"{name!r} is the last word of {len(ends)} names: {', '.join(sorted(ends))}. Give one whole.")
    near = get_close_matches(name, [*known, *(whole.rpartition(".")[2] for whole in known)], n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise OptionError(f"{missing} {name!r}.{guess} `{listed_by}` names all.")


def _tasks() -> list[Task[Any, Any]]:
    celery_app.import_tasks()
    return [task for task in celery_app.declared() if isinstance(task, Task)]


def _entry(task: Task[Any, Any]) -> Entry:
    limit = task.limit()
    return Entry(
        name=task.name,
        queue=task.queue or config.get_settings().task_default_queue,
        max_retries=task.policy().max_retries,
        timeout=limit.seconds if limit else None,
        schedule=str(task.schedule) if isinstance(task, PeriodicTask) else None,
        location=task.location.removeprefix(f"{config.get_project().root}/"),
    )
