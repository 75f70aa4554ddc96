"""How idle workers wait: each call wakes one of them, and what that one cannot take is for the others."""

from collections.abc import Iterator
from typing import Any

import pytest
from marks import core_transport
from redis import Redis
from support import Project, held, project, redis_server, wait_until

pytestmark = core_transport

TASKS = """
import asyncio
from core.tasks import task


@task
async def quick() -> None: ...


@task(queue="other")
async def naps(seconds: float) -> None:
    await asyncio.sleep(seconds)
"""
ONE_BY_ONE = """
import asyncio
from src.tasks import quick

async def main():
    for _ in range(40):
        await (await quick.delay()).get(timeout=10)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Project, Any]]:
    with redis_server() as (url, _), project(None) as made:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.environment |= {"REDIS_URL": url}
        client = Redis.from_url(url)
        yield made, client
        client.close()


def queue(made: Project, call: str) -> None:
    done = made.caller(f"from src.tasks import naps, quick\n{call}")
    assert done.returncode == 0, done.stderr


def test_a_call_wakes_one_of_the_workers_that_wait(world: tuple[Project, Any]) -> None:
    made, client = world
    worker = made.worker("--processes", "4", "--queue", "default")
    client.config_resetstat()

    done = made.caller(ONE_BY_ONE)

    # Forty take and forty tell of an end; the rest looks once a second, or renews a lease.
    assert done.returncode == 0, done.stderr
    assert 80 <= client.info("commandstats")["cmdstat_evalsha"]["calls"] <= 120
    assert worker.stop() == 0


def test_what_was_set_down_for_a_worker_that_is_gone_is_run(world: tuple[Project, Any]) -> None:
    made, client = world
    queue(made, "print(quick.delay_sync().id)")
    client.rename("default", "core-next-default")

    worker = made.worker("--queue", "default")

    wait_until(lambda: not client.exists("core-next-default"), 5, "it is taken")
    assert worker.stop() == 0
    assert client.llen("default") == 0


@pytest.mark.parametrize("pool", ["prefork", "asyncio"])
def test_a_full_worker_leaves_what_wakes_it_to_the_others(world: tuple[Project, Any], pool: str) -> None:
    """It has just begun with a call of one queue, and still waits for another queue."""
    made, client = world
    queue(made, "for _ in range(5): naps.delay_sync(0.5)\nfor _ in range(5): quick.delay_sync()")
    client.rename("other", "naps")
    client.rename("default", "calls")
    worker = made.worker("--pool", pool, "--concurrency", "1", "--queue", "default", "--queue", "other")

    for _ in range(5):
        wait_until(lambda: not held(client), 10, "it is idle")
        client.lmove("naps", "other", "RIGHT", "LEFT")
        wait_until(lambda: client.llen("other") + client.llen("core-next-other") == 0, 5, "it is full")
        client.lmove("calls", "default", "RIGHT", "LEFT")
        wait_until(lambda: client.llen("default") == 1, 0.3, "the call is for others")
        wait_until(lambda: client.llen("default") == 0, 5, "it has room again")
    assert worker.stop() == 0
