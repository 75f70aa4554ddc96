"""A loop that is blocked: the log names who does it, and a worker in which it stays so gives up."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from marks import core_transport
from redis import Redis
from support import Process, Project, project, redis_server, wait_until

TASKS = """
import asyncio
import os
import time
from pathlib import Path

from celery.signals import task_prerun

from core.tasks import task


@task
async def blocks(seconds: float, secret: str) -> None:
    time.sleep(seconds)  # here


@task
async def starts_one_that_blocks(seconds: float) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(child(seconds))


async def child(seconds: float) -> None:
    time.sleep(seconds)  # in a child


@task
async def follows_a_slow_receiver() -> None: ...


@task_prerun.connect
def slow_receiver(sender=None, **_):
    if sender.name.endswith(".follows_a_slow_receiver"):
        time.sleep(0.6)  # in a receiver


@task
async def blocks_for_ever_at_first(file: str) -> None:
    path = Path(file)
    if not path.exists():
        path.touch()
        time.sleep(600)


@task(timeout=None)
async def waits(seconds: float) -> None:
    await asyncio.sleep(seconds)
"""
CALLER = """
import asyncio
import json

from src.tasks import blocks, follows_a_slow_receiver, starts_one_that_blocks


async def main():
    ids = {}

    async def run(name, call):
        result = await call
        ids[name] = result.id
        await result.get(timeout=20)

    await run("quick", blocks.delay(0.2, "the secret"))
    await run("long", blocks.delay(2.8, "the secret"))
    await run("child", starts_one_that_blocks.delay(0.6))
    await run("receiver", follows_a_slow_receiver.delay())
    print(json.dumps(ids))


asyncio.run(main())
"""
LEASE, STUCK_AFTER = 1, 2
on_asyncio = pytest.mark.parametrize("world", ["asyncio"], indirect=True)


@dataclass
class World:
    """A project with a Redis of its own, and a worker that has run calls which block its loop."""

    made: Project
    redis: Any
    pool: str
    worker: Process
    ids: dict[str, str]

    def sits(self, name: str) -> list[str]:
        """What the log says of places where this call blocked the loop."""
        entries = self.worker.text().split("WARNING the event loop has not turned for ")[1:]
        return [entry for entry in entries if f"[{self.ids[name]}] sits here:" in entry.partition("\n")[0]]


@pytest.fixture(scope="module", params=["asyncio", "threads"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with redis_server() as (url, _), project(None) as made, Redis.from_url(url) as redis:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.environment |= {
            "REDIS_URL": url,
            "TASK_LEASE": str(LEASE),
            "TASK_WORKER_STUCK_AFTER": str(STUCK_AFTER),
            "TASK_SLOW_CALLBACK": "0.4",
        }
        worker = made.worker("--pool", request.param, "--concurrency", "4")
        called = made.caller(CALLER)
        assert called.returncode == 0, called.stderr + worker.text()
        yield World(made, redis, request.param, worker, json.loads(called.stdout))


def test_the_log_names_the_call_that_blocks_and_the_line_of_its_code(world: World) -> None:
    [entry] = world.sits("long")
    first, *stack = entry.splitlines()[:3]
    file, line = world.made.root / "src/tasks.py", TASKS.splitlines().index("    time.sleep(seconds)  # here") + 1

    assert first == f"0.{first[2]} s: src.tasks.blocks[{world.ids['long']}] sits here:"
    assert stack == [f'  File "{file}", line {line}, in blocks', "    time.sleep(seconds)  # here"]


def test_the_log_says_when_the_loop_goes_on(world: World) -> None:
    said = re.findall(re.escape(f"src.tasks.blocks[{world.ids['long']}]: the loop went on after ") + r"([\d.]+) s\n",
                      world.worker.text())  # fmt: skip

    assert len(said) == 1
    assert 2.6 < float(said[0]) < 3.5


def test_what_blocks_for_less_is_not_named(world: World) -> None:
    assert world.sits("quick") == []


def test_a_task_that_a_body_has_started_is_named_after_its_call(world: World) -> None:
    [entry] = world.sits("child")

    assert "starts_one_that_blocks[" in entry
    assert "# in a child" in entry


def test_a_signal_receiver_is_named_after_its_call_where_it_runs_on_the_loop(world: World) -> None:
    entries = world.sits("receiver")

    assert len(entries) == (world.pool == "asyncio")
    assert all("in slow_receiver\n    time.sleep(0.6)  # in a receiver" in entry for entry in entries)


def test_arguments_are_not_in_the_log(world: World) -> None:
    assert "the secret" not in world.worker.text()


def test_a_body_with_time_left_may_block_the_loop_for_longer_than_a_worker_may_be_stuck(world: World) -> None:
    """It was called before."""
    assert world.worker.popen.poll() is None


@on_asyncio
def test_the_lag_is_in_the_statistics(world: World) -> None:
    said = world.made.run("celery", "-A", "core", "inspect", "stats", "--json")
    assert said.returncode == 0, said.stderr
    [stats] = json.loads(said.stdout).values()

    lag = stats["pool"]["loop-lag"]

    assert 2.6 < lag["longest"] < 3.5
    assert 0 <= lag["last"] < 1


@core_transport
@on_asyncio
def test_a_worker_whose_loop_is_blocked_for_ever_gives_up(world: World, tmp_path: Path) -> None:
    """It keeps its lease until then. A call that only waits there has no say in it."""
    file = tmp_path / "begun"
    calls = f"""
from core.celery import app

app.send_task("src.tasks.waits", (600,), queue="default")
print(app.send_task("src.tasks.blocks_for_ever_at_first", ({str(file)!r},), queue="default", time_limit=1).id)
"""
    sent = world.made.caller(calls)
    assert sent.returncode == 0, sent.stderr
    id = sent.stdout.strip()
    wait_until(file.exists, 20, "the loop is blocked")
    ends = {world.redis.zrange("core-workers", 0, -1, withscores=True)[0][1]}

    def renewed() -> bool:
        ends.update(score for _, score in world.redis.zrange("core-workers", 0, -1, withscores=True))
        return len(ends) > 3

    wait_until(renewed, STUCK_AFTER, "the lease is renewed while the loop is blocked")
    assert world.worker.wait(STUCK_AFTER + 10) == 70
    assert f"blocks_for_ever_at_first[{id}] sits here" in world.worker.text()
    assert "this worker has not reacted for" in world.worker.text()

    survivor = world.made.worker("--pool", world.pool, "--concurrency", "4")
    survivor.wait_for(f"[{id}] success in ", LEASE + 12)
