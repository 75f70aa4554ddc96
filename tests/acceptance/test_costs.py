"""What each kind of call costs Redis: commands, those inside scripts included, and reads, one or more a round trip.

The server counts both, so that a busy machine changes little. Each bound is what was measured and a little more:
whoever adds a command or a round trip to a call's way finds out here.
"""

import asyncio
import time
from collections.abc import Awaitable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from bench.drains import READS, Crew, counted, drain, forget
from marks import core_transport, own_state
from pydantic import SecretStr
from redis import Redis
from support import Process, Project, project, redis_server

from core.config import Settings, configure
from core.tasks import ResultTimeout, TaskResult, task

__all__ = ["own_state"]
pytestmark = core_transport

SETTINGS = """
from core.config import Settings


class AppSettings(Settings):
    celery: dict = {"beat_max_loop_interval": 1}
"""
TASKS = """
from core.tasks import TaskError, current, periodic_task, task


@task
async def quick(number: int) -> int:
    return number


@task(max_retries=1, retry_delay=0.2)
async def again() -> int:
    if current().attempt == 1:
        raise TaskError("once more")
    return current().attempt


@task(unique=True)
async def alone(number: int) -> int:
    return number


@periodic_task(interval=3600)
async def hourly() -> None: ...
"""


#: What a worker of one process that has nothing to do costs in a second, at most.
IDLE_COMMANDS, IDLE_READS = 14, 3.5


class Costs(NamedTuple):
    """What something has cost the server."""

    commands: float
    reads: float
    #: Scripts that callers have sent.
    sends: float
    seconds: float


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Project, Any, str]]:
    with redis_server() as (url, _), project(None) as made, Redis.from_url(url) as client:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", SETTINGS)
        made.write("src/tasks.py", TASKS)
        made.environment["REDIS_URL"] = url
        yield made, client, url


@pytest.fixture
def client(made: tuple[Project, Any, str]) -> Any:
    class Own(Settings):
        redis_url: SecretStr | None = SecretStr(made[2])

    configure(Own)
    return made[1]


@pytest.fixture
def tasks(client: Any) -> Any:
    """What the worker knows, declared for the caller."""

    @task(name="src.tasks.quick")
    async def quick(number: int) -> int: ...  # type: ignore[empty-body]

    @task(name="src.tasks.again")
    async def again() -> int: ...  # type: ignore[empty-body]

    @task(name="src.tasks.alone", unique=True)
    async def alone(number: int) -> int: ...  # type: ignore[empty-body]

    return SimpleNamespace(quick=quick, again=again, alone=alone)


@pytest.fixture(scope="module")
def worker(made: tuple[Project, Any, str]) -> Iterator[Process]:
    made[1].flushall()
    process = made[0].worker()
    yield process
    assert process.stop() == 0


async def costs(client: Any, work: Awaitable[Any], calls: int = 1) -> Costs:
    """What something costs, for each of its calls."""

    def sends() -> int:
        return int(client.info("commandstats").get("cmdstat_eval", {"calls": 0})["calls"])

    sent, before, began = sends(), counted(client), time.monotonic()
    await work
    after, seconds = counted(client), time.monotonic() - began
    reads = after.reads - before.reads - READS
    figures = (after.commands - before.commands, reads, sends() - sent)
    return Costs(*(figure / calls for figure in figures), seconds)


async def one_by_one(task: Any, calls: int) -> None:
    for number in range(calls):
        await task.delay(number)


async def back_to_back(task: Any, calls: int, *args: int) -> None:
    for _ in range(calls):
        await (await task.delay(*args)).get(timeout=20)


# Publishing


async def test_what_queueing_costs(client: Any, tasks: Any) -> None:
    await one_by_one(tasks.quick, 1)

    alone = await costs(client, one_by_one(tasks.quick, 50), 50)
    together = await costs(client, asyncio.gather(*(tasks.quick.delay(number) for number in range(100))), 100)
    many = await costs(client, tasks.quick.delay_many([(number,) for number in range(1000)]), 1000)

    assert (alone.commands, alone.sends, alone.reads) == (3, 1, 1)  # one script, which pushes and says "pending"
    assert together.sends == 1 / 100
    assert many.sends == 5 / 1000
    for shared in (together, many):  # the server reads 16 KiB at a time
        assert shared.commands <= 2.02
        assert shared.reads <= 0.1


async def test_what_queueing_a_unique_call_costs(client: Any, tasks: Any) -> None:
    await one_by_one(tasks.alone, 1)
    client.flushall()

    first = await costs(client, one_by_one(tasks.alone, 50), 50)
    same = await costs(client, one_by_one(tasks.alone, 50), 50)

    assert first.commands <= 5
    assert same.commands <= 3
    assert (first.reads, same.reads) == (1, 1)


# Waiting


async def test_waiting_for_a_result_costs_the_same_however_long_it_takes(client: Any) -> None:
    async def wait(seconds: float, count: int = 1) -> None:
        calls = [TaskResult.from_id(f"nobody-{number}") for number in range(count)]
        ended = await asyncio.gather(*(call.get(timeout=seconds) for call in calls), return_exceptions=True)
        assert {type(error) for error in ended} == {ResultTimeout}

    await wait(0.01)

    for seconds, count, commands in ((0.01, 1, 2), (1, 1, 2), (0.01, 100, 3)):  # to subscribe, and to look
        spent = await costs(client, wait(seconds, count))
        assert (spent.commands <= commands, spent.reads <= 2) == (True, True), spent


# Processes that have nothing to do


async def test_what_a_scheduler_costs_that_has_nothing_to_send(client: Any, made: tuple[Project, Any, str]) -> None:
    """It looks once a second here, and once in 5 s if the settings say nothing."""
    client.flushall()
    scheduler = made[0].start("core", "scheduler", "start")
    await asyncio.to_thread(scheduler.wait_for, "Acquired lock")
    await costs(client, asyncio.sleep(1))

    spent = await costs(client, asyncio.sleep(3))

    assert scheduler.stop() == 0
    ticks = spent.sends  # each begins with a script, which renews its lock
    assert ticks / spent.seconds <= 1.4
    assert spent.commands / ticks <= 12.9
    assert spent.reads / ticks <= 3.9


@pytest.mark.usefixtures("worker")
async def test_what_a_worker_costs_that_has_nothing_to_run(client: Any) -> None:
    """It looks once a second, and renews its lease every 5 s."""
    spent = await costs(client, asyncio.sleep(3))

    assert spent.commands / spent.seconds <= IDLE_COMMANDS
    assert spent.reads / spent.seconds <= IDLE_READS


# Calls that run


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("name", "options", "commands", "reads"),
    [
        ("quick", {}, 18.9, 4.5),
        ("alone", {}, 23.9, 4.5),
        ("quick", {"countdown": 0.1}, 42.5, 5.5),
        ("again", {}, 55, 8.5),
    ],
    ids=["a call", "a unique call", "a call with a countdown", "a call that is tried twice"],
)
async def test_what_a_lone_call_costs_from_queueing_to_its_result(
    client: Any, tasks: Any, name: str, options: dict[str, float], commands: float, reads: float
) -> None:
    called, args = getattr(tasks, name).options(**options), () if name == "again" else (1,)
    await back_to_back(called, 1, *args)
    calls = 10 if options or name == "again" else 50

    spent = await costs(client, back_to_back(called, calls, *args), calls)

    waited = spent.seconds / calls  # with its countdown, or between two attempts
    assert spent.commands <= commands + waited * IDLE_COMMANDS
    assert spent.reads <= reads + waited * IDLE_READS


def test_what_a_call_costs_of_many_that_wait(client: Any, tasks: Any, worker: Process) -> None:
    """6 commands and 0.2 round trips at most are the aim; it takes 2.1 and 0.04."""
    crew = Crew(client, "default", worker)
    forget(client)
    crew.stand_still()
    before = announced(client)
    try:
        spent = drain(crew, lambda: tasks.quick.delay_many_sync([(1,)] * 2000), 2000)
    finally:
        crew.go_on()

    # Those that a busy machine made wait for so long that they were stored as started were stored and announced twice.
    started = (announced(client) - before) / 2000 - 1
    assert spent.commands - 2 * started <= 2.6
    assert spent.trips <= 0.15


def announced(client: Any) -> int:
    """States that were stored so far."""
    return int(client.info("commandstats").get("cmdstat_publish", {"calls": 0})["calls"])
