"""The subscription of an event loop, beside what the acceptance tests see of it."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from support import Project, eventually, redis_server

from core.config import Settings, configure
from core.errors import ConfigurationError, ResultTimeout
from core.tasks import TaskResult
from core.tasks.listener import listener


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as (url, _):
        yield url


@pytest.fixture
def server(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """An empty server, which the settings name."""
    monkeypatch.setenv("REDIS_URL", url)
    configure(Settings)
    with Redis.from_url(url) as client:
        client.flushall()
        yield client


def store(server: Redis, *ids: str, status: str = "SUCCESS") -> None:
    """Store a result under each id as a worker does; the id is the result as well."""
    with server.pipeline(transaction=False) as together:
        for id in ids:
            meta = json.dumps({"status": status, "result": id, "task_id": id})
            together.set(f"celery-task-meta-{id}", meta)
            together.publish(f"celery-task-meta-{id}", meta)
        together.execute()


def waiting(*ids: str) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(TaskResult.from_id(id).get(timeout=20)) for id in ids]


async def subscribed(server: Redis, count: int) -> None:
    async def all_are() -> bool:
        return len(server.pubsub_channels()) >= count

    await eventually(all_are, 20, f"{count} channels are subscribed to")


async def test_a_thousand_waiters_and_a_thousand_questions_share_one_connection(server: Redis) -> None:
    before = {client["id"] for client in server.client_list()}
    ids = [str(number) for number in range(1000)]
    waits = waiting(*ids)

    await subscribed(server, 1000)
    asked = await asyncio.gather(*(TaskResult.from_id(id).exists() for id in ids))
    opened = {client["id"] for client in server.client_list()} - before
    store(server, *ids)

    assert await asyncio.gather(*waits) == ids
    assert asked == [False] * 1000
    assert len(opened) == 1


@pytest.mark.parametrize("when", ["before", "while"])
async def test_many_results_at_once_do_not_hold_up_the_loop(server: Redis, when: str) -> None:
    """Others have their turn in between, however many there are to hand out."""
    ids = [str(number) for number in range(2000)]
    turn, taken = 0, Counter[int]()

    async def take(id: str) -> None:
        await TaskResult.from_id(id).get(timeout=20)
        taken[turn] += 1

    if when == "before":
        store(server, *ids)
    takers = [asyncio.create_task(take(id)) for id in ids]
    if when == "while":
        await subscribed(server, 2000)
        store(server, *ids)
    while not all(taker.done() for taker in takers):
        turn += 1
        await asyncio.sleep(0)

    assert max(taken.values()) <= 250


async def test_the_first_of_several_can_be_waited_for(server: Redis) -> None:
    waits = waiting("a", "b", "c")
    await subscribed(server, 3)
    store(server, "b")

    done, pending = await asyncio.wait(waits, timeout=20, return_when=asyncio.FIRST_COMPLETED)

    assert (done, pending) == ({waits[1]}, {waits[0], waits[2]})
    store(server, "a", "c")
    assert await asyncio.gather(*waits) == ["a", "b", "c"]


async def test_results_can_be_taken_as_they_come(server: Redis) -> None:
    waits = waiting("a", "b", "c")
    await subscribed(server, 3)
    came: list[str] = []

    store(server, "c")
    for result in asyncio.as_completed(waits, timeout=20):
        came.append(await result)
        store(server, *[id for id in "ba" if id not in came][:1])

    assert came == ["c", "b", "a"]


async def test_in_a_group_that_fails_the_others_stop_waiting(server: Redis) -> None:
    store(server, "broken", status="FAILURE")

    others: list[asyncio.Task[Any]] = []

    async def wait_for_all() -> None:
        async with asyncio.TaskGroup() as group:
            others.extend(group.create_task(TaskResult.from_id(id).get()) for id in "ab")
            group.create_task(TaskResult.from_id("broken").get(timeout=20))

    with pytest.raises(ExceptionGroup) as failed:
        await wait_for_all()

    assert [str(error) for error in failed.value.exceptions] == ["Exception: broken"]
    assert [other.cancelled() for other in others] == [True, True]
    assert not (await listener())._waiting


async def test_waiting_can_be_limited_or_given_up_from_outside(server: Redis) -> None:
    store(server, "a", status="STARTED")
    given_up = asyncio.create_task(TaskResult.from_id("a").get())

    with pytest.raises(TimeoutError) as late:
        async with asyncio.timeout(0.05):
            await TaskResult.from_id("a").get(timeout=20)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up

    assert not isinstance(late.value, ResultTimeout)
    assert not (await listener())._waiting


async def test_news_of_a_call_that_goes_on_is_no_result(server: Redis) -> None:
    (waits,) = waiting("a")
    await subscribed(server, 1)
    for status in ("PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY"):
        store(server, "a", status=status)
    assert await TaskResult.from_id("a").status() == "pending"  # RETRY; its answer comes after all the news
    assert not waits.done()

    store(server, "a")

    assert await waits == "a"


async def test_a_call_that_is_stored_as_pending_exists(server: Redis) -> None:
    store(server, "a", status="PENDING")
    result = TaskResult.from_id("a")

    assert (await result.exists(), await result.status()) == (True, "pending")
    with pytest.raises(ResultTimeout):
        await result.get(timeout=0)


async def test_a_question_goes_over_a_new_connection_when_the_old_one_is_lost(server: Redis) -> None:
    store(server, "a")
    result = TaskResult.from_id("a")
    assert await result.exists()
    server.client_kill_filter(_type="normal", skipme=True)

    assert await asyncio.gather(*(result.status() for _ in range(10))) == ["success"] * 10


async def test_who_may_not_subscribe_is_told_so_and_may_still_ask(
    server: Redis, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.execute_command("ACL", "SETUSER", "deaf", "on", ">s3cret", "~*", "+@all", "resetchannels")
    monkeypatch.setenv("REDIS_URL", url.replace("//", "//deaf:s3cret@"))
    configure(Settings)

    with pytest.raises(ConfigurationError, match=r"does not give the user .* rights .*channel"):
        await TaskResult.from_id("a").get(timeout=20)
    assert await TaskResult.from_id("a").exists() is False


ENDING_LOOPS = """
import asyncio, time
from uuid import uuid4
from core.tasks import TaskResult

async def wait_and_give_up(waiters, pause):
    waiting = [asyncio.create_task(TaskResult.from_id(str(uuid4())).get()) for _ in range(waiters)]
    await asyncio.sleep(pause)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

longest = 0.0
for number in range(30):
    began = time.monotonic()
    asyncio.run(wait_and_give_up(300 + number, number / 1000))
    longest = max(longest, time.monotonic() - began)
print(longest)
"""


def test_a_loop_that_ends_while_results_are_waited_for_ends_at_once(fresh: Project) -> None:
    """A cancellation that comes in the middle of a write may be swallowed below us; the loop must not hang on it."""
    ended = fresh.python(ENDING_LOOPS)

    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 5
