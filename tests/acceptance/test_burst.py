"""`core runworker --burst`: what was there has been worked off when it ends, and it ends then."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from marks import core_transport
from redis import Redis
from support import Project, free_port, project, redis_server, wait_until

TASKS = """
import asyncio, os
from core.tasks import TaskError, task


@task(queue="mail")
async def notes(file: str, seconds: float = 0.0) -> None:
    with open(file, "a") as marks:
        print(os.getpid(), file=marks)
    await asyncio.sleep(seconds)


@task
async def fans_out(file: str, count: int, seconds: float) -> None:
    await asyncio.sleep(1)  # in which whoever has nothing to do could leave
    for _ in range(count):
        await notes.delay(file, seconds)


@task(max_retries=1, retry_delay=600)
async def fails() -> None:
    raise TaskError("not today")


@task(max_retries=0)
async def fails_at_once() -> None:
    raise TaskError("never")
"""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Project, Any]]:
    """A project with a Redis of its own."""
    with redis_server() as (url, _), project(None) as made, Redis.from_url(url) as redis:
        made.write("src/tasks.py", TASKS)
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.environment |= {"REDIS_URL": url, "TASK_WORKER_PROCESSES": "1"}
        yield made, redis


@pytest.fixture
def world(served: tuple[Project, Any]) -> tuple[Project, Any]:
    served[1].flushall()
    return served


def call(made: Project, *calls: str) -> None:
    done = made.caller("\n".join(["from src.tasks import *", *calls]))
    assert done.returncode == 0, done.stderr


def burst(made: Project, *options: str, **environment: str) -> str:
    """What a worker logs that works off what there is."""
    ended = made.run("core", "runworker", "--burst", "--concurrency", "2", *options, **environment)
    assert ended.returncode == 0, f"{ended.returncode}\n{ended.stderr}"
    assert ended.stderr.count("nothing is left to do") == (2 if "2" in options else 1), ended.stderr
    return str(ended.stderr)


def left(made: Project, **environment: str) -> int:
    """How many calls are in the queues, for their time or for a worker; none is held."""
    found = json.loads(made.run("core", "queues", "--json", **environment).stdout)
    assert not any(queue["held"] for queue in found)
    return sum(queue["waiting"] + (queue["delayed"] or 0) for queue in found)


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("pool", "transport"),
    [("asyncio", "core"), ("threads", "core"), ("prefork", "stock")],
)
def test_it_ends_when_nothing_is_left_that_is_due(
    world: tuple[Project, Any], pool: str, transport: str, tmp_path: Path
) -> None:
    """What the calls have queued is run as well, failures are no failure of the worker, and what is not due stays."""
    made, file, stock = world[0], tmp_path / "marks", {"TASK_BROKER_TRANSPORT": transport}
    call(
        made, f"fans_out.delay_sync({str(file)!r}, 3, 0.1)", "fails_at_once.delay_sync()", "fails.delay_sync()",
        f"notes.options(countdown=600).delay_sync({str(file)!r})",
    )  # fmt: skip

    burst(made, "--pool", pool, **stock)

    assert len(lines(file)) == 3
    assert left(made, **stock) == 2  # the countdown and the next attempt
    if (pool, transport) not in (("asyncio", "core"), ("prefork", "stock")):
        return
    began = time.monotonic()
    burst(made, "--pool", pool, **stock)
    assert time.monotonic() - began < 20  # there is no grace time, no lease and no countdown that it waits for
    assert len(lines(file)) == 3


@core_transport
def test_processes_end_together_so_none_leaves_while_another_makes_work(
    world: tuple[Project, Any], tmp_path: Path
) -> None:
    made, file = world[0], tmp_path / "marks"
    call(made, f"fans_out.delay_sync({str(file)!r}, 6, 0.2)")

    burst(made, "--processes", "2")

    assert len(lines(file)) == 6
    assert len(set(lines(file))) == 2


@core_transport
def test_it_waits_for_the_calls_of_a_worker_that_was_lost(world: tuple[Project, Any], tmp_path: Path) -> None:
    """Where only bursts run, nobody else would give them back."""
    (made, redis), file = world, tmp_path / "marks"
    lease = {"TASK_LEASE": "1"}
    worker = made.worker(**lease)
    call(made, f"notes.delay_sync({str(file)!r}, 60)", f"notes.delay_sync({str(file)!r})")
    wait_until(lambda: len(lines(file)) == 2, 20, "both calls have begun")
    worker.kill()
    wait_until(lambda: redis.zcount("core-workers", "-inf", redis.time()[0]) == 1, 10, "its lease has ended")
    made.write("src/tasks.py", TASKS.replace("asyncio.sleep(seconds)", "asyncio.sleep(0)"))

    assert "was lost: 1 of its calls put back" in burst(made, **lease)

    assert len(lines(file)) == 3
    assert left(made) == 0


def test_it_waits_for_no_broker(world: tuple[Project, Any]) -> None:
    ended = world[0].run("core", "runworker", "--burst", REDIS_URL=f"redis://127.0.0.1:{free_port()}/0", timeout=20)

    assert ended.returncode == 69
    assert "Traceback" not in ended.stderr


def test_it_cannot_reload(world: tuple[Project, Any]) -> None:
    ended = world[0].run("core", "runworker", "--reload", CORE_RUNWORKER_BURST="1")

    assert ended.returncode == 2
    assert "--burst ends when nothing is left, and --reload never" in ended.stderr
