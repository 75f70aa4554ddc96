"""Calls: every way to make one, their options, and what is refused before anything is sent."""

import asyncio
import gc
import inspect
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4

import pytest
from marks import one_pool
from redis import Redis
from starlette.background import BackgroundTasks
from support import Project, eventually, wait_until

from core.tasks import OptionError, SyncInLoop, TaskResult, TaskRevoked, UnknownQueue


@pytest.fixture
def broker(example: Project) -> Iterator[Redis]:
    """The example project's server, to look at what lies in it."""
    example.run("core", "broker", "start")
    with Redis(unix_socket_path=str(example.root / ".core" / "broker.sock")) as client:
        yield client


@pytest.mark.usefixtures("worker")
async def test_a_call_runs_in_the_worker_and_its_result_comes_back() -> None:
    from src.apps.emails.tasks import send_email

    result = await send_email.delay("user@example.com", "Hello", "Welcome!")

    assert await result.get(timeout=20) == {"sent": True}
    assert await result.status() == "success"


@pytest.mark.usefixtures("example")
def test_delay_is_a_coroutine_function_to_every_tool() -> None:
    from src.apps.probe.tasks import add, add_sync

    for delay in (add.delay, add_sync.delay, add.options().delay, add.delay_many, add.options().delay_many):
        assert inspect.iscoroutinefunction(delay)


@pytest.mark.usefixtures("worker")
async def test_delay_works_as_an_asyncio_task() -> None:
    from src.apps.probe.tasks import add

    result = await asyncio.create_task(add.delay(2, 3))

    assert await result.get(timeout=20) == 5


@pytest.mark.usefixtures("worker")
async def test_delay_and_get_work_in_gather() -> None:
    from src.apps.probe.tasks import add

    results = await asyncio.gather(*(add.delay(i, i) for i in range(20)))

    assert await asyncio.gather(*(result.get(timeout=20) for result in results)) == [2 * i for i in range(20)]


@pytest.mark.usefixtures("worker")
async def test_delay_works_in_a_task_group() -> None:
    from src.apps.probe.tasks import add

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(add.delay(i, 1)) for i in range(3)]

    assert [await call.result().get(timeout=20) for call in calls] == [1, 2, 3]


@pytest.mark.usefixtures("worker")
async def test_delay_works_as_a_background_task_of_starlette(tmp_path: Path) -> None:
    """Starlette would run what it takes for a plain function in a thread, and never await what it returns."""
    from src.apps.probe.tasks import ignored

    file = tmp_path / "marks"
    background = BackgroundTasks()
    background.add_task(ignored.delay, str(file))
    await background()

    async def ran() -> bool:
        return file.exists()

    await eventually(ran, 20, "the call ran")


@one_pool
@pytest.mark.usefixtures("worker")
def test_a_script_calls_with_asyncio_run(example: Project) -> None:
    done = example.python("""
import asyncio
from src.apps.probe.tasks import add

async def main():
    return await (await add.delay(2, 3)).get(timeout=20)

print(asyncio.run(main()))
print(asyncio.run(main()))
""")

    assert (done.stdout, done.returncode) == ("5\n5\n", 0), done.stderr


@one_pool
@pytest.mark.usefixtures("worker")
def test_a_plain_script_calls_and_waits_without_a_loop(example: Project) -> None:
    done = example.python("""
from src.apps.probe.tasks import add, add_sync

print(add.delay_sync(2, 3).get_sync(timeout=20), add_sync.options(priority=1).delay_sync(1).get_sync(timeout=20))
many = [*add.delay_many_sync([(1,), (2,)]), *add.options(priority=1).delay_many_sync([{"a": 3}])]
print([call.get_sync(timeout=20) for call in many])
""")

    assert (done.stdout, done.returncode) == ("5 2\n[2, 3, 4]\n", 0), done.stderr


@pytest.mark.usefixtures("worker")
async def test_a_thread_beside_a_loop_calls_and_waits() -> None:
    from src.apps.probe.tasks import add

    assert await asyncio.to_thread(lambda: add.delay_sync(2, 3).get_sync(timeout=20)) == 5


@pytest.mark.usefixtures("example")
async def test_a_blocking_call_under_a_running_loop_is_refused_with_what_to_await_instead() -> None:
    from src.apps.probe.tasks import add

    with pytest.raises(SyncInLoop, match=r"add\.delay_sync\(\) would block .* `await add\.delay\(\)`"):
        add.delay_sync(1)
    with pytest.raises(SyncInLoop, match=r"`await add\.delay_many\(\)`"):
        add.delay_many_sync([(1,)])
    with pytest.raises(SyncInLoop, match=r"`await get\(\)`"):
        TaskResult.from_id("some-id").get_sync()


@pytest.mark.usefixtures("example")
async def test_a_forgotten_await_gives_pythons_own_warning() -> None:
    from src.apps.probe.tasks import add

    with pytest.warns(RuntimeWarning, match=r"Task\.delay' was never awaited"):  # noqa: PT031
        add.delay(1)
        gc.collect()


async def test_an_inline_call_needs_neither_broker_nor_worker(empty: Project) -> None:
    """In a project without settings and with a URL where nobody answers."""
    empty.write(
        "inline.py",
        """
import asyncio
from core.tasks import task

@task(max_retries=3)
async def double(number: int) -> int:
    return number * 2

@task
def plain(number: int) -> int:
    return number + 1

print(asyncio.run(double(21)), plain(1))
""",
    )

    done = await asyncio.to_thread(empty.python, "import inline", REDIS_URL="redis://127.0.0.1:1/0")

    assert (done.stdout, done.returncode) == ("42 2\n", 0), done.stderr


@pytest.mark.usefixtures("worker")
async def test_a_countdown_is_waited_for() -> None:
    from src.apps.probe.tasks import add

    began = time.monotonic()
    result = await add.delay(1, 1, countdown=0.7)

    assert await result.get(timeout=20) == 2
    assert time.monotonic() - began >= 0.7


@pytest.mark.usefixtures("worker")
async def test_an_eta_is_waited_for_whatever_its_time_zone() -> None:
    from src.apps.probe.tasks import add

    eta = datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=0.7)
    result = await add.delay(1, 1, eta=eta)

    assert await result.get(timeout=20) == 2
    assert datetime.now(UTC) >= eta


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("form", ["seconds", "datetime"])
async def test_a_call_that_expires_before_its_time_never_runs(form: str, tmp_path: Path) -> None:
    from src.apps.probe.tasks import risky

    file = tmp_path / "marks"
    expires = 0.1 if form == "seconds" else datetime.now(UTC) + timedelta(seconds=0.1)
    result = await risky.delay(str(file), countdown=0.5, expires=expires)

    with pytest.raises(TaskRevoked, match="had expired before it finished"):
        await result.get(timeout=20)
    assert await result.status() == "failed"
    assert not file.exists()


@pytest.mark.usefixtures("worker")
async def test_a_call_has_the_id_that_its_caller_chose() -> None:
    from src.apps.probe.tasks import context

    chosen = f"order-{uuid4()}"
    result = await context.delay(task_id=chosen)

    assert result.id == chosen
    assert (await result.get(timeout=20))["id"] == chosen


@pytest.mark.usefixtures("worker")
async def test_a_call_goes_to_the_queue_it_names_and_else_to_its_tasks_own() -> None:
    from src.apps.probe.tasks import context, elsewhere

    own, named, default = await elsewhere.delay(), await context.delay(queue="other"), await context.delay()

    assert await own.get(timeout=20) == "other"
    assert (await named.get(timeout=20))["queue"] == "other"
    assert (await default.get(timeout=20))["queue"] == "default"


def test_calls_are_taken_by_priority(fresh: Project) -> None:
    """0 first, 9 last, whatever the order they came in."""
    done = fresh.caller("""
from src.apps.probe.tasks import risky

for priority in (9, 5, 0):
    risky.options(priority=priority).delay_sync(f"marks-{priority}", 0)
risky.delay_sync("marks-none", 0)
""")
    assert done.returncode == 0, done.stderr

    fresh.worker("--pool", "threads", "--concurrency", "1")
    wait_until(lambda: len(list(fresh.root.glob("marks-*"))) == 4, 20, "all calls ran")

    order = sorted(fresh.root.glob("marks-*"), key=lambda file: file.stat().st_mtime_ns)
    assert [file.name for file in order][-2:] == ["marks-5", "marks-9"]


@pytest.mark.usefixtures("worker")
async def test_options_can_be_kept_and_used_again() -> None:
    from src.apps.probe.tasks import context

    other = context.options(queue="other")
    results = [await other.delay(), await other.delay(), await context.options().delay()]

    assert len({result.id for result in results}) == 3
    assert [(await result.get(timeout=20))["queue"] for result in results] == ["other", "other", "default"]


@pytest.mark.usefixtures("worker")
async def test_zero_is_a_countdown_and_a_priority() -> None:
    from src.apps.probe.tasks import add

    result = await add.delay(1, 1, countdown=0, priority=0)

    assert await result.get(timeout=20) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("countdown", value) for value in (-1, float("nan"), float("inf"), True, "60")),
        *(("expires", value) for value in (0, -1, float("nan"), float("inf"), True, datetime(2030, 1, 1))),
        *(("eta", value) for value in (60, datetime(2030, 1, 1), "2030-01-01")),
        *(("priority", value) for value in (-1, 10, 1.5, True)),
        *(("queue", value) for value in ("", " other", 7)),
        *(("task_id", value) for value in ("", 7)),
    ],
)
async def test_an_option_that_means_nothing_is_refused_by_name(option: str, value: object, broker: Redis) -> None:
    from src.apps.probe.tasks import add

    before = broker.llen("default")
    with pytest.raises(OptionError, match=option):
        await add.delay(1, **{option: value})
    with pytest.raises(OptionError, match=option):
        add.options(**{option: value})
    assert broker.llen("default") == before


@pytest.mark.usefixtures("example")
async def test_countdown_and_eta_together_are_refused() -> None:
    from src.apps.probe.tasks import add

    with pytest.raises(OptionError, match="countdown= or eta=, not both"):
        await add.delay(1, countdown=1, eta=datetime.now(UTC))


@pytest.mark.usefixtures("example")
async def test_a_mistyped_option_of_a_call_is_refused_and_the_right_ones_are_named() -> None:
    from src.apps.probe.tasks import add

    with pytest.raises(TypeError, match=r"no 'cuntdown'; it takes countdown, eta, expires"):
        add.options(cuntdown=1)
    with pytest.raises(TypeError, match="cuntdown"):
        await add.delay(1, cuntdown=1)


async def test_an_unknown_queue_is_refused_before_anything_is_sent(broker: Redis) -> None:
    from src.apps.probe.tasks import add

    before = set(broker.keys())
    with pytest.raises(UnknownQueue, match=r"'high-prority'.*Did you mean 'high-priority'\?.*task_queues"):
        await add.delay(1, queue="high-prority")
    assert b"high-prority" not in set(broker.keys()) - before


def test_the_queue_of_a_task_module_not_imported_yet_is_known(fresh: Project) -> None:
    """A web process imports some task modules only; `high-priority` is named in another one."""
    done = fresh.caller("""
import sys
from src.apps.probe.tasks import add
assert "src.apps.emails.tasks" not in sys.modules
print(add.options(queue="high-priority").delay_sync(1).id != "")
""")

    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_a_queue_of_the_settings_is_known(fresh: Project) -> None:
    done = fresh.caller(
        """
from src.apps.probe.tasks import add
print(add.options(queue="bulk").delay_sync(1).id != "")
""",
        TASK_QUEUES="bulk,mail",
    )

    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_with_tasks_disabled_delay_raises_and_everything_else_works(fresh: Project) -> None:
    done = fresh.caller(
        """
import asyncio, json
from src.apps.probe.tasks import add, elsewhere
from core.tasks import TaskResult, TasksDisabled

async def main():
    said = []
    for call in (add.delay(1), add.options(countdown=5).delay(1), add.delay(1, queue="other")):
        try:
            await call
        except TasksDisabled as error:
            said.append(str(error))
    return {"said": said, "inline": await add(2, 3), "status": await TaskResult.from_id("x").status()}

print(json.dumps(asyncio.run(main())))
""",
        TASK_ENABLED="false",
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["inline"], seen["status"]) == (5, "pending")
    assert len(seen["said"]) == 3
    assert all("task_enabled is False" in said and "TASK_ENABLED=true" in said for said in seen["said"])


@pytest.mark.usefixtures("worker")
async def test_publishing_signals_of_celery_see_every_call() -> None:
    """Tracing and correlation ids hang on them."""
    from celery.signals import after_task_publish, before_task_publish

    from src.apps.probe.tasks import headers

    seen: list[str] = []

    def before(sender: str, headers: dict[str, object], **_: object) -> None:
        seen.append(f"before {sender}")
        headers["trace"] = "abc"

    def after(sender: str, **_: object) -> None:
        seen.append(f"after {sender}")

    before_task_publish.connect(before)
    after_task_publish.connect(after)
    try:
        result = await headers.delay()
    finally:
        before_task_publish.disconnect(before)
        after_task_publish.disconnect(after)

    name = "src.apps.probe.tasks.headers"
    assert seen == [f"before {name}", f"after {name}"]
    assert (await result.get(timeout=20))["trace"] == "abc"
