"""Every error of the library, each with the sentence it tells.

Exception
├── TaskError                     yours to raise in a task: "try again later"
└── CoreError                     whatever this library itself has to say
    ├── ConfigurationError        the project cannot run as it is            (exit 2)
    │   ├── SettingsNotFound
    │   ├── TasksNotFound
    │   ├── ProjectImportError
    │   └── EmbeddedServerError
    ├── TaskDefinitionError       a task was declared wrongly                (TypeError, exit 2)
    ├── OptionError               an option has a bad value                  (ValueError, exit 2)
    │   └── DuplicateTask         two functions share a task name
    ├── ArgumentsError            a call's arguments do not fit its task     (TypeError)
    ├── UnknownQueue              no task and no setting names this queue    (LookupError, exit 2)
    ├── TasksDisabled             task_enabled is False                      (exit 2)
    ├── PublishError              a call was not queued, or perhaps was
    ├── PublishManyError          the same of many calls
    ├── BrokerUnreachable         Redis does not answer                      (ConnectionError, exit 69)
    ├── ResultUnavailable         this call's result is not kept, or cannot be read
    ├── ResultTimeout             get() stopped waiting                      (TimeoutError)
    ├── TaskFailed                the task failed with an error that cannot be rebuilt here
    │   ├── TaskTimeout           the body took longer than its timeout      (TimeoutError)
    │   └── TaskRevoked           the call was cancelled, or expired
    ├── OutsideTask               current() without a running task           (RuntimeError)
    ├── SyncInLoop                a blocking call under a running event loop (RuntimeError)
    ├── NotRunning                there is nothing to stop                   (exit 3)
    └── AlreadyRunning            it runs already                            (exit 73)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class TaskError(Exception):
    """Raise it, or a subclass, in a task to say "try again later".

    Args:
        message: What went wrong, for the log and for whoever awaits the result.
        retry_in: Seconds until the next attempt; None takes the task's own `retry_delay`.

    Raises:
        OptionError: *retry_in* is no number of seconds from 0 on.
    """

    def __init__(self, message: str = "", *, retry_in: float | None = None) -> None:
        numeric = isinstance(retry_in, int | float) and not isinstance(retry_in, bool)
        if retry_in is not None and not (numeric and 0 <= retry_in <= 1e10):
            raise OptionError(f"retry_in={retry_in!r} is not a number of seconds from 0 on.")
        super().__init__(message)
        self.retry_in = retry_in


class CoreError(Exception):
    """The base of everything this library raises."""

    #: What a `core` command exits with when this error ends it.
    exit_code = 1


class ConfigurationError(CoreError):
    """The project's settings, modules or server cannot be used as they are."""

    exit_code = 2


class SettingsNotFound(ConfigurationError):
    """No settings module was found in any of the places where one may be."""

    def __init__(self, tried: Sequence[str]) -> None:
        places = "".join(f"\n  looked for {place}" for place in tried)
        super().__init__(
            f"No settings found.{places}\n"
            "Create src/settings.py with `class AppSettings(Settings)`, set CORE_SETTINGS, "
            "or run the command inside your project."
        )


class TasksNotFound(ConfigurationError):
    """The project declares no task in any of the places where tasks may be."""

    def __init__(self, tried: Sequence[str]) -> None:
        places = "".join(f"\n  looked for {place}" for place in tried)
        super().__init__(
            f"No tasks found, so there is nothing to run.{places}\n"
            "Put a function with @task into one of these, or name its module in `task_modules`."
        )


class ProjectImportError(ConfigurationError):
    """A module of the project failed while it was imported."""

    def __init__(self, module: str, error: BaseException, frame: str, hint: str = "") -> None:
        where = f"\n  {frame}" if frame else ""
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        super().__init__(f"{module} could not be imported: {what}{where}" + (f"\n{hint}" if hint else ""))
        self.module = module


class EmbeddedServerError(ConfigurationError):
    """The development server cannot be started here."""


class TaskDefinitionError(CoreError, TypeError):
    """A task was declared wrongly: an unknown, missing or clashing option, or the wrong kind of function."""

    exit_code = 2


class OptionError(CoreError, ValueError):
    """An option of a task or of a call has a value that means nothing."""

    exit_code = 2


class DuplicateTask(OptionError):
    """Two different functions claim one task name."""

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(
            f"The task name {name!r} is taken: {first} has it, and {second} asks for it again. "
            "Rename one of the functions, or give it a name of its own with name=."
        )


class ArgumentsError(CoreError, TypeError):
    """The arguments of a call, or what a task returned, do not fit its signature or JSON."""


class UnknownQueue(CoreError, LookupError):
    """No worker would ever serve this queue."""

    exit_code = 2

    def __init__(self, queue: str, known: Sequence[str]) -> None:
        from difflib import get_close_matches

        near = get_close_matches(queue, known, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(
            f"No task and no setting names the queue {queue!r}, so no worker would serve it.{guess} "
            f"Known queues: {', '.join(known)}. Add it to `task_queues` to use it."
        )


class TasksDisabled(CoreError):
    """`task_enabled` is False, so nothing is queued and nothing runs."""

    exit_code = 2

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: task_enabled is False. Set TASK_ENABLED=true to use tasks here.")


class PublishError(CoreError):
    """A call was not queued, or the answer that says so is missing."""

    #: The call's id. Pass it again as `task_id=` to repeat a call that may have been sent.
    task_id: str
    #: True when the call may have reached the queue all the same.
    maybe_sent: bool

    def __init__(self, task: str, task_id: str, reason: str, *, maybe_sent: bool) -> None:
        outcome = (
            f"{task} may have been queued as {task_id}: {reason} "
            "Repeat it with the same task_id, or look at its status before you do."
            if maybe_sent
            else f"{task} was not queued: {reason}"
        )
        super().__init__(outcome)
        self.task_id = task_id
        self.maybe_sent = maybe_sent


class PublishManyError(CoreError):
    """Calls of one `delay_many` were not queued, or the answer that says so is missing.

    Each list holds results in the order of the calls; `__cause__` is the first call's own error.
    """

    def __init__(
        self, task: str, reason: str, sent: Sequence[Any], maybe_sent: Sequence[Any], not_sent: Sequence[Any]
    ) -> None:
        super().__init__(
            f"Of {len(sent) + len(maybe_sent) + len(not_sent):,} calls of {task} {len(sent):,} were queued, "
            f"{len(maybe_sent):,} may have been and {len(not_sent):,} were not: {reason}"
        )
        #: The calls that were queued.
        self.sent = sent
        #: Those that may have been.
        self.maybe_sent = maybe_sent
        #: Those that were not.
        self.not_sent = not_sent


class BrokerUnreachable(CoreError, ConnectionError):
    """Redis did not answer where the settings say it is, or refused what it was asked."""

    exit_code = 69

    def __init__(self, where: str, reason: str, *, answered: bool = False, setting: str = "REDIS_URL") -> None:
        what = f"No Redis answers at {where}" if setting == "REDIS_URL" else f"{where} does not answer"
        # ConnectionError is an OSError, which would read two arguments as an errno.
        super().__init__(
            f"Redis at {where} refuses: {reason}."
            if answered
            else f"{what}: {reason}. Start it, or set {setting} to one that is running."
        )


class ResultUnavailable(CoreError):
    """There is no result to read: the task ignores it, or it cannot be decoded."""


class ResultTimeout(CoreError, TimeoutError):
    """`get(timeout=)` stopped waiting. The task may still finish."""

    def __init__(self, task_id: str, seconds: float) -> None:
        super().__init__(f"No result of {task_id} after {seconds:g} s. The call goes on; get() can be called again.")


class TaskFailed(CoreError):
    """The task failed with an error whose class cannot be imported or built again here.

    It carries the name of the class, the message and, as a note, the worker's traceback.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        #: The class of the error that the task raised, as `package.module.Class` or `Class`.
        self.type_name = type_name
        #: What that error said.
        self.message = message

    def __str__(self) -> str:
        return f"{self.type_name.rpartition('.')[2]}: {self.message}".rstrip(": ")


class TaskTimeout(TaskFailed, TimeoutError):
    """The task's body ran longer than its `timeout`. It is not retried unless `retry_on` names it."""

    def __init__(self, task: str, seconds: float, source: str, stopped: bool = True) -> None:
        ending = "" if stopped else " Its body did not stop when it was cancelled and may still be running."
        super().__init__("TaskTimeout", f"{task} was stopped after {seconds:g} s ({source}).{ending}")
        # What the error is built from again in the caller's process. TimeoutError is an OSError
        # and would keep its own choice of arguments.
        self.args = (task, seconds, source, stopped)
        self.seconds = seconds
        self.source = source

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type["TaskTimeout"], tuple[object, ...]]:
        return type(self), self.args


class TaskRevoked(TaskFailed):
    """The call was cancelled or had expired before it finished."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "TaskRevoked", f"The call {'had expired' if reason == 'expired' else f'was {reason}'} before it finished."
        )
        self.args = (reason,)

    def __str__(self) -> str:
        return self.message


class OutsideTask(CoreError, RuntimeError):
    """`current()` was asked for where no task runs."""

    def __init__(self) -> None:
        super().__init__("current() has no meaning here: no task is running. Call it inside a task's body.")


class SyncInLoop(CoreError, RuntimeError):
    """A blocking call was made in a thread whose event loop is running, and would stop that loop."""

    def __init__(self, blocking: str, instead: str) -> None:
        super().__init__(f"{blocking} would block the running event loop. Use `await {instead}` here.")


class NotRunning(CoreError):
    """There is nothing to stop, or to ask."""

    exit_code = 3


class AlreadyRunning(CoreError):
    """Another one runs already."""

    exit_code = 73

    def __init__(self, what: str, pid: int | None, pidfile: Path) -> None:
        who = f"pid {pid}" if pid else "another process"
        super().__init__(f"{what} is already running here ({who}, {pidfile}). Stop it, or set another --pidfile.")
