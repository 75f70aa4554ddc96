"""The public names: exactly these, sorted, each with a docstring."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import core
import core.config
import core.errors
import core.tasks

NAMES = [
    "AlreadyRunning",
    "ArgumentsError",
    "BrokerUnreachable",
    "ConfigurationError",
    "CoreError",
    "CurrentTask",
    "DuplicateTask",
    "EmbeddedServerError",
    "NotRunning",
    "OptionError",
    "OutsideTask",
    "PeriodicTask",
    "Progress",
    "ProjectImportError",
    "PublishError",
    "PublishManyError",
    "ResultTimeout",
    "ResultUnavailable",
    "SettingsNotFound",
    "SyncInLoop",
    "Task",
    "TaskDefinitionError",
    "TaskError",
    "TaskFailed",
    "TaskResult",
    "TaskRevoked",
    "TaskStatus",
    "TaskTimeout",
    "TasksDisabled",
    "TasksNotFound",
    "UnknownQueue",
    "current",
    "lifespan",
    "periodic_task",
    "task",
    "worker_lifespan",
]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(core.__path__, "core.") if module.name != "core.celery"
)  # importing core.celery makes the application


def test_the_public_names_are_exactly_these_and_sorted() -> None:
    assert core.tasks.__all__ == NAMES
    assert sorted(NAMES) == NAMES


def test_every_error_that_a_user_may_meet_is_public() -> None:
    errors = {
        name for name, kind in vars(core.errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
    }

    assert errors <= set(NAMES)


def test_a_star_import_brings_the_public_names_and_no_other() -> None:
    scope: dict[str, Any] = {}
    exec("from core.tasks import *", scope)

    assert set(scope) - {"__builtins__"} == set(NAMES)


def test_no_module_hides_behind_an_exported_name() -> None:
    """A `core/tasks/task.py` would replace the decorator as soon as it is imported, `app` is what `celery -A` takes."""
    modules = {name.rpartition(".")[2] for name in MODULES if name.startswith("core.tasks.")}

    assert modules & {*NAMES, "app", "celery"} == set()


def test_the_page_needs_nothing_but_these_imports() -> None:
    from core.config import Settings, configure, get_settings
    from core.tasks import TaskError, periodic_task, task

    assert all((Settings, configure, get_settings, TaskError, periodic_task, task))


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """The public functions and classes that a module defines, and the public methods of these."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for inner, method in vars(value).items():
                function = method.__func__ if isinstance(method, classmethod | staticmethod) else method
                function = function.fget if isinstance(function, property) else function
                if not inner.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{inner}", function


def inherited(module: Any, name: str) -> bool:
    """Whether a method carries out what a base class, which explains it, defines."""
    kind, _, method = name.partition(".")
    return bool(method) and any(hasattr(base, method) for base in getattr(module, kind).__mro__[1:])


@pytest.mark.parametrize("module_name", ["core", *MODULES])
def test_every_module_and_every_public_function_and_class_is_explained(module_name: str) -> None:
    module = importlib.import_module(module_name)
    unexplained = [
        name
        for name, value in public(module)
        if not (value.__doc__ or "").strip() and not inherited(module, name) and not is_protocol(module, name)
    ]

    assert (module.__doc__ or "").strip()
    assert unexplained == []


def is_protocol(module: Any, name: str) -> bool:
    """A protocol's one-line properties say what they are by their names."""
    return "." in name and bool(getattr(getattr(module, name.partition(".")[0]), "_is_protocol", False))


def test_every_public_name_is_explained() -> None:
    assert [name for name in NAMES if not (getattr(core.tasks, name).__doc__ or "").strip()] == []


@pytest.mark.parametrize("decorator", [core.tasks.task, core.tasks.periodic_task], ids=["task", "periodic_task"])
def test_every_option_of_a_decorator_is_explained(decorator: Any) -> None:
    from core.tasks.decorators import NOT_PERIODIC, PERIODIC_OPTIONS, TASK_OPTIONS

    options = set(TASK_OPTIONS)
    if decorator is core.tasks.periodic_task:
        options = (options | set(PERIODIC_OPTIONS)) - set(NOT_PERIODIC)
    section = inspect.getdoc(decorator).partition("Args:")[2].partition("Raises:")[0]  # type: ignore[union-attr]
    explained = {
        name.strip() for line in re.findall(r"^    ([\w, ]+):", section, re.MULTILINE) for name in line.split(",")
    }

    assert explained == options


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert core.__version__ == version("core-tasks")
