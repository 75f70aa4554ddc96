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
from core.errors import ConfigurationError, ResultTimeout, ResultUnavailable
from core.tasks import Progress, TaskResult
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


# Progress


def say(server: Redis, id: str, done: int, total: int | None = None, message: str = "") -> None:
    """Store progress as a worker does."""
    meta = json.dumps({"status": "PROGRESS", "result": {"done": done, "total": total, "message": message}})
    server.set(f"celery-task-meta-{id}", meta)
    server.publish(f"celery-task-meta-{id}", meta)


class Follower:
    """Somebody who follows the progress of a call."""

    def __init__(self, id: str) -> None:
        self.seen: list[Progress] = []
        self.task = asyncio.create_task(self._follow(id))

    async def _follow(self, id: str) -> None:
        async for update in TaskResult.from_id(id).progress():
            self.seen.append(update)

    async def sees(self, *done: float) -> None:
        async def has() -> bool:
            return [update.done for update in self.seen] == [*done]

        await eventually(has, 20, f"{done} are seen")


async def test_progress_comes_as_it_is_said_and_ends_with_the_call(server: Redis) -> None:
    store(server, "a", status="PENDING")
    follower = Follower("a")
    await subscribed(server, 1)
    store(server, "a", status="STARTED")
    for number in (1, 2, 3):
        say(server, "a", number, 3, f"step {number}")
        await follower.sees(*range(1, number + 1))

    store(server, "a")

    await asyncio.wait_for(follower.task, 20)
    assert follower.seen == [Progress(number, 3, f"step {number}") for number in (1, 2, 3)]
    assert not (await listener())._waiting
    assert not (await listener())._following


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "REVOKED"])
async def test_a_call_that_has_ended_has_no_more_progress(server: Redis, status: str) -> None:
    store(server, "a", status=status)

    assert [update async for update in TaskResult.from_id("a").progress()] == []


async def test_who_comes_later_begins_with_what_is_known(server: Redis) -> None:
    first, result = Follower("a"), waiting("a")[0]
    await subscribed(server, 1)
    say(server, "a", 1)
    await first.sees(1)

    second = Follower("a")
    await second.sees(1)
    say(server, "a", 2)
    await asyncio.gather(first.sees(1, 2), second.sees(1, 2))
    store(server, "a", status="FAILURE")

    await asyncio.wait_for(asyncio.gather(first.task, second.task), 20)  # what the task raised is not theirs
    with pytest.raises(Exception, match="a"):
        await result


async def test_who_is_slow_gets_the_latest(server: Redis) -> None:
    progress = TaskResult.from_id("a").progress()
    say(server, "a", 1)
    assert (await anext(progress)).done == 1
    for number in range(2, 10):
        say(server, "a", number)
    store(server, "b")
    await TaskResult.from_id("b").get(timeout=20)  # its answer comes after all of these

    assert (await anext(progress)).done == 9
    store(server, "a")
    assert [update async for update in progress] == []


async def test_progress_goes_on_over_a_new_connection(server: Redis) -> None:
    follower = Follower("a")
    await subscribed(server, 1)
    say(server, "a", 1)
    await follower.sees(1)

    server.client_kill_filter(_type="pubsub", skipme=True)
    say(server, "a", 2)
    await follower.sees(1, 2)
    await subscribed(server, 1)
    say(server, "a", 3)
    await follower.sees(1, 2, 3)

    store(server, "a")
    await asyncio.wait_for(follower.task, 20)


async def test_who_stops_to_follow_leaves_nothing_behind(server: Redis) -> None:
    say(server, "a", 1)
    given_up = Follower("a")
    await given_up.sees(1)
    given_up.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up.task
    progress = TaskResult.from_id("a").progress()
    await anext(progress)
    await progress.aclose()

    assert not (await listener())._waiting
    assert not (await listener())._following


def test_a_task_that_ignores_its_results_has_no_progress_to_follow() -> None:
    with pytest.raises(ResultUnavailable, match=r"progress\(\): the task is declared with ignore_result=True"):
        TaskResult[None]("a", ignored=True).progress()


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
