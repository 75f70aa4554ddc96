"""Results: the four status words, waiting, and what waiting costs."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from marks import one_pool
from redis import Redis
from support import Project, eventually, redis_server

from core.tasks import OptionError, ResultTimeout, ResultUnavailable, TaskResult, TaskStatus
from core.tasks.listener import Listener, listener


@pytest.fixture
def server(example: Project) -> Iterator[Redis]:
    """The example project's server, to look at its connections."""
    example.run("core", "broker", "start")
    with Redis(unix_socket_path=str(example.root / ".core" / "broker.sock")) as client:
        yield client


def subscribed(server: Redis) -> int:
    """How many channels of results somebody waits on."""
    return len(server.pubsub_channels("celery-task-meta-*"))


def nothing_is_left_of(waits: Listener) -> bool:
    return not waits._waiting and not waits._new


@pytest.mark.usefixtures("worker")
async def test_a_call_goes_through_pending_running_and_success(tmp_path: Path) -> None:
    from src.apps.probe.tasks import nap

    file = tmp_path / "marks"
    result = await nap.delay(0.5, str(file), countdown=0.3)
    first = await result.status()

    async def begun() -> bool:
        return file.exists() and await result.status() != "pending"

    await eventually(begun, 20, "the body began")
    second = await result.status()
    await result.get(timeout=20)

    assert [first, second, await result.status()] == ["pending", "running", "success"]
    assert isinstance(first, TaskStatus)


@pytest.mark.usefixtures("worker")
async def test_a_call_that_raised_is_failed() -> None:
    from src.apps.probe.tasks import OwnError, permanent

    result = await permanent.delay()
    with pytest.raises(OwnError):
        await result.get(timeout=20)

    assert await result.status() == "failed"


@pytest.mark.usefixtures("worker")
async def test_a_result_can_be_read_many_times_and_by_many() -> None:
    from src.apps.probe.tasks import add

    result = await add.delay(1, 1)

    assert await asyncio.gather(*(result.get(timeout=20) for _ in range(5))) == [2] * 5
    assert await result.get(timeout=20) == 2


@pytest.mark.usefixtures("worker")
async def test_get_with_timeout_0_looks_once() -> None:
    from src.apps.probe.tasks import add

    waits = await add.delay(1, 1, countdown=1)
    with pytest.raises(ResultTimeout, match="after 0 s"):
        await waits.get(timeout=0)

    assert await waits.get(timeout=20) == 2
    assert await waits.get(timeout=0) == 2


@pytest.mark.usefixtures("worker")
async def test_a_caller_who_stops_waiting_does_not_stop_the_task() -> None:
    """The caller's patience is not the task's timeout: the call still finishes."""
    from src.apps.probe.tasks import nap

    result = await nap.delay(0.3)

    with pytest.raises(ResultTimeout, match=r"after 0\.05 s"):
        await result.get(timeout=0.05)
    assert await result.get(timeout=20) == 0.3


@pytest.mark.usefixtures("worker")
async def test_waiting_can_be_limited_from_outside_as_well() -> None:
    from src.apps.probe.tasks import nap

    result = await nap.delay(0.3)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await result.get()
    assert await result.get(timeout=20) == 0.3


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True, "5"])
async def test_a_timeout_that_means_nothing_is_refused(timeout: object) -> None:
    with pytest.raises(OptionError, match="timeout"):
        await TaskResult.from_id("some-id").get(timeout=timeout)  # type: ignore[arg-type]


@pytest.mark.usefixtures("worker")
async def test_nothing_is_kept_of_a_call_that_ignores_its_result(tmp_path: Path) -> None:
    """Asking for it is an error at once, and the call runs."""
    from src.apps.probe.tasks import ignored

    file = tmp_path / "marks"
    result = await ignored.delay(str(file))

    began = time.monotonic()
    with pytest.raises(ResultUnavailable, match="ignore_result=True"):
        await result.get()
    with pytest.raises(ResultUnavailable, match="ignore_result=True"):
        await result.status()
    assert time.monotonic() - began < 1

    async def ran() -> bool:
        return file.exists()

    await eventually(ran, 20, "the call ran")


@pytest.mark.usefixtures("worker")
async def test_an_id_that_nobody_queued_does_not_exist_and_is_pending() -> None:
    from src.apps.probe.tasks import add

    known = await add.delay(1)
    await known.get(timeout=20)
    unknown = TaskResult.from_id(str(uuid4()))

    assert (await known.exists(), await unknown.exists()) == (True, False)
    assert await unknown.status() == "pending"


@pytest.mark.usefixtures("worker")
async def test_from_an_id_alone_a_result_comes_as_jsons_own_values() -> None:
    """What a status endpoint has is the id."""
    from src.apps.probe.tasks import Order, typed

    order = Order(number=7, placed="2030-01-02T03:04:05Z")
    result = await typed.delay(model=order)
    assert (await result.get(timeout=20)).model == order

    seen = await TaskResult.from_id(result.id).get(timeout=20)

    assert seen["model"] == {"number": 7, "placed": "2030-01-02T03:04:05Z"}


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("id", ["", None, 7])
def test_what_is_no_id_is_refused(id: object) -> None:
    with pytest.raises(OptionError, match="is not the id of a call"):
        TaskResult.from_id(id)  # type: ignore[arg-type]


@one_pool
@pytest.mark.usefixtures("worker")
async def test_a_thousand_waiters_share_a_handful_of_connections_and_all_are_served(server: Redis) -> None:
    """They wait before the calls are made, so every result comes through the subscription."""
    from src.apps.probe.tasks import add

    before = {client["id"] for client in server.client_list()}
    ids = [str(uuid4()) for _ in range(1000)]
    waiting = [asyncio.create_task(TaskResult.from_id(id).get(timeout=60)) for id in ids]

    async def all_subscribed() -> bool:
        return subscribed(server) >= 1000

    await eventually(all_subscribed, 20, "a thousand waiters are subscribed")
    # Other processes may come and go; this one's share is what was opened since, and at most that.
    opened = {client["id"] for client in server.client_list()} - before
    assert len(opened) <= 5
    for start in range(0, 1000, 100):
        await asyncio.gather(*(add.delay(i, 0, task_id=ids[i]) for i in range(start, start + 100)))

    assert await asyncio.gather(*waiting) == list(range(1000))
    assert nothing_is_left_of(await listener())


@pytest.mark.usefixtures("example")
async def test_a_thousand_waiters_hold_no_thread() -> None:
    import threading

    await TaskResult.from_id("warm").exists()
    before = threading.active_count()
    waiting = [asyncio.create_task(TaskResult.from_id(str(uuid4())).get()) for _ in range(1000)]
    waits = await listener()

    async def registered() -> bool:
        return len(waits._waiting) >= 1000

    await eventually(registered, 20, "a thousand waiters wait")
    assert threading.active_count() <= before

    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.usefixtures("example")
async def test_cancelled_waiters_leave_nothing_behind(server: Redis) -> None:
    before = subscribed(server)
    waiting = [asyncio.create_task(TaskResult.from_id(str(uuid4())).get()) for _ in range(500)]

    async def all_subscribed() -> bool:
        return subscribed(server) >= before + 500

    await eventually(all_subscribed, 20, "they are subscribed")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    assert nothing_is_left_of(await listener())

    async def few_left() -> bool:
        return subscribed(server) <= before + 100

    await eventually(few_left, 20, "the server keeps no subscription for them")


@pytest.mark.usefixtures("worker")
async def test_one_waiter_who_gives_up_takes_nothing_from_the_others() -> None:
    from src.apps.probe.tasks import nap

    result = await nap.delay(0.4)
    impatient, patient = asyncio.create_task(result.get()), asyncio.create_task(result.get(timeout=20))
    await asyncio.sleep(0)
    impatient.cancel()

    assert await patient == 0.4
    assert nothing_is_left_of(await listener())


@pytest.mark.usefixtures("worker")
async def test_a_result_arrives_although_the_subscriptions_connection_was_lost(server: Redis) -> None:
    from src.apps.probe.tasks import add

    ids = [str(uuid4()) for _ in range(20)]
    before = subscribed(server)
    waiting = [asyncio.create_task(TaskResult.from_id(id).get(timeout=30)) for id in ids]

    async def all_subscribed() -> bool:
        return subscribed(server) >= before + len(ids)

    await eventually(all_subscribed, 20, "they are subscribed")
    assert server.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
    # Some results are stored while nobody is subscribed, others afterwards.
    await asyncio.gather(*(add.delay(i, 0, task_id=ids[i]) for i in range(len(ids))))

    assert await asyncio.gather(*waiting) == list(range(len(ids)))


@pytest.mark.usefixtures("worker")
async def test_a_result_that_was_stored_long_before_is_read_at_once() -> None:
    from src.apps.probe.tasks import add

    result = await add.delay(2, 2)
    await result.get(timeout=20)

    assert await TaskResult.from_id(result.id).get(timeout=5) == 4


@pytest.mark.usefixtures("worker")
def test_results_can_be_awaited_in_one_loop_after_another(example: Project) -> None:
    from src.apps.probe.tasks import add

    async def call() -> int:
        return await (await add.delay(1, 1)).get(timeout=20)

    assert [asyncio.run(call()) for _ in range(3)] == [2, 2, 2]


@pytest.mark.usefixtures("example")
def test_a_loop_ends_at_once_whatever_its_subscription_is_doing() -> None:
    """The loop's end cancels the listener in the middle of dropping what nobody waits for any more."""

    async def wait_and_leave(turns: int) -> None:
        waiting = [asyncio.create_task(TaskResult.from_id(str(uuid4())).get()) for _ in range(150)]
        waits = await listener()

        async def subscribing() -> bool:
            return len(waits._waiting) >= 150 and not waits._new

        await eventually(subscribing, 20, "they are subscribed")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for _ in range(turns):
            await asyncio.sleep(0)

    began = time.monotonic()
    for turns in range(12):
        asyncio.run(wait_and_leave(turns))

    assert time.monotonic() - began < 15


SCRIPT = """
import asyncio, json, time
from core.tasks import TaskResult

async def main():
    result = TaskResult.from_id("some-id")
    began = time.monotonic()

    async def outcome(ask):
        try:
            await ask
        except Exception as error:
            return type(error).__name__, str(error), time.monotonic() - began

    asked = {"status": result.status(), "exists": result.exists(), "once": result.get(timeout=0),
             "wait": result.get(timeout=1), "cancel": result.cancel()}
    return dict(zip(asked, await asyncio.gather(*map(outcome, asked.values()))))

print(json.dumps(asyncio.run(main())))
"""


@pytest.mark.parametrize("how", ["refuses", "freezes"])
def test_a_result_backend_that_does_not_answer_is_an_error_that_names_it(fresh: Project, how: str) -> None:
    with redis_server() as (url, process):
        if how == "freezes":
            os.kill(process.pid, signal.SIGSTOP)
        else:
            process.kill()
            process.wait()
        try:
            done = fresh.python(SCRIPT, TASK_RESULT_BACKEND_URL=url.replace("//", "//:s3cret@"), timeout=110)
        finally:
            if how == "freezes":
                os.kill(process.pid, signal.SIGCONT)

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    where = re.search(r"127\.0\.0\.1:\d+", url).group()
    for name in ("status", "exists", "once", "cancel"):
        kind, said, seconds = seen[name]
        assert (kind, name) == ("BrokerUnreachable", name)
        assert where in said
        assert seconds < 10
    assert seen["wait"][0] == "ResultTimeout"
    assert seen["wait"][2] < 5
    assert "s3cret" not in done.stdout + done.stderr
