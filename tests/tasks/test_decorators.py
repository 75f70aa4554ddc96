"""`@task` and `@periodic_task`: every mistake is raised while the module is imported, with its place and its value."""

import functools
import inspect
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support import Project

from core.errors import CoreError, DuplicateTask, OptionError, TaskDefinitionError
from core.tasks import PeriodicTask, Task, celery_app, periodic_task, task
from core.tasks.options import CALL_OPTIONS

HERE = Path(__file__)
NAN, INFINITE = float("nan"), float("inf")


def refused(kind: type[CoreError], declare: Callable[[], object]) -> str:
    """What *declare* is refused with: an error of this kind that begins with a place in this file."""
    with pytest.raises(kind) as caught:
        declare()
    message = str(caught.value)
    place = message.partition(": ")[0]
    file, _, line = place.rpartition(":")
    assert Path(file) == HERE
    lines, first = inspect.getsourcelines(declare)
    assert first <= int(line) < first + len(lines), "the line is that of the function"
    assert isinstance(caught.value, TypeError | ValueError)
    return message.removeprefix(place + ": ")


def with_options(decorator: Any = task, **options: Any) -> Callable[[], object]:
    """A declaration with these options; its function is on the lines of the caller's helper."""

    def declare() -> object:
        @decorator(**options)
        async def send() -> None: ...

        return send

    return declare


# Options


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [("qeue", "queue"), ("maxretries", "max_retries"), ("time_out", "timeout"), ("retry_dealy", "retry_delay")],
)
def test_a_mistyped_option_is_refused_with_the_one_that_was_meant(mistyped: str, meant: str) -> None:
    said = refused(TaskDefinitionError, with_options(**{mistyped: 1}))

    assert said.startswith(f"@task has no option {mistyped!r}; did you mean {meant!r}? It takes name, queue,")


def test_an_option_that_is_like_none_is_refused_with_a_list_of_those_there_are() -> None:
    assert refused(TaskDefinitionError, with_options(zzz=1)).startswith("@task has no option 'zzz'. It takes name,")
    said = refused(TaskDefinitionError, with_options(periodic_task, interval=1, priority=1))
    assert said.startswith("@periodic_task has no option 'priority'. It takes ")
    assert "interval" in said


@pytest.mark.parametrize("option", ["max_retries", "retry_delay", "timeout", "priority"])
@pytest.mark.parametrize("value", [-1, -0.5, NAN, INFINITE, -INFINITE, True, False, "3", [1], 10**400, 1e300])
def test_a_number_that_means_nothing_is_refused_with_its_value(option: str, value: Any) -> None:
    assert refused(OptionError, with_options(**{option: value})).startswith(f"{option}={value!r} is not ")


@pytest.mark.parametrize("value", [0, 0.0, timedelta(seconds=1), None])
def test_a_timeout_of_nothing_is_refused_and_none_is_no_limit(value: Any) -> None:
    if value is None:
        assert with_options(timeout=None)().limit() is None  # type: ignore[attr-defined]
    else:
        assert refused(OptionError, with_options(timeout=value)).startswith(f"timeout={value!r} is not ")


@pytest.mark.parametrize(("option", "value"), [("max_retries", 1.5), ("priority", 10), ("priority", 2.0)])
def test_a_number_of_the_wrong_kind_is_refused(option: str, value: Any) -> None:
    assert f"{option}={value!r} is not" in refused(OptionError, with_options(**{option: value}))


@pytest.mark.parametrize(
    "options",
    [{"max_retries": 0}, {"retry_delay": 0}, {"retry_delay": 0.0}, {"priority": 0}, {"priority": 9}, {"timeout": 0.01},
     {"max_retries": None, "retry_delay": None, "queue": None, "priority": None, "name": None}, {"timeout": ...}],
)  # fmt: skip
def test_a_zero_that_means_something_and_an_option_left_to_the_settings_are_taken(options: dict[str, Any]) -> None:
    declared: Any = with_options(**options)()

    assert {name: getattr(declared.options_declared, name) for name in options} == options


@pytest.mark.parametrize("option", ["queue", "name"])
@pytest.mark.parametrize("value", ["", " ", " emails", "emails\n", 3, True, b"emails", ["emails"]])
def test_a_name_that_is_none_is_refused_with_its_value(option: str, value: Any) -> None:
    assert refused(OptionError, with_options(**{option: value})).startswith(f"{option}={value!r} is not a name")


@pytest.mark.parametrize("option", ["retry_backoff", "ignore_result"])
@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_a_switch_that_is_neither_on_nor_off_is_refused(option: str, value: Any) -> None:
    assert refused(OptionError, with_options(**{option: value})) == f"{option}={value!r} is neither True nor False."


@pytest.mark.parametrize(
    "value", [int, "ValueError", (ValueError, 3), BaseException, KeyboardInterrupt, ValueError(), None]
)
def test_what_is_no_exception_class_cannot_be_retried_on(value: Any) -> None:
    assert "is not a tuple of exception classes" in refused(OptionError, with_options(retry_on=value))


@pytest.mark.parametrize("value", [ValueError, (ValueError,), [ValueError]])
def test_one_exception_class_or_several_may_be_retried_on(value: Any) -> None:
    declared: Any = with_options(retry_on=value)()

    assert declared.options_declared.retry_on == (ValueError,)


def test_options_are_given_by_name() -> None:
    assert "by name" in refused(TaskDefinitionError, lambda: task("emails"))  # type: ignore[call-overload]
    assert "by name" in refused(TaskDefinitionError, lambda: task(3))  # type: ignore[call-overload]
    assert "by name" in refused(TaskDefinitionError, lambda: task(len, 3))  # type: ignore[call-overload]
    assert "by name" in refused(TaskDefinitionError, lambda: periodic_task("0 * * * *"))  # type: ignore[call-overload]
    assert "interval=" in refused(TaskDefinitionError, lambda: periodic_task(60))  # type: ignore[call-overload]


# Functions


def test_a_parameter_with_the_name_of_a_call_option_points_to_options() -> None:
    for name in CALL_OPTIONS:
        for signature in (name, f"*, {name}=None", f"*{name}", f"**{name}"):
            scope: dict[str, Any] = {"__name__": __name__}
            exec(f"async def send({signature}): ...", scope)
            with pytest.raises(TaskDefinitionError, match=rf"parameter '{name}'.*\.options\({name}=\.\.\.\)\.delay"):
                task(scope["send"])


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


class Holder:
    async def method(self) -> None: ...

    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (Holder, "Holder is a class"),
        (Holder.method, "Holder.method is a method"),
        (Holder().method, "not on a method"),
        (Holder(), "not on a Holder"),
        (generator, "is a generator: a task returns one value"),
        (async_generator, "is a generator: a task returns one value"),
        (lambda: None, "A lambda has no name"),
        (staticmethod(generator), "not on a staticmethod"),
        (functools.partial(print), "not on a partial"),
        (functools.lru_cache(generator), "not on a _lru_cache_wrapper"),
        (print, "not on a builtin_function_or_method"),
    ],
)
def test_what_a_worker_could_not_call_is_no_task(function: Any, said: str) -> None:
    for decorate in (task, task(), periodic_task(interval=1)):
        with pytest.raises(TaskDefinitionError) as caught:
            decorate(function)
        assert said in str(caught.value)
        assert f"{HERE}:" in str(caught.value)


def test_one_decorator_is_enough() -> None:
    def twice() -> None:
        @task
        @task
        async def send() -> None: ...

    assert "is a task already" in refused(TaskDefinitionError, twice)


def test_a_type_that_cannot_travel_is_refused_where_it_is_declared() -> None:
    def declare() -> None:
        @task
        async def send(value: Holder) -> None: ...

    assert "cannot travel as JSON" in refused(TaskDefinitionError, declare)


def test_a_task_keeps_its_functions_name_and_docstring() -> None:
    @task(queue="emails")
    async def send(to: str) -> None:
        """Send it."""

    assert (send.__name__, send.__doc__, send.__wrapped__) == ("send", "Send it.", send.function)  # type: ignore[attr-defined]
    assert list(inspect.signature(send).parameters) == ["to"]
    assert send.location in repr(send)
    assert send.location.startswith(f"{HERE}:")


# Names


def test_two_functions_of_one_name_are_refused_with_both_places() -> None:
    @task(name="emails.send")
    async def send() -> None: ...

    def again() -> None:
        @task(name="emails.send")
        async def other() -> None: ...

    with pytest.raises(DuplicateTask) as caught:
        again()

    assert isinstance(caught.value, ValueError)
    assert "'emails.send' is taken" in str(caught.value)
    assert str(caught.value).count(f"{HERE}:") == 2
    assert celery_app.find("emails.send") is send


def test_two_functions_of_one_name_in_one_module_are_refused() -> None:
    """A copy that was not renamed: the first would be gone in silence."""

    def declare() -> None:
        @task
        async def report() -> int:
            return 1

        @task
        async def report() -> int:  # noqa: F811
            return 2

    with pytest.raises(DuplicateTask):
        declare()


def test_the_same_function_met_again_replaces_the_first() -> None:
    """As a reload does, or a second import path."""

    def declare(queue: str) -> Task[[], None]:
        @task(queue=queue)
        async def send() -> None: ...

        return send

    first, second = declare("a"), declare("b")

    assert first.name == second.name
    assert celery_app.find(first.name) is second


MODULES = """
import functools

def traced(function):
    @functools.wraps(function)
    async def wrapper(*args, **kwargs):
        return await function(*args, **kwargs)
    return wrapper
"""
SETTINGS = "from core.config import Settings\nclass AppSettings(Settings): ...\n"


def test_a_decorated_function_is_named_after_its_own_module_not_the_decorators(empty: Project) -> None:
    """Two functions of one name under one decorator are two tasks, not one that replaces the other in silence."""
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/tracing.py", MODULES)
    for app in ("a", "b"):
        text = "from core.tasks import task\nfrom src.tracing import traced\n@task\n@traced\nasync def send(): ...\n"
        empty.write(f"src/apps/{app}/tasks.py", text)
    code = """
from core.tasks import celery_app
celery_app.import_tasks()
print(*((task.name, task.location) for task in celery_app.declared()), sep="\\n")
"""

    assert empty.python(code).stdout.splitlines() == [
        "('src.apps.a.tasks.send', 'src/apps/a/tasks.py:3')",
        "('src.apps.b.tasks.send', 'src/apps/b/tasks.py:3')",
    ]


def test_declaring_reads_no_settings_and_makes_no_celery_application(empty: Project) -> None:
    """A web process imports its task modules before anything is configured, and cheaply."""
    empty.write("tasks.py", "from core.tasks import task, periodic_task\n@task\nasync def send(to: str): ...\n"
                            "@periodic_task(cron='@daily')\ndef clean(): ...\n")  # fmt: skip
    code = """
import sys, tasks
from core import config
from core.tasks import celery_app
print(config._current.settings, celery_app._process.app, [m for m in ("celery", "kombu", "redis") if m in sys.modules])
"""
    done = empty.python(code, REDIS_URL="nonsense", TASK_PUBLISH_TIMEOUT="nonsense")

    assert done.stdout.strip() == "None None []", done.stderr


def test_a_mistake_is_reported_on_the_users_line_when_a_command_imports_it(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/apps/x/tasks.py", "from core.tasks import task\n\n@task(qeue='x')\nasync def send(): ...\n")

    done = empty.run("core", "scheduler", "list")

    assert done.returncode == 2
    assert "src/apps/x/tasks.py:3: @task has no option 'qeue'; did you mean 'queue'?" in done.stderr
    assert "Traceback" not in done.stderr


# Periodic tasks


def periodic(**options: Any) -> Callable[[], object]:
    def declare() -> object:
        @periodic_task(**options)
        async def clean(days: int = 30, *, hard: bool = False) -> None: ...

        return clean

    return declare


@pytest.mark.parametrize(
    ("options", "amount"),
    [({}, "neither"), ({"cron": None}, "neither"), ({"cron": "@daily", "interval": 60}, "both"),
     ({"cron": "", "interval": 0}, "both")],
)  # fmt: skip
def test_a_periodic_task_has_a_cron_or_an_interval_and_not_both(options: dict[str, Any], amount: str) -> None:
    said = refused(TaskDefinitionError, periodic(**options))

    assert said == f"clean has {amount} of cron= and interval=; give exactly one."


def test_a_periodic_task_without_any_option_is_refused() -> None:
    def declare() -> None:
        @periodic_task  # type: ignore[call-overload]
        async def clean() -> None: ...

    assert "neither of cron= and interval=" in refused(TaskDefinitionError, declare)


@pytest.mark.parametrize("interval", [0, -1, NAN, INFINITE, True, "60", timedelta(0)])
def test_an_interval_that_means_nothing_is_refused_where_it_is_declared(interval: Any) -> None:
    assert refused(OptionError, periodic(interval=interval)).startswith(f"interval={interval!r} is not ")


@pytest.mark.parametrize("cron", ["0 0 31 2 *", "0 0 1 * mon", "*/61 * * * *", "30-10 * * * *", "@noon", "* * *", 5])
def test_an_impossible_cron_is_refused_where_it_is_declared(cron: Any) -> None:
    assert refused(OptionError, periodic(cron=cron)).startswith(f"cron={cron!r}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"args": "ab"}, "args='ab' is not a list or tuple"),
        ({"args": 3}, "args=3 is not"),
        ({"kwargs": [1]}, "kwargs=[1] is not a dict"),
        ({"kwargs": {1: 2}}, "kwargs={1: 2} is not a dict with names as keys"),
        ({"enabled": 1}, "enabled=1 is neither True nor False"),
    ],
)
def test_a_schedule_option_of_the_wrong_kind_is_refused(options: dict[str, Any], said: str) -> None:
    assert said in refused(OptionError, periodic(interval=1, **options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"args": (1, 2)}, "too many positional arguments"),
        ({"kwargs": {"weeks": 1}}, "unexpected keyword argument 'weeks'"),
        ({"args": ("many",)}, "days: Input should be a valid integer"),
        ({"kwargs": {"hard": "perhaps"}}, "hard: Input should be a valid boolean"),
        ({"args": (object(),)}, "days"),
    ],
)
def test_arguments_that_the_scheduler_could_not_send_are_refused(options: dict[str, Any], said: str) -> None:
    """Else they would end the scheduler, at night."""
    assert said in refused(TaskDefinitionError, periodic(interval=1, **options))


@pytest.mark.parametrize("signature", ["days", "days, /", "*, days", "days: int, more=1"])
def test_a_required_parameter_that_nobody_fills_is_refused_with_advice(signature: str) -> None:
    scope: dict[str, Any] = {"__name__": __name__}
    exec(f"async def clean({signature}): ...", scope)

    with pytest.raises(TaskDefinitionError, match=r"cannot be called by the scheduler: .*'days'.* fill it with args="):
        periodic_task(cron="@daily")(scope["clean"])
    options: dict[str, Any] = {"kwargs": {"days": 3}} if "/" not in signature else {"args": [3]}
    assert isinstance(periodic_task(cron="@daily", **options)(scope["clean"]), PeriodicTask)


def test_a_periodic_task_knows_its_schedule_and_is_a_task() -> None:
    @periodic_task(cron=" @daily ", args=[1], kwargs={"b": 2}, enabled=False, queue="low", timeout=5, max_retries=0)
    async def clean(a: int, b: int) -> int:
        return a + b

    assert isinstance(clean, Task)
    assert (clean.schedule.cron, clean.schedule.interval, clean.schedule.enabled) == ("0 0 * * *", None, False)
    assert (clean.schedule.args, clean.schedule.kwargs) == ((1,), {"b": 2})
    assert (clean.queue, clean.options_declared.timeout, clean.options_declared.max_retries) == ("low", 5, 0)
    assert str(clean.schedule) == "cron 0 0 * * *"


async def test_a_periodic_task_can_be_called_like_a_function() -> None:
    @periodic_task(interval=timedelta(minutes=5))
    async def clean(days: int = 30) -> int:
        return days

    assert await clean() == 30
    assert await clean(days=1) == 1
    assert str(clean.schedule) == "every 300 s"
