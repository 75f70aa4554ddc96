"""Everything works for a user who has the rights in docs/security.md and no others."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError
from support import Project, project, redis_server, wait_until

PAGE = Path(__file__).parents[2] / "docs/security.md"
TASKS = """
import asyncio
from core.tasks import TaskError, current, periodic_task, task


@task(queue="emails", priority=3, retry_delay=0.1, max_retries=1)
async def add(a: int, b: int = 0, first: str = "") -> int:
    if first and current().attempt == 1:
        raise TaskError(first)
    return a + b


@task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@task(unique=True, unique_key=())
async def naps(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@task
async def fails() -> None:
    raise ValueError("no")


@periodic_task(interval=1, overlap=False)
async def tick() -> None: ...
"""
CALLS = """
import asyncio, json
from celery import chain, chord, group
from core.celery import app
from core.tasks import TaskRevoked
from src.tasks import add, fails, naps, total

async def main():
    first, second = await naps.delay(0.5), await naps.delay(0.5)
    later = await add.delay(1, countdown=60)
    said = {
        "unique": second.deduplicated and await second.get(timeout=30),
        "retry": await (await add.delay(1, 2, "once more")).get(timeout=30),
        "many": [await call.get(timeout=30) for call in await add.delay_many([(n,) for n in range(20)])],
        "countdown": await (await add.delay(5, countdown=0.3)).get(timeout=30),
        "cancelled": [await later.cancel(), await later.status()],
        "exists": await first.exists(),
    }
    running = await naps.delay(60)
    while await running.status() != "running":
        await asyncio.sleep(0.05)
    await running.cancel()
    try:
        await running.get(timeout=30)
    except TaskRevoked:
        said["stopped"] = True
    try:
        await (await fails.delay()).get(timeout=30)
    except ValueError:
        said["failed"] = True
    return said

said = asyncio.run(main())
for name, canvas in {
    "chain": chain(add.s(1, 2), add.s(3)), "group": group(add.s(1), add.s(2)),
    "chord": chord([add.s(1), add.s(2)], total.s()),
}.items():
    said[name] = canvas.delay().get(timeout=30)
said["thread"] = add.celery_task.apply_async((8,)).get(timeout=30)
print(json.dumps(said))
"""


def rights() -> list[str]:
    """What the page gives its user, as words for `ACL SETUSER`."""
    line = re.search(r"```acl\nuser shop (.*)\n```", PAGE.read_text())
    assert line
    return line[1].split()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Project, Any]]:
    with redis_server() as (url, _), project(None) as made, Redis.from_url(url, decode_responses=True) as admin:
        admin.execute_command("ACL", "SETUSER", "shop", *rights())
        admin.set("somebody-elses", "1")
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.write("pyproject.toml", '[project]\nname = "shop"\n')
        made.environment["REDIS_URL"] = url.replace("//", "//shop:a-long-password@")
        yield made, admin


@pytest.mark.parametrize(
    ("pool", "transport"), [("asyncio", "core"), ("prefork", "core"), ("threads", "core"), ("prefork", "stock")]
)
def test_calls_and_schedule_work(world: tuple[Project, Any], pool: str, transport: str) -> None:
    made, admin = world
    made.environment["TASK_BROKER_TRANSPORT"] = transport
    if transport == "stock":  # nothing is unique there
        made.write("src/tasks.py", TASKS.replace("unique=True, unique_key=()", "").replace(", overlap=False", ""))
    worker = made.worker("--pool", pool, "--concurrency", "4")
    scheduler = made.start("core", "scheduler", "start")

    done = made.caller(CALLS)

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.pop("unique") == (0.5 if transport == "core" else False)
    assert said.pop("cancelled")
    assert said == {
        "retry": 3, "many": list(range(20)), "countdown": 5, "exists": True, "stopped": True, "failed": True,
        "chain": 6, "group": [1, 2], "chord": 3, "thread": 8,
    }  # fmt: skip
    worker.wait_for("src.tasks.tick[")
    assert scheduler.stop() == 0
    assert worker.stop() == 0
    assert not _refused(admin)


def test_commands_work(world: tuple[Project, Any]) -> None:
    made, admin = world
    made.worker()
    made.start("core", "scheduler", "start").wait_for("Acquired lock")
    made.caller("from src.tasks import fails\nfails.delay_sync()")
    wait_until(lambda: admin.hlen("core-dead-calls"), 20, "it has failed")

    for words in (
        ("core", "scheduler", "status"), *(("core", "scheduler", do, "tick") for do in ("pause", "resume", "run")),
        ("core", "dead", "list"), ("core", "check"), ("core", "status"), ("core", "queues"),
        ("core", "health", "broker"), ("core", "purge", "--yes"),
        ("celery", "-A", "core", "inspect", "ping"), ("celery", "-A", "core", "inspect", "active"),
        ("celery", "-A", "core", "control", "enable_events"), ("celery", "-A", "core", "call", "src.tasks.fails"),
    ):  # fmt: skip
        told = made.run(*words)
        assert told.returncode == 0, (words, told.stdout, told.stderr)
    failed = json.loads(made.run("core", "dead", "list", "--json").stdout)
    assert made.run("core", "dead", "retry", failed[0]["id"]).returncode == 0
    assert made.run("core", "dead", "purge", "--all", "--yes").returncode == 0
    assert made.run("core", "scheduler", "stop").returncode == 0
    assert not _refused(admin)


def test_another_worker_takes_over_from_one_that_was_killed(world: tuple[Project, Any]) -> None:
    made, admin = world
    made.environment["TASK_LEASE"] = "2"
    first = made.worker()
    queued = made.caller("from src.tasks import naps\nprint(naps.delay_sync(4).id)").stdout.strip()
    wait_until(lambda: admin.get(f"celery-task-meta-{queued}") and "STARTED" in admin.get(f"celery-task-meta-{queued}"),
               20, "it runs")  # fmt: skip
    first.kill()
    second = made.worker()

    second.wait_for(f"{queued}] success", timeout=30)


def test_nothing_else_is_allowed(world: tuple[Project, Any]) -> None:
    made, admin = world
    with Redis.from_url(made.environment["REDIS_URL"]) as client:
        for words in (
            ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "SET", "dir", "/"), ("KEYS", "*"), ("ACL", "LIST"), ("SHUTDOWN",),
            ("CLIENT", "KILL", "TYPE", "normal"), ("REPLICAOF", "127.0.0.1", "1"), ("MONITOR",),
            ("GET", "somebody-elses"), ("DEL", "somebody-elses"), ("LPUSH", "other-queue", "x"),
            ("EVAL", "return redis.call('GET', 'somebody-elses')", "0"),
        ):  # fmt: skip
            with pytest.raises(ResponseError, match=r"(?i)permission|can't access"):
                client.execute_command(*words)
    assert admin.get("somebody-elses") == "1"


def test_a_worker_without_a_right_says_so_and_goes_on_when_it_has_it(world: tuple[Project, Any]) -> None:
    made, admin = world
    queued = made.caller("from src.tasks import total\nprint(total.delay_sync([1, 2]).id)").stdout.strip()
    admin.execute_command("ACL", "SETUSER", "shop", *rights(), "resetkeys", "~default*", "~celery-task-meta-*")
    worker = made.start("core", "runworker", TASK_WORKER_PROCESSES="1")
    worker.wait_for("does not give the user in REDIS_URL the rights that are needed")
    admin.execute_command("ACL", "SETUSER", "shop", *rights())

    worker.wait_for(f"{queued}] success")
    assert "Frequent restarts" not in worker.text()


def _refused(admin: Any) -> set[str]:
    """The keys and commands that the page's user was refused."""
    entries = admin.execute_command("ACL", "LOG")
    told = [entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True)) for entry in entries]
    return {entry["object"] for entry in told if entry["username"] == "shop"}
