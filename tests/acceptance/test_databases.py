"""Where Redis keeps things: one database or two, names with a prefix, a password."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from marks import (
    core_transport,
    one_pool,
    transport_pool,  # noqa: F401
)
from redis import Redis
from support import Project, held, project, redis_server, wait_until

TASKS = """
import asyncio
from pathlib import Path
from core.tasks import TaskError, current, task


@task
async def add(a: int, b: int) -> int:
    return a + b


@task(max_retries=1, retry_delay=0.1)
async def second_time() -> int:
    if current().attempt == 1:
        raise TaskError("once more")
    return current().attempt


@task
async def fails(text: str) -> None:
    raise ValueError(text)


@task
async def naps(file: str) -> None:
    Path(file).touch()
    await asyncio.sleep(30)
"""
CALLS = """
import asyncio, json
from pathlib import Path
from src.tasks import add, fails, naps, second_time
from core.tasks import TaskRevoked

async def main():
    said = [await (await add.delay(1, 2)).get(timeout=20), await (await second_time.delay()).get(timeout=20)]
    said.append(await (await add.delay(3, 4, countdown=0.5)).get(timeout=20))
    failing = await fails.delay("it cannot")
    try:
        await failing.get(timeout=20)
    except ValueError as error:
        said.append(str(error))
    later = await add.delay(5, 6, countdown=1)
    said.append(await later.cancel())
    running = await naps.delay({file!r})
    while not Path({file!r}).exists() or await running.status() != "running":
        await asyncio.sleep(0.02)
    said.append(await running.cancel())
    for call in (later, running):
        try:
            await call.get(timeout=20)
        except TaskRevoked:
            said.append("revoked")
    await (await add.delay(7, 8, countdown=1.5)).get(timeout=20)
    print(json.dumps([said, failing.id, later.id]))

asyncio.run(main())
"""
PREFIX = {
    "broker_transport_options": {"global_keyprefix": "shop:"},
    "result_backend_transport_options": {"global_keyprefix": "shop:"},
}


@contextmanager
def world(*options: str, **environment: str) -> Iterator[tuple[Project, str]]:
    with redis_server(*options) as (url, _), project(None) as made:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.environment |= {"REDIS_URL": url} | {k: v.replace("URL", url) for k, v in environment.items()}
        yield made, url


def works(made: Project, pool: str, file: Path) -> tuple[str, str]:
    """Make every kind of call; return the id of the one that failed and of the one that was cancelled early."""
    worker = made.worker("--pool", pool, "--concurrency", "2")
    done = made.caller(CALLS.format(file=str(file)))
    assert done.returncode == 0, done.stderr + worker.text()
    said, failed, cancelled = json.loads(done.stdout)
    assert said == [3, 2, 7, "it cannot", True, True, "revoked", "revoked"]
    assert f"[{cancelled}] success" not in worker.text()
    assert worker.stop() == 0
    return failed, cancelled


@pytest.mark.parametrize("case", ["one", "two", "prefix"])
def test_every_kind_of_call_works_wherever_things_are(pool: str, case: str, tmp_path: Path) -> None:
    environment = {
        "one": {},
        "two": {"TASK_RESULT_BACKEND_URL": "URL1"},  # database 01
        "prefix": {"CELERY": json.dumps(PREFIX)},
    }[case]
    with world(**environment) as (made, url), Redis.from_url(url) as client:
        failed, _ = works(made, pool, tmp_path / "marks")

        prefix = b"shop:" if case == "prefix" else b""
        if "TEST_TRANSPORT" not in made.environment:
            wait_until(lambda: client.zscore(prefix + b"core-failed", failed), 5, "the failed call is listed")
        results = Redis.from_url(url + "1" if case == "two" else url)
        assert results.get(prefix.decode() + f"celery-task-meta-{failed}")
        results.close()
        assert not held(client)
        if case == "prefix":
            others = {key for key in client.scan_iter() if not key.startswith((b"shop:", b"_kombu"))}
            assert others == set()


def test_a_password_is_asked_for(pool: str, tmp_path: Path) -> None:
    with world("--requirepass", "geheim", REDIS_URL="URL") as (made, url):
        made.environment["REDIS_URL"] = url.replace("redis://", "redis://:geheim@")
        works(made, pool, tmp_path / "marks")


@core_transport
def test_a_full_redis_stops_nobody_for_good(pool: str, tmp_path: Path) -> None:
    """With `noeviction` it refuses to store; what runs meanwhile is told to it afterwards."""
    with world() as (made, url), Redis.from_url(url) as client:
        worker = made.worker("--pool", pool, "--concurrency", "2")
        code = "import asyncio\nfrom src.tasks import add\nasyncio.run(add.delay(1, 2))"
        assert made.caller(code).returncode == 0
        worker.wait_for("success in")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        refused = made.caller(code)
        client.config_set("maxmemory", "0")
        assert made.caller(code).returncode == 0

        assert "PublishError" in refused.stderr
        wait_until(lambda: worker.text().count("success in") == 2, 20, "the next call runs")
        assert worker.popen.poll() is None


@one_pool
def test_a_message_of_high_priority_overtakes_and_queues_take_turns(pool: str, tmp_path: Path) -> None:
    with world() as (made, _):
        made.write("src/tasks.py", TASKS + "\n\n@task\nasync def mark(file: str, text: str) -> None:\n"
                   "    with open(file, 'a') as marks:\n        marks.write(text + ' ')\n")  # fmt: skip
        file = tmp_path / "order"
        code = f"""
import asyncio
from src.tasks import mark

async def main():
    for i in range(4):
        await mark.delay({str(file)!r}, f"low{{i}}", priority=9)
        await mark.delay({str(file)!r}, f"one{{i}}", priority=0)
    for i in range(4):
        await mark.delay({str(file)!r}, f"two{{i}}", priority=0, queue="second")

asyncio.run(main())
"""
        made.environment["TASK_QUEUES"] = "second"
        done = made.caller(code)
        assert done.returncode == 0, done.stderr
        made.worker("--pool", pool, "--concurrency", "1")
        order = wait_until(lambda: len(text := file.read_text().split()) == 12 and text if file.exists() else None, 20,
                           "all ran")  # fmt: skip

        assert sorted(order[:8]) == [f"{name}{i}" for name in ("one", "two") for i in range(4)]
        assert order[8:] == ["low0", "low1", "low2", "low3"]
        assert {order[0][:3], order[1][:3]} == {"one", "two"}


@one_pool
async def test_a_second_queue_costs_no_waiting(pool: str) -> None:
    """Each has a connection that waits for it; none is asked in turns."""
    with world(TASK_QUEUES="second,third") as (made, _):
        made.worker("--pool", pool, "--concurrency", "1")
        code = """
import asyncio, statistics, time
from src.tasks import add

async def main():
    took = []
    for i in range(12):
        began = time.perf_counter()
        await (await add.delay(1, 2, queue=("default", "second", "third")[i % 3])).get(timeout=20)
        took.append(time.perf_counter() - began)
    print(statistics.median(took[3:]))

asyncio.run(main())
"""
        done = await asyncio.to_thread(made.caller, code)

        assert done.returncode == 0, done.stderr
        assert float(done.stdout) < 0.2  # kombu's own poll would cost up to a second, and a turn 0.2 s
