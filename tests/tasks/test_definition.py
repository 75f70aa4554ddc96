"""A declared task: the ways to call it, and what each refuses before anything is sent."""

import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from core.config import Settings, configure
from core.errors import ArgumentsError, OptionError, SyncInLoop, TasksDisabled
from core.tasks import TaskResult, task
from core.tasks.definition import Task
from core.tasks.options import CALL_OPTIONS, TaskOptions

NAN, INFINITE = float("nan"), float("inf")
NOW = datetime.now(UTC)


class Unreachable(Settings):
    """Settings of a project whose Redis is nowhere: what gets as far as sending would fail."""

    redis_url: SecretStr | None = SecretStr("unix:///nowhere/redis.sock")
    task_max_argument_bytes: int = 2_000
    task_default_timeout: float | None = 120
    task_default_max_retries: int = 5
    task_default_retry_delay: float = 7


class Disabled(Unreachable):
    task_enabled: bool = False


def send_email() -> Task[[str], int]:
    @task
    async def send_email(to: str) -> int:
        return len(to)

    return send_email


def send_sync() -> Any:
    @task
    def send_sync(to: str) -> int:
        return len(to)

    return send_sync


# Inline calls


async def test_an_inline_call_runs_the_function_here_without_any_settings() -> None:
    assert await send_email()("a@b") == 3
    assert await send_email()(to="a@b") == 3
    assert send_sync()("a@b") == 3


async def test_an_inline_call_raises_what_the_function_raises_and_is_not_retried() -> None:
    calls = []

    @task(max_retries=3)
    async def fails() -> None:
        calls.append(1)
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await fails()
    assert calls == [1]


# What tools see


def test_delay_is_a_coroutine_function_to_every_tool() -> None:
    for function in (send_email().delay, send_sync().delay, send_email().options(countdown=1).delay):
        assert inspect.iscoroutinefunction(function)
    assert inspect.iscoroutinefunction(send_email().__call__)
    assert not inspect.iscoroutinefunction(send_sync().__call__)


def test_a_forgotten_await_gives_pythons_own_warning() -> None:
    declared = send_email()

    with pytest.warns(RuntimeWarning, match=r"delay' was never awaited"):
        declared.delay("a@b")


# Options of a call

BAD_OPTIONS = [
    *[("countdown", value) for value in (-1, NAN, INFINITE, -INFINITE, True, False, "60", None, 1e20, timedelta(1))],
    *[("expires", value) for value in (0, -1, NAN, INFINITE, True, "60", None, 1e20)],
    *[("priority", value) for value in (-1, 10, 1.5, NAN, True, "1", None)],
    *[("queue", value) for value in ("", " ", " emails", "\ud800", 3, True, None)],
    *[("task_id", value) for value in ("", " ", "\ud800", 3, True, None)],
    *[("eta", value) for value in (60, NAN, True, "2025-01-01", None, datetime(2025, 1, 1))],
    ("expires", datetime(2025, 1, 1)),
]


@pytest.mark.parametrize(("option", "value"), BAD_OPTIONS)
async def test_a_call_option_that_means_nothing_is_refused_with_its_value(option: str, value: Any) -> None:
    configure(Unreachable)
    declared: Any = send_email()

    for call in (lambda: declared.options(**{option: value}), lambda: declared.delay("a@b", **{option: value})):
        with pytest.raises(OptionError) as caught:
            await call()
        assert f"{option}={value!r}" in str(caught.value)
        assert isinstance(caught.value, ValueError)


def test_a_time_without_a_zone_is_refused_with_what_to_write() -> None:
    with pytest.raises(OptionError, match=r"has no time zone; write datetime.now\(UTC\)"):
        send_email().options(eta=datetime(2025, 1, 1))


def test_countdown_and_eta_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="countdown= or eta=, not both"):
        send_email().options(countdown=1, eta=NOW)


@pytest.mark.parametrize(
    "options",
    [{}, {"countdown": 0}, {"countdown": 0.0}, {"priority": 0}, {"priority": 9}, {"expires": 0.5}, {"expires": NOW},
     {"eta": NOW - timedelta(days=1)}, {"queue": "any", "task_id": "mine"}],
)  # fmt: skip
def test_an_option_that_means_something_is_taken(options: dict[str, Any]) -> None:
    assert send_email().options(**options) is not None


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(TypeError, match="no 'conutdown'; it takes countdown, eta, expires, queue, priority, task_id"):
        send_email().options(conutdown=1)  # type: ignore[call-arg]


def test_options_can_be_kept_and_used_again() -> None:
    later = send_email().options(countdown=1)
    before = dict(later._options)

    configure(Unreachable)
    for _ in range(2):
        with pytest.raises(ArgumentsError):
            later.delay_sync()  # type: ignore[call-arg]
    assert dict(later._options) == before


# Arguments of a call


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "to: Missing required argument"),
        (("a", "b"), {}, "argument 2: Unexpected positional argument"),
        (("a",), {"conutdown": 60}, "conutdown: Unexpected keyword argument"),
        ((3,), {}, "to: Input should be a valid string"),
        ((NAN,), {}, "to: Input should be a valid string"),
        (("x" * 3000,), {}, "the arguments are 3,010 bytes"),
    ],
)
async def test_a_mistake_in_the_arguments_raises_in_the_caller_and_sends_nothing(
    args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    """The broker of these settings is nowhere, so whatever is sent would raise PublishError instead."""
    configure(Unreachable)
    declared: Any = send_email()

    for call in (declared.delay, declared.options(countdown=1).delay):
        with pytest.raises(ArgumentsError) as caught:
            await call(*args, **kwargs)
        assert str(caught.value).startswith("send_email")
        assert said in str(caught.value)


async def test_arguments_and_options_do_not_mix_in_options() -> None:
    """After `options()` every keyword is the task's own."""
    configure(Unreachable)
    declared: Any = send_email()

    with pytest.raises(ArgumentsError, match="countdown: Unexpected keyword argument"):
        await declared.options(queue="default").delay("a@b", countdown=60)


# Code without a loop


async def test_a_blocking_call_under_a_running_loop_is_refused_with_what_to_await() -> None:
    configure(Unreachable)

    with pytest.raises(SyncInLoop, match=r"send_email\.delay_sync\(\) .* `await send_email\.delay\(\)`"):
        send_email().delay_sync("a@b")
    with pytest.raises(SyncInLoop, match=r"delay_sync\(\) .* `await delay\(\)`"):
        send_email().options(countdown=1).delay_sync("a@b")
    with pytest.raises(SyncInLoop, match=r"get_sync\(\) .* `await get\(\)`"):
        TaskResult.from_id("1").get_sync()


# Disabled


async def test_where_tasks_are_disabled_a_call_raises_and_everything_else_works() -> None:
    configure(Disabled)
    declared = send_email()

    with pytest.raises(TasksDisabled, match=r"send_email was not queued: task_enabled is False"):
        await declared.delay("a@b")
    assert await declared("a@b") == 3
    assert TaskResult.from_id("1").id == "1"


# What a task knows


def test_an_option_left_out_comes_from_the_settings_and_says_so() -> None:
    configure(Unreachable)
    declared = send_email()
    limit, policy = declared.limit(), declared.policy()

    assert limit is not None
    assert (limit.seconds, limit.source) == (120, "task_default_timeout")
    assert (policy.max_retries, policy.delay, policy.backoff, policy.retry_on) == (5, 7, False, ())


def test_an_option_of_the_decorator_wins_over_the_settings() -> None:
    configure(Unreachable)

    @task(timeout=3, max_retries=0, retry_delay=0, retry_backoff=True, retry_on=KeyError)
    async def own() -> None: ...

    limit, policy = own.limit(), own.policy()
    assert limit is not None
    assert (limit.seconds, limit.source) == (3, "the timeout of its decorator")
    assert (policy.max_retries, policy.delay, policy.backoff, policy.retry_on) == (0, 0, True, (KeyError,))


def test_no_timeout_is_no_limit() -> None:
    configure(Unreachable)

    @task(timeout=None)
    async def own() -> None: ...

    assert own.limit() is None


def test_every_call_option_is_reserved_and_every_task_option_has_one_place() -> None:
    """The two lists that the documentation is made from."""
    assert CALL_OPTIONS == ("countdown", "eta", "expires", "queue", "priority", "task_id")
    assert set(TaskOptions.__dataclass_fields__) == {
        "name", "queue", "max_retries", "retry_delay", "retry_on", "retry_backoff", "timeout", "ignore_result",
        "priority", "unique", "unique_for", "unique_key", "sensitive",
    }  # fmt: skip


# Celery underneath


def test_the_celery_task_has_the_same_name_queue_and_limits() -> None:
    configure(Unreachable)

    @task(queue="emails", timeout=30, max_retries=2, priority=3)
    async def send(to: str) -> None:
        """Send it."""

    celery_task = send.celery_task
    assert (celery_task.name, celery_task.queue, celery_task.priority) == (send.name, "emails", 3)
    assert (celery_task.max_retries, celery_task.time_limit, celery_task.__doc__) == (2, 40, "Send it.")
    assert send.celery_task is celery_task
    assert celery_task.app.tasks[send.name] is celery_task


def test_signatures_carry_arguments_as_json() -> None:
    configure(Unreachable)

    @task
    async def at(when: datetime, more: int = 1) -> None: ...

    moment = datetime(2025, 1, 2, tzinfo=UTC)
    assert at.s(moment).args == ("2025-01-02T00:00:00Z",)
    assert at.s(more=2).kwargs == {"more": 2}
    assert not at.s(moment).immutable
    assert at.si(moment).immutable
    assert (at.s(moment) | at.s()).tasks[0].task == at.name


def test_another_celery_application_in_the_process_stays_the_current_one() -> None:
    import celery

    configure(Unreachable)
    theirs = celery.Celery("theirs", broker="memory://")
    try:
        theirs.set_current()

        @celery.shared_task(name="theirs.add")
        def add(a: int, b: int) -> int:
            return a + b

        ours = send_email().celery_task.app

        assert celery.current_app._get_current_object() is theirs
        assert add.app is theirs
        assert ours is not theirs
    finally:
        theirs.close()
