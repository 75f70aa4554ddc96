"""Calls in memory: they go through JSON and run as in a worker, or wait in the outbox. Nothing leaves the process."""

import asyncio
import logging
import threading
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from celery import chain, chord, group
from pydantic import SecretStr

from core import config
from core.config import Settings, configure
from core.errors import (
    ArgumentsError,
    CoreError,
    OutsideTask,
    ResultUnavailable,
    TaskError,
    TaskFailed,
    TaskRevoked,
    TasksDisabled,
    TaskTimeout,
    UnknownQueue,
)
from core.tasks import TaskResult, celery_app, current, periodic_task, task
from core.testing import Outbox, plugin
from core.testing.memory import DEEPEST, NOWHERE, in_memory


class OwnError(Exception):
    """What a body raises."""


class KeywordOnly(Exception):
    """What cannot be built again."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


async def test_a_call_runs_with_arguments_and_a_result_that_went_through_json(inline_tasks: Outbox) -> None:
    given: list[Any] = []

    @task
    async def collect(numbers: list[int], day: date) -> tuple[int, date]:
        given.append(numbers)
        return sum(numbers), day

    numbers = [1, 2]
    result = await collect.delay(numbers, date(2026, 1, 2))

    assert await result.get() == (3, date(2026, 1, 2))
    assert given == [numbers]
    assert given[0] is not numbers
    assert (await result.status(), await result.exists()) == ("success", True)
    with pytest.raises(ArgumentsError, match="day"):
        await collect.delay([1])  # type: ignore[call-arg]


async def test_a_body_runs_on_the_loop_of_the_test_and_knows_its_call(inline_tasks: Outbox) -> None:
    loop = asyncio.get_running_loop()

    @task(queue="mail", timeout=50)
    async def inner() -> list[Any]:
        here = current()
        assert here.deadline is not None
        assert asyncio.get_running_loop() is loop
        return [here.id, here.name, here.attempt, here.queue, here.parent_id, here.root_id]

    @task
    async def outer() -> list[Any]:
        return [current().id, current().deadline is not None, *await (await inner.delay()).get()]

    result = await outer.delay()

    id_, limited, inner_id, name, attempt, queue, parent, root = await result.get()
    assert (id_, limited, name, attempt, queue) == (result.id, True, inner.name, 1, "mail")
    assert parent == root == id_ != inner_id
    with pytest.raises(OutsideTask):
        current()


async def test_attempts_follow_the_tasks_own_policy_without_waiting(inline_tasks: Outbox) -> None:
    attempts: list[int] = []

    @task(max_retries=2, retry_delay=3600, retry_on=(OwnError,))
    async def risky(fails: int, own: bool) -> int:
        attempts.append(current().attempt)
        if current().attempt <= fails:
            raise OwnError("again", 7) if own else TaskError("again", retry_in=3600)
        return current().attempt

    assert await (await risky.delay(2, False)).get() == 3
    assert await (await risky.delay(2, True)).get() == 3
    assert attempts == [1, 2, 3, 1, 2, 3]
    with pytest.raises(OwnError, match="again") as caught:
        await (await risky.delay(3, True)).get()
    assert caught.value.args == ("again", 7)
    assert attempts == [1, 2, 3] * 3


async def test_each_attempt_has_arguments_of_its_own(inline_tasks: Outbox) -> None:
    @task(max_retries=1)
    async def append(words: Any) -> list[str]:
        words.append("more")
        if current().attempt == 1:
            raise TaskError
        return list(words)

    words = ["one"]
    assert await (await append.delay(words)).get() == ["one", "more"]
    assert words == ["one"]


async def test_errors_arrive_as_from_a_worker(inline_tasks: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def permanent() -> None:
        raise OwnError("no", 7)

    @task
    def keyword_only() -> None:
        raise KeywordOnly(code=7)

    @task
    async def exits() -> None:
        raise SystemExit("enough")

    @task
    async def wrong() -> int:
        return {1}  # type: ignore[return-value]

    result = await permanent.delay()
    assert await result.status() == "failed"
    with pytest.raises(OwnError) as own:
        await result.get()
    assert "in permanent" in own.value.__notes__[0]
    assert "Raise TaskError, or add retry_on=(OwnError,)" in caplog.text
    with pytest.raises(TaskFailed, match="KeywordOnly: code 7") as other:
        await (await keyword_only.delay()).get()
    assert "in keyword_only" in other.value.__notes__[0]
    with pytest.raises(TaskFailed, match="SystemExit: enough"):
        await (await exits.delay()).get()
    with pytest.raises(ArgumentsError, match="would not come back"):
        await (await wrong.delay()).get()


async def test_a_time_limit_is_kept(inline_tasks: Outbox) -> None:
    ended: list[str] = []

    @task(timeout=0.05)
    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("finally")

    with pytest.raises(TaskTimeout, match=r"after 0\.05 s"):
        await (await slow.delay()).get()
    assert ended == ["finally"]


async def test_a_caller_that_is_cancelled_cancels_the_body_and_waits_for_its_end(inline_tasks: Outbox) -> None:
    ended: list[str] = []

    @task
    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0)
            ended.append("finally")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await slow.delay(task_id="one")
    assert ended == ["finally"]
    with pytest.raises(TaskRevoked):
        await TaskResult.from_id("one").get()


async def test_a_running_call_can_be_cancelled(inline_tasks: Outbox) -> None:
    begun = asyncio.Event()

    @task
    async def slow() -> None:
        begun.set()
        await asyncio.sleep(30)

    async def cancel() -> bool:
        await begun.wait()
        assert await TaskResult.from_id("one").status() == "running"
        return await TaskResult.from_id("one").cancel()

    result, cancelled = await asyncio.gather(slow.delay(task_id="one"), cancel())

    assert cancelled
    assert not await result.cancel()
    with pytest.raises(TaskRevoked, match="cancelled"):
        await result.get(timeout=5)


def test_sync_code_and_plain_functions_work_however_deep(inline_tasks: Outbox) -> None:
    threads: list[int] = []

    @task
    def count_down(number: int) -> int:
        threads.append(threading.get_ident())
        return count_down.delay_sync(number - 1).get_sync() + 1 if number else 0

    assert count_down.delay_sync(DEEPEST - 1).get_sync() == DEEPEST - 1
    assert threading.get_ident() not in threads


async def test_many_calls_and_fixed_options(inline_tasks: Outbox) -> None:
    @task(queue="numbers")
    async def double(number: int) -> int:
        return number * 2

    results = await double.delay_many([(1,), {"number": 2}])
    fixed = await double.options(countdown=3600, queue="numbers", task_id="own").delay(3)

    assert [await result.get() for result in [*results, fixed]] == [2, 4, 6]
    inline_tasks.assert_queued(double, 3, countdown=3600, queue="numbers", task_id="own", times=1)
    inline_tasks.assert_queued(double, times=3)


async def test_what_ignores_its_results_has_none(inline_tasks: Outbox) -> None:
    @task(ignore_result=True)
    async def ignored() -> object:
        return object()

    result = await ignored.delay()

    with pytest.raises(ResultUnavailable):
        await result.get()
    assert not await TaskResult.from_id(result.id).exists()


async def test_what_is_refused_before_sending_is_refused(inline_tasks: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    @task
    async def nothing() -> None: ...

    with pytest.raises(UnknownQueue, match="'elsewhere'"):
        await nothing.delay(queue="elsewhere")
    monkeypatch.setenv("TASK_ENABLED", "false")
    configure(Settings)
    with pytest.raises(TasksDisabled):
        await nothing.delay()
    assert inline_tasks.calls == []


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({"expires": 30}, True),
        ({"expires": 30, "countdown": 10}, True),
        ({"expires": 30, "countdown": 60}, False),
        ({"expires": datetime.now(UTC) - timedelta(seconds=1)}, False),
        ({"expires": datetime.now(UTC) + timedelta(hours=1), "eta": datetime.now(UTC) + timedelta(hours=2)}, False),
    ],
    ids=["in time", "countdown in time", "countdown too late", "past", "eta too late"],
)
async def test_what_has_expired_when_its_time_comes_never_runs(
    inline_tasks: Outbox, options: dict[str, Any], runs: bool
) -> None:
    @task
    async def note() -> str:
        return "ran"

    result = await note.options(**options).delay()

    if runs:
        assert await result.get() == "ran"
    else:
        with pytest.raises(TaskRevoked, match="had expired"):
            await result.get()


@pytest.mark.parametrize("fixture", ["inline_tasks", "captured_tasks"])
async def test_what_celery_would_send_is_refused(fixture: str, request: pytest.FixtureRequest) -> None:
    @task
    async def add(a: int, b: int = 1) -> int:
        return a + b

    outbox = request.getfixturevalue(fixture)
    made = [add.s(1, 2), chain(add.s(1), add.s()), group(add.s(1), add.s(2)), chord([add.s(1), add.s(2)], add.s())]
    for signature in made:
        with pytest.raises(CoreError, match=f"{fixture} has no Celery worker.* Use worker_tasks"):
            signature.apply_async()
    with pytest.raises(CoreError, match="worker_tasks"):
        add.celery_task.delay(1)
    assert outbox.calls == []


async def test_calls_without_end_are_named() -> None:
    @task
    async def again() -> None:
        await again.delay(countdown=60)

    with (
        pytest.raises(AssertionError, match=r"again was queued by a call.* Use captured_tasks"),
        in_memory("inline_tasks", runs=True) as outbox,
    ):
        await again.delay()
    assert len(outbox.calls) == DEEPEST


# What a test leaves behind


def test_settings_and_application_are_as_they_were() -> None:
    before = configure(Settings)

    with in_memory("inline_tasks", runs=True):
        inside = config.get_settings()
        assert inside.redis_url is not None
        assert inside.redis_url.get_secret_value().endswith(":1/0")
        app = celery_app.get_app()

    assert config.get_settings() is before
    assert celery_app._process.app is None
    assert app.conf.broker_url.endswith(":1/0")


def test_a_project_without_settings_has_some_for_the_test() -> None:
    with in_memory("inline_tasks", runs=True):
        assert config.get_settings().task_default_queue == "default"
    assert config._current.settings is None
    assert config._current.project is None


def test_a_broker_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://db.internal/3")
    with in_memory("inline_tasks", runs=True):
        url = config.get_settings().redis_url
        assert url is not None
        assert url.get_secret_value() == "redis://db.internal/3"


def test_a_signature_of_another_application_is_not_sent_to_its_broker() -> None:
    @task
    async def add(a: int) -> int:
        return a

    with in_memory("inline_tasks", runs=True):
        signature = add.s(1)

    with config.overridden(redis_url=SecretStr(NOWHERE)), celery_app.renewed():
        assert add.s(1).app is not signature.app
        with pytest.raises(CoreError, match=r"made with other settings.* Make it inside the test"):
            signature.apply_async()


def test_a_periodic_task_is_queued_like_any(inline_tasks: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    @periodic_task(cron="0 * * * *")
    async def hourly() -> str:
        return "done"

    with caplog.at_level(logging.INFO, "core.tasks"):
        assert hourly.delay_sync().get_sync() == "done"
    assert f"{hourly.name}[" in caplog.text
    assert "success in" in caplog.text


def test_every_fixture_of_the_option_exists() -> None:
    assert all(hasattr(plugin, name) for name in plugin.FIXTURES.values())


async def test_progress_is_seen_while_a_call_runs_and_ends_with_it(captured_tasks: Outbox) -> None:
    seen = asyncio.Event()

    @task
    async def reads() -> str:
        await current().progress(1, 4, "reading")
        await seen.wait()
        return "read"

    result = await reads.delay()
    with pytest.raises(ResultUnavailable, match=r"progress\(\) would wait for ever .*run_all"):
        [update async for update in result.progress()]
    running = asyncio.create_task(captured_tasks.run_all())
    await asyncio.sleep(0)
    found = []
    async for update in result.progress():
        found.append((update.done, update.total, update.message, await result.status()))
        seen.set()
    await running

    assert found == [(1, 4, "reading", "running")]
    assert await result.get() == "read"
    assert [update async for update in result.progress()] == []
