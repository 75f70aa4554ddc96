"""The tree of errors: it is what its drawing says, and each error says what it has to."""

import ast
import builtins
import inspect
import pickle
import re
from pathlib import Path

import pytest

from core import errors
from core.errors import (
    AlreadyRunning,
    BrokerUnreachable,
    CoreError,
    DuplicateTask,
    OutsideTask,
    ProjectImportError,
    PublishError,
    ResultTimeout,
    SettingsNotFound,
    SyncInLoop,
    TaskError,
    TaskFailed,
    TaskRevoked,
    TasksDisabled,
    TasksNotFound,
    TaskTimeout,
    UnknownQueue,
)

CORE = Path(errors.__file__).parent
CLASSES = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
WIRE = (
    TaskTimeout("send_email", 300.0, "task_default_timeout"),
    TaskTimeout("send_email", 0.5, "the timeout of its decorator", False),
    TaskRevoked("cancelled"),
    TaskRevoked("expired"),
    TaskFailed("src.apps.emails.errors.KeywordOnly", "code 7"),
    TaskFailed("KeywordOnly", ""),
)


def drawn() -> dict[str, tuple[str, str, int | None]]:
    """Each class of the drawing: its parent, the built-in error in its note or "", and the exit code there."""
    found: dict[str, tuple[str, str, int | None]] = {}
    above = ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"(?P<indent>[│ ]*)[├└]── (?P<name>\w+)\s*(?P<said>.*)", line):
            depth = len(match["indent"]) // 4 + 1
            note = re.search(r"\((\w+Error)?(?:, )?(?:exit (\d+))?\)$", match["said"]) or ["", "", ""]
            found[match["name"]] = (above[depth - 1], note[1] or "", int(note[2]) if note[2] else None)
            above[depth:] = [match["name"]]
    return found


def test_the_drawing_names_every_error_and_no_other() -> None:
    assert set(drawn()) == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_stands_where_the_drawing_has_it(name: str) -> None:
    parent, builtin, _ = drawn()[name]

    assert [base.__name__ for base in CLASSES[name].__bases__] == [parent, *filter(None, [builtin])]
    assert not builtin or hasattr(builtins, builtin)


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_ends_a_command_with_the_code_in_the_drawing(name: str) -> None:
    own = vars(CLASSES[name]).get("exit_code")

    assert drawn()[name][2] == (None if name == "CoreError" else own)


def test_the_users_own_error_is_none_of_the_librarys() -> None:
    """`except CoreError` must not swallow "try again later"."""
    assert not issubclass(TaskError, CoreError)
    assert not issubclass(CoreError, TaskError)


@pytest.mark.parametrize("name", CLASSES)
def test_an_exit_code_is_one_that_commands_promise(name: str) -> None:
    assert getattr(CLASSES[name], "exit_code", 1) in (1, 2, 3, 69, 70, 73, 130)


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_is_explained(name: str) -> None:
    assert inspect.getdoc(CLASSES[name])
    assert CLASSES[name].__doc__ != CLASSES[name].__base__.__doc__


@pytest.mark.parametrize("error", WIRE, ids=repr)
def test_an_error_that_travels_is_the_same_after_pickling(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("error", WIRE, ids=repr)
def test_an_error_that_travels_is_built_again_from_its_args(error: Exception) -> None:
    """The result backend stores the class and the args, and builds the error from these two."""
    again = type(error)(*error.args)

    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_failure_begins_with_the_type_and_then_the_message() -> None:
    error = TaskFailed("src.apps.emails.errors.KeywordOnly", "code 7")

    assert str(error) == "KeywordOnly: code 7"
    assert (error.type_name, error.message) == ("src.apps.emails.errors.KeywordOnly", "code 7")


def test_a_failure_without_a_message_is_the_type_alone() -> None:
    assert str(TaskFailed("KeywordOnly", "")) == "KeywordOnly"


def test_a_timeout_says_how_long_and_where_the_number_came_from() -> None:
    error = TaskTimeout("send_email", 300.0, "task_default_timeout")

    assert str(error) == "send_email was stopped after 300 s (task_default_timeout)."
    assert isinstance(error, TimeoutError)
    assert (error.seconds, error.source) == (300.0, "task_default_timeout")


def test_a_timeout_says_so_when_the_body_did_not_stop() -> None:
    assert "may still be running" in str(TaskTimeout("nap", 1, "the timeout of its decorator", stopped=False))


def test_a_revoked_call_says_whether_it_was_cancelled_or_too_late() -> None:
    assert str(TaskRevoked("cancelled")) == "The call was cancelled before it finished."
    assert str(TaskRevoked("expired")) == "The call had expired before it finished."


def test_a_task_error_keeps_its_delay_and_message() -> None:
    assert TaskError("later", retry_in=5).retry_in == 5
    assert str(TaskError("later")) == "later"
    assert TaskError().retry_in is None


def test_a_publish_error_that_says_nothing_was_sent_tells_what_to_do() -> None:
    reason = str(BrokerUnreachable("h:1/0", "Connection refused"))
    error = PublishError("send_email", "id-1", reason, maybe_sent=False)

    assert str(error).startswith("send_email was not queued: No Redis answers at h:1/0: Connection refused.")
    assert "REDIS_URL" in str(error)
    assert (error.task_id, error.maybe_sent) == ("id-1", False)


def test_a_publish_error_that_does_not_know_carries_the_id() -> None:
    error = PublishError("send_email", "id-1", "no answer.", maybe_sent=True)

    assert "may have been queued as id-1" in str(error)
    assert "same task_id" in str(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SettingsNotFound(["/a/settings.py", "/b"]), ["/a/settings.py", "/b", "CORE_SETTINGS"]),
        (TasksNotFound(["/a/tasks.py"]), ["/a/tasks.py", "task_modules"]),
        (ProjectImportError("src.x", KeyError("k"), "at /a/x.py:3: boom()", "Rename it."),
         ["src.x", "KeyError: 'k'", "/a/x.py:3", "Rename it."]),
        (DuplicateTask("a.b", "f.py:1", "g.py:2"), ["'a.b'", "f.py:1", "g.py:2", "name="]),
        (UnknownQueue("emials", ["default", "emails"]), ["'emials'", "Did you mean 'emails'?", "task_queues"]),
        (TasksDisabled("f was not queued"), ["f was not queued", "task_enabled is False", "TASK_ENABLED=true"]),
        (BrokerUnreachable("h:1/0", "Connection refused"), ["h:1/0", "Connection refused", "REDIS_URL"]),
        (ResultTimeout("id-1", 0.05), ["id-1", "after 0.05 s", "again"]),
        (OutsideTask(), ["current()", "no task is running"]),
        (SyncInLoop("get_sync()", "get()"), ["get_sync()", "await get()"]),
        (AlreadyRunning("The scheduler", 12, Path("/a/x.pid")), ["The scheduler", "pid 12", "/a/x.pid", "--pidfile"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_a_message_has_the_values_and_what_to_do(error: CoreError, words: list[str]) -> None:
    for word in words:
        assert word in str(error)


def test_an_unknown_queue_with_no_near_name_guesses_nothing() -> None:
    assert "Did you mean" not in str(UnknownQueue("zzz", ["default"]))


def _raises_sections() -> list[tuple[str, str]]:
    """The place and the name of each error in a `Raises:` section; those that the same file defines left out."""
    found = []
    for file in sorted(CORE.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        own = {node.name for node in nodes if isinstance(node, ast.ClassDef)} if file.name != "errors.py" else set()
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                section = re.search(r"^Raises:\n((?:[ ]{4,}.*\n?|\n)+)", ast.get_docstring(node) or "", re.MULTILINE)
                if section:
                    place = f"{file.relative_to(CORE)}:{getattr(node, 'name', '')}"
                    lines = [line for line in section[1].splitlines() if re.match(r" {4}\S", line)]
                    for line in lines:
                        names = line.partition(":")[0].split(",") if ":" in line.partition(". ")[0] else []
                        found += [(place, name.strip()) for name in names if name.strip() not in own]
    return found


def test_every_error_that_a_docstring_names_exists() -> None:
    """A `Raises:` section that names an error which is gone misleads its reader."""
    named = _raises_sections()

    assert len(named) > 50
    assert [(place, name) for place, name in named if name not in CLASSES and not hasattr(builtins, name)] == []
