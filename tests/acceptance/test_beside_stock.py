"""A rolling change: stock workers and ours serve one queue side by side, and each finishes what the other left."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from marks import (
    core_transport,
    transport_pool,  # noqa: F401
)
from redis import Redis
from support import Project, held, project, redis_server, wait_until

TASKS = """
import time
from core.tasks import current, task


@task(timeout=None)
def mark(file: str, number: int, seconds: float = 0.0) -> int:
    time.sleep(seconds)
    with open(file, "a") as marks:
        marks.write(f"{number}\\n")
    return number
"""
CALLS = """
import asyncio, json
from src.tasks import mark

async def main():
    calls = [await mark.delay({file!r}, n, 0.01) for n in range({first}, {last})]
    print(json.dumps(sorted([await call.get(timeout=60) for call in calls])))

asyncio.run(main())
"""

CALLS_UNTIL = """
import asyncio
from pathlib import Path
from src.tasks import mark

async def main():
    calls = []
    while not Path({enough!r}).exists():
        calls.append(await mark.delay({file!r}, len(calls), 0.01))
        if len(calls) > 20:
            await calls[-20].get(timeout=60)
    assert [await call.get(timeout=60) for call in calls] == list(range(len(calls)))
    print(len(calls))

asyncio.run(main())
"""


@pytest.fixture
def world() -> Iterator[tuple[Project, Any]]:
    with redis_server() as (url, _), project(None) as made:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.environment |= {"REDIS_URL": url, "TASK_LEASE": "3"}
        with Redis.from_url(url) as client:
            yield made, client


def test_both_serve_one_queue_under_load(world: tuple[Project, Any], pool: str, tmp_path: Path) -> None:
    made, client = world
    workers = {
        transport: made.worker("--pool", pool, "--concurrency", "2", TASK_BROKER_TRANSPORT=transport)
        for transport in ("stock", "core")
    }
    file = tmp_path / "marks"

    done = made.caller(CALLS.format(file=str(file), first=0, last=300), timeout=90)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == list(range(300))
    assert sorted(map(int, file.read_text().split())) == list(range(300))
    for transport, worker in workers.items():
        assert worker.text().count("success in") > 20, f"{transport} took its share"
    wait_until(lambda: not client.hlen("unacked") and not held(client), 10, "everything is acknowledged")


@pytest.mark.parametrize("change", [("stock", "core"), ("core", "stock")], ids=["to ours", "back to stock"])
def test_one_takes_over_from_the_other_while_calls_come(
    world: tuple[Project, Any], pool: str, change: tuple[str, str], tmp_path: Path
) -> None:
    made, client = world
    old, new = change
    first = made.worker("--pool", pool, "--concurrency", "2", TASK_BROKER_TRANSPORT=old)
    file, enough = tmp_path / "marks", tmp_path / "enough"
    caller = made.start(sys.executable, "-c", CALLS_UNTIL.format(file=str(file), enough=str(enough)))
    wait_until(lambda: file.exists() and len(file.read_text().split()) > 50, 30, "the first one works")

    second = made.worker("--pool", pool, "--concurrency", "2", TASK_BROKER_TRANSPORT=new)
    wait_until(lambda: second.text().count("success in") > 20, 30, "the second one works beside it")
    assert first.stop() == 0
    before = second.text().count("success in")
    wait_until(lambda: second.text().count("success in") > before + 20, 30, "the second one works alone")
    enough.touch()

    assert caller.wait(60) == 0, caller.text()
    ran = [int(number) for number in file.read_text().split()]
    assert sorted(set(ran)) == list(range(int(caller.text().split()[-1])))
    # Celery's own consumer, as it stops, gives back what a process of its pool has just begun. Ours does not.
    assert len(ran) - len(set(ran)) <= (2 if old == "stock" else 0)
    wait_until(lambda: not client.hlen("unacked") and not held(client), 10, "everything is acknowledged")


@core_transport
def test_what_a_stock_worker_left_is_judged_by_its_own_timeout(world: tuple[Project, Any], tmp_path: Path) -> None:
    """Ours are judged by their lease, which is shorter."""
    made, client = world
    options = {"broker_transport_options": {"visibility_timeout": 6, "unacked_restore_interval": 1}}
    made.environment["CELERY"] = json.dumps(options)
    stock = made.worker("--pool", "threads", "--concurrency", "1", TASK_BROKER_TRANSPORT="stock")
    file = tmp_path / "marks"
    queued = made.caller(
        f"import asyncio\nfrom src.tasks import mark\nasyncio.run(mark.delay({str(file)!r}, 1, 8))", timeout=20
    )
    assert queued.returncode == 0, queued.stderr
    wait_until(lambda: client.hlen("unacked") == 1, 20, "it is held")
    stock.kill()

    made.worker("--pool", "threads", "--concurrency", "1")
    wait_until(lambda: held(client), 20, "ours takes it up")

    assert client.hlen("unacked") == 0
