"""The connection of an event loop: what shares a round trip, what a lost one costs, and what a loop leaves behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis
from support import Project, eventually, redis_server

from core.config import Settings, configure
from core.tasks import PublishError, PublishManyError, TaskResult, celery_app, task


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Redis, subprocess.Popen[bytes]]]:
    with redis_server() as (url, process), Redis.from_url(url) as client:
        yield client, process


@pytest.fixture
def server(running: tuple[Redis, subprocess.Popen[bytes]]) -> Redis:
    client, _ = running
    client.flushall()
    port = client.get_connection_kwargs()["port"]

    class Own(Settings):
        redis_url: SecretStr | None = SecretStr(f"redis://127.0.0.1:{port}/0")
        task_queues: tuple[str, ...] = ("other",)
        task_publish_timeout: float = 2

    configure(Own)
    return client


@pytest.fixture
async def send(server: Redis) -> Any:
    """A task that was called once, so that its message is known and the connection is open."""

    @task(name="mail.send")
    async def send(number: int, text: str = "") -> None: ...

    await send.delay(0)
    server.flushall()
    server.config_resetstat()
    return send


def numbers(server: Redis, queue: str = "default") -> list[Any]:
    """The first argument of each call in a queue, in the order in which they were sent."""
    return [int(json.loads(m)["headers"]["argsrepr"].strip("[]").split(",")[0]) for m in server.lrange(queue, 0, -1)][
        ::-1
    ]


def trips(server: Redis) -> int:
    return int(server.info("commandstats").get("cmdstat_eval", {"calls": 0})["calls"])


def callers(server: Redis) -> list[dict[str, Any]]:
    """The connections that others have to the server."""
    mine = server.client_id()
    return [client for client in server.client_list() if int(client["id"]) != mine]


# Round trips


async def test_a_lone_call_is_one_round_trip_and_calls_that_come_together_share_them(send: Any, server: Redis) -> None:
    await send.delay(1)
    assert trips(server) == 1

    await asyncio.gather(*(send.delay(number) for number in range(2, 102)))
    assert trips(server) == 2

    assert numbers(server) == list(range(1, 102))
    assert len(callers(server)) == 1


async def test_calls_that_come_during_a_round_trip_go_with_the_next_one(
    send: Any, server: Redis, running: tuple[Redis, subprocess.Popen[bytes]]
) -> None:
    os.kill(running[1].pid, signal.SIGSTOP)
    first = asyncio.create_task(send.delay(1))
    await asyncio.sleep(0.05)  # it has been written
    others = [asyncio.create_task(send.delay(number)) for number in range(2, 22)]
    await asyncio.sleep(0.05)
    os.kill(running[1].pid, signal.SIGCONT)
    await asyncio.gather(first, *others)

    assert numbers(server) == list(range(1, 22))
    assert trips(server) == 2


async def test_a_large_message_takes_no_others_along(send: Any, server: Redis) -> None:
    await asyncio.gather(*(send.delay(number, "x" * 200_000) for number in range(8)))

    assert numbers(server) == list(range(8))
    assert trips(server) == 2


# Errors


async def test_a_message_that_is_refused_does_not_take_others_with_it(send: Any, server: Redis) -> None:
    server.set("other", "no list")
    calls = [send.options(queue="other" if number == 2 else "default").delay(number) for number in range(5)]
    await send.options(queue="default").delay(9)
    with pytest.raises(PublishError):
        await send.delay(9, queue="other")
    server.delete("default")

    ended = await asyncio.gather(*calls, return_exceptions=True)

    (error,) = [error for error in ended if isinstance(error, Exception)]
    assert ended[2] is error
    assert isinstance(error, PublishError)
    assert not error.maybe_sent
    assert "refuses: WRONGTYPE" in str(error)
    assert numbers(server) == [0, 1, 3, 4]


async def test_a_connection_that_the_server_has_closed_is_made_anew_in_silence(send: Any, server: Redis) -> None:
    for number in range(3):
        for client in callers(server):
            server.client_kill_filter(_id=client["id"])
        await asyncio.sleep(0.02)  # the loop has heard of it
        await send.delay(number)

    assert numbers(server) == [0, 1, 2]


async def test_a_connection_that_was_silent_for_long_is_made_anew(
    send: Any, server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = callers(server)
    monkeypatch.setattr("core.tasks.sender.SILENCE", 0)

    await send.delay(1)

    (after,) = callers(server)
    assert before["id"] != after["id"]
    assert numbers(server) == [1]


# Cancelled callers


async def test_a_caller_that_is_cancelled_before_its_call_is_written_has_not_sent_it_and_afterwards_perhaps_has(
    send: Any, server: Redis, running: tuple[Redis, subprocess.Popen[bytes]]
) -> None:
    """The others that share its round trip notice nothing."""
    os.kill(running[1].pid, signal.SIGSTOP)
    written = [asyncio.create_task(send.delay(number)) for number in (1, 2, 3)]
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(send.delay(number)) for number in (4, 5, 6)]
    await asyncio.sleep(0.05)
    written[1].cancel()
    waiting[1].cancel()
    await asyncio.sleep(0)
    os.kill(running[1].pid, signal.SIGCONT)

    ended = await asyncio.gather(*written, *waiting, return_exceptions=True)

    assert [isinstance(end, asyncio.CancelledError) for end in ended] == [False, True, False, False, True, False]
    assert all(isinstance(end, TaskResult | asyncio.CancelledError) for end in ended)
    assert numbers(server) == [1, 2, 3, 4, 6]


async def test_a_caller_that_gives_up_in_the_turn_in_which_it_calls_has_not_sent_it(send: Any, server: Redis) -> None:
    call = asyncio.create_task(send.delay(1))
    asyncio.get_running_loop().call_soon(call.cancel)
    with pytest.raises(asyncio.CancelledError):
        await call
    await send.delay(2)

    assert numbers(server) == [2]


# Many calls


async def test_many_calls_are_queued_in_their_order_with_few_round_trips(send: Any, server: Redis) -> None:
    calls = [(number,) if number % 2 else {"number": number, "text": "t"} for number in range(1000)]
    results = await send.delay_many(iter(calls))

    messages = [json.loads(message)["headers"] for message in server.lrange("default", 0, -1)][::-1]
    assert [message["id"] for message in messages] == [result.id for result in results]
    assert messages[1]["argsrepr"] == "[1]"
    assert messages[2]["kwargsrepr"] == "{'number': 2, 'text': 't'}"
    assert trips(server) == 5
    assert await results[999].exists()


async def test_many_calls_take_the_options_of_calls_but_no_id(send: Any, server: Redis) -> None:
    assert await send.delay_many([]) == []
    await send.options(queue="other", countdown=60).delay_many([(1,), (2,)])
    assert numbers(server, "other") == [1, 2]
    assert json.loads(server.lindex("other", 0))["headers"]["eta"]

    with pytest.raises(ValueError, match="delay_many gives each call its own"):
        await send.options(task_id="one").delay_many([(3,)])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (("x",), r"calls\[3\]: send.*number: Input should be a valid integer"),
        ({"nummer": 1}, r"calls\[3\]: .*nummer: Unexpected keyword argument"),
        ({1: 2}, r"calls\[3\]: "),
        (7, r"calls\[3\]: a call is a tuple of arguments or a mapping of them, and no int"),
        ("ab", r"calls\[3\]: .* no str"),
        ([1], r"calls\[3\]: .* no list"),
    ],
)
async def test_of_many_calls_none_is_sent_when_one_is_wrong(send: Any, server: Redis, bad: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        await send.delay_many([(0,), (1,), (2,), bad, (4,)])

    assert numbers(server) == []


async def test_many_calls_to_a_server_that_becomes_full_are_told_apart(send: Any, server: Redis) -> None:
    server.config_set("maxmemory", server.info("memory")["used_memory"] + 2_000_000)
    try:
        with pytest.raises(PublishManyError, match="maxmemory") as caught:
            await send.delay_many([(number, "x" * 1000) for number in range(3000)])
    finally:
        server.config_set("maxmemory", 0)

    error = caught.value
    arrived = [json.loads(message)["headers"]["id"] for message in server.lrange("default", 0, -1)][::-1]
    assert 0 < len(arrived) < 3000
    assert [result.id for result in error.sent] == arrived
    assert error.maybe_sent == []
    assert len(error.sent) + len(error.not_sent) == 3000
    assert isinstance(error.__cause__, PublishError)


async def test_many_calls_to_a_server_that_freezes_are_told_apart(
    send: Any, server: Redis, running: tuple[Redis, subprocess.Popen[bytes]]
) -> None:
    os.kill(running[1].pid, signal.SIGSTOP)
    try:
        with pytest.raises(PublishManyError, match="0 were queued, 200 may have been and 300 were not") as caught:
            await send.delay_many([(number,) for number in range(500)])
    finally:
        os.kill(running[1].pid, signal.SIGCONT)

    error = caught.value
    assert (len(error.sent), len(error.maybe_sent), len(error.not_sent)) == (0, 200, 300)

    async def arrived() -> bool:
        return len(numbers(server)) == 200

    await eventually(arrived, 5, "what may have been sent was sent")
    assert all([await result.exists() for result in (error.maybe_sent[0], error.maybe_sent[-1])])
    assert not await error.not_sent[0].exists()


async def test_many_calls_go_through_threads_where_celery_has_to_send_them(server: Redis) -> None:
    celery_app.get_app().conf.task_send_sent_event = True

    @task(name="mail.send")
    async def send(number: int) -> None: ...

    with server.pubsub() as events:
        events.psubscribe("*celeryev*")
        await send.delay_many([(number,) for number in range(100)])
        seen = [events.get_message(timeout=1) for _ in range(101)]

    assert sorted(numbers(server)) == list(range(100))
    assert all(seen)


# What is kept of a call from the beginning


async def test_a_call_exists_as_soon_as_it_is_queued(send: Any, server: Redis) -> None:
    result = await send.delay(1)

    assert await result.exists()
    assert await result.status() == "pending"
    assert not await TaskResult.from_id("unknown").exists()
    assert 86_000 < server.ttl(f"celery-task-meta-{result.id}") <= 86_400
    assert send.celery_task.AsyncResult(result.id).state == "PENDING"


async def test_a_call_that_is_repeated_keeps_its_outcome(send: Any, server: Redis) -> None:
    key = "celery-task-meta-mine"
    server.set(key, '{"status": "SUCCESS"}')

    await send.delay(1, task_id="mine")

    assert server.get(key) == b'{"status": "SUCCESS"}'


async def test_nothing_is_kept_of_a_call_whose_result_is_ignored(send: Any, server: Redis) -> None:
    @task(name="quiet", ignore_result=True)
    async def quiet() -> None: ...

    await quiet.delay()

    assert server.keys() == [b"default"]


# The life of a loop

LOOPS = """
import asyncio, gc, sys
from redis import Redis
from src.apps.probe.tasks import add

async def some(count):
    return [result.id for result in await asyncio.gather(*(add.delay(n) for n in range(count)))]

def connections():
    with Redis.from_url(sys.argv[1]) as client:
        return len(client.client_list()) - 1

add.delay_sync(0)  # in the loop of the process, which stays
{code}
gc.collect()
print("end")
"""


def ends_in_silence(project: Project, code: str, *options: str) -> None:
    """Run a script in development mode, where Python tells of everything that is left open."""
    with redis_server() as (url, _):
        script = project.write("script.py", LOOPS.format(code=code))
        done = project.run(
            sys.executable, "-X", "dev", "-W", "error", *options, str(script), url, REDIS_URL=url, PYTHONPATH="."
        )
    busy = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]  # the machine's, not ours
    assert (done.stdout, busy, done.returncode) == ("end\n", [], 0)


def test_a_loop_that_ends_closes_its_connection(fresh: Project) -> None:
    ends_in_silence(
        fresh,
        """
before = connections()
for number in range(30):
    assert len(asyncio.run(some(number))) == number
    assert connections() == before, connections()
""",
    )


def test_a_loop_that_ends_while_calls_are_under_way_ends_in_silence(fresh: Project) -> None:
    ends_in_silence(
        fresh,
        """
async def begin(turns):
    tasks = [asyncio.create_task(add.delay(n)) for n in range(50)]
    for _ in range(turns):
        await asyncio.sleep(0)
    return tasks

for turns in range(12):
    tasks = asyncio.run(begin(turns))
    assert all(task.done() for task in tasks)
""",
    )


def test_a_child_that_was_forked_sends_by_a_connection_of_its_own(fresh: Project) -> None:
    ends_in_silence(
        fresh,
        """
import multiprocessing

def child():
    assert len(asyncio.run(some(5))) == 5
    assert add.delay_sync(1).id
    gc.collect()

async def main():
    await some(3)
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == 0
    return await some(3)

before = connections()
assert len(asyncio.run(main())) == 3
assert connections() == before
""",
    )


def test_loops_that_are_closed_with_everything_open_are_forgotten(fresh: Project) -> None:
    """Nobody can close a connection on a closed loop; it goes when nothing refers to it any more."""
    ends_in_silence(
        fresh,
        """
before = connections()
for number in range(10):
    loop = asyncio.new_event_loop()
    assert len(loop.run_until_complete(some(3))) == 3
    loop.close()
    del loop
    gc.collect()
    assert connections() <= before + 1, connections()
""",
        "-W",
        "ignore::ResourceWarning",
    )
