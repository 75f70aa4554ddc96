"""What a worker holds is its own for as long as it turns: leases, workers that are lost, and workers that are stuck."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from marks import (
    core_transport,
    one_pool,
    transport_pool,  # noqa: F401
)
from redis import Redis
from support import Process, Project, held, project, redis_server, wait_until

TASKS = """
import ctypes, os, signal, time
from pathlib import Path
from core.tasks import task


def note(file: str, line: str) -> None:
    with open(file, "a") as marks:
        marks.write(line + "\\n")


@task(timeout={timeout})
def blocks(file: str, seconds: float) -> float:
    note(file, "begun")
    time.sleep(seconds)
    note(file, "done")
    return seconds


@task
async def quick(file: str) -> str:
    note(file, "ran")
    return "ran"


@task
def kills_its_worker(file: str) -> None:
    note(file, "begun")
    os.killpg(0, signal.SIGKILL)


@task
def kills_its_process(file: str) -> None:
    note(file, "begun")
    os.kill(os.getpid(), signal.SIGKILL)
"""
STUCK = """
import time
from celery.signals import task_received

@task_received.connect
def hangs(request=None, **_):
    if "quick" in request.name and request.kwargs == {{}} and request.args[0].endswith("stuck"):
        time.sleep({seconds})
"""
LEASE = 2
pytestmark = core_transport


@pytest.fixture
def world() -> Iterator[tuple[Project, Any]]:
    """A project on a Redis of its own, with a lease of two seconds."""
    with redis_server() as (url, _), project(None) as made:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS.format(timeout="None"))
        made.environment |= {"REDIS_URL": url, "TASK_LEASE": str(LEASE)}
        with Redis.from_url(url) as client:
            yield made, client


def call(made: Project, *calls: str) -> list[str]:
    """Queue calls, and return their ids."""
    code = "import asyncio\nfrom src.tasks import *\n\nasync def main():\n" + "".join(
        f"    print((await {one}).id)\n" for one in calls
    )
    done = made.caller(code + "\nasyncio.run(main())")
    assert done.returncode == 0, done.stderr
    return list(done.stdout.split())


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def kill(worker: Process) -> None:
    """As `kill -9` of the whole worker does."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.popen.wait()


def test_what_a_killed_worker_held_runs_elsewhere(world: tuple[Project, Any], pool: str, tmp_path: Path) -> None:
    made, client = world
    first = made.worker("--pool", pool, "--concurrency", "1")
    file = tmp_path / "marks"
    [id] = call(made, f"blocks.delay({str(file)!r}, 1.5)")
    wait_until(lambda: lines(file) == ["begun"], 20, "the call runs")

    kill(first)
    began = time.monotonic()
    second = made.worker("--pool", pool, "--concurrency", "1")
    second.wait_for(f"[{id}] success in ", LEASE + 12)

    assert time.monotonic() - began < LEASE + 10
    assert lines(file) == ["begun", "begun", "done"]
    assert "was lost: 1 of its calls put back" in second.text()
    wait_until(lambda: not held(client), 5, "nothing is held any more")


def test_a_call_longer_than_the_lease_runs_once(world: tuple[Project, Any], pool: str, tmp_path: Path) -> None:
    made, _ = world
    workers = [made.worker("--pool", pool, "--concurrency", "1") for _ in range(2)]
    file = tmp_path / "marks"
    [id] = call(made, f"blocks.delay({str(file)!r}, {LEASE * 3})")

    wait_until(lambda: any(f"[{id}] success in " in worker.text() for worker in workers), 30, "the call is done")

    assert lines(file) == ["begun", "done"]


def test_a_call_that_kills_its_process_runs_three_times_and_is_set_aside(
    world: tuple[Project, Any], tmp_path: Path
) -> None:
    made, client = world
    worker = made.worker("--pool", "prefork", "--concurrency", "1")
    file = tmp_path / "marks"
    [id] = call(made, f"kills_its_process.delay({str(file)!r})")

    worker.wait_for(f"[{id}] from default was set aside: lost its worker 3 times")
    call(made, f"quick.delay({str(tmp_path / 'good')!r})")
    wait_until(lambda: lines(tmp_path / "good"), 20, "the next call runs")

    assert lines(file) == ["begun"] * 3
    assert client.zrange("core-dead", 0, -1) == [id.encode()]
    stored = wait_until(lambda: client.get(f"celery-task-meta-{id}"), 5, "its outcome is stored")
    assert b'"status": "FAILURE"' in stored


def test_a_call_that_kills_its_worker_runs_three_times_and_is_set_aside(
    world: tuple[Project, Any], pool: str, tmp_path: Path
) -> None:
    made, client = world
    file = tmp_path / "marks"
    [id] = call(made, f"kills_its_worker.delay({str(file)!r})")

    for number in range(1, 4):
        worker = made.worker("--pool", pool, "--concurrency", "1")
        wait_until(lambda: len(lines(file)) == number, LEASE + 12, f"it runs for time {number}")  # noqa: B023
        worker.popen.wait(10)
    survivor = made.worker("--pool", pool, "--concurrency", "1")
    survivor.wait_for(f"[{id}] from", LEASE + 12)

    assert lines(file) == ["begun"] * 3
    assert client.zrange("core-dead", 0, -1) == [id.encode()]


def stuck(made: Project, seconds: float) -> None:
    """Make the consumer of this project's workers hang for a while when it takes a certain call."""
    made.write("src/tasks.py", TASKS.format(timeout="1") + STUCK.format(seconds=seconds))


def test_a_worker_that_does_not_react_gives_up(world: tuple[Project, Any], pool: str, tmp_path: Path) -> None:
    made, _ = world
    stuck(made, 600)
    worker = made.worker("--pool", pool, "--concurrency", "2", TASK_WORKER_STUCK_AFTER="2")
    file = tmp_path / "stuck"
    call(made, f"quick.delay({str(file)!r})")

    assert worker.wait(20) == 70
    assert "has not reacted for" in worker.text()
    assert "in hangs" in worker.text()
    wait_until(lambda: not os.path.exists(f"/proc/{worker.pid}"), 5, "it is gone")
    stuck(made, 0)
    made.worker("--pool", pool, "--concurrency", "2")
    wait_until(lambda: lines(file), LEASE + 12, "its call runs elsewhere")


def test_a_consumer_that_hangs_for_a_while_keeps_its_calls(
    world: tuple[Project, Any], pool: str, tmp_path: Path
) -> None:
    """Longer than its lease, and shorter than `task_worker_stuck_after`."""
    made, _ = world
    stuck(made, LEASE * 2.5)
    workers = [made.worker("--pool", pool, "--concurrency", "2") for _ in range(2)]
    file = tmp_path / "stuck"
    [id] = call(made, f"quick.delay({str(file)!r})")

    wait_until(lambda: any(f"[{id}] success" in worker.text() for worker in workers), 20, "it ran")

    assert lines(file) == ["ran"]
    assert [worker.popen.poll() for worker in workers] == [None, None]


def test_time_for_which_a_worker_was_stopped_does_not_count(world: tuple[Project, Any], tmp_path: Path) -> None:
    made, _ = world
    worker = made.worker("--pool", "threads", "--concurrency", "2", TASK_WORKER_STUCK_AFTER="2")
    worker.signal(signal.SIGSTOP)
    ended = time.monotonic() + 4
    wait_until(lambda: time.monotonic() > ended, 6, "four seconds passed")  # the thing under test is time itself
    worker.signal(signal.SIGCONT)

    call(made, f"quick.delay({str(tmp_path / 'after')!r})")
    wait_until(lambda: lines(tmp_path / "after"), 20, "it works on")

    assert worker.popen.poll() is None


def test_a_revocation_outlives_the_workers(world: tuple[Project, Any], pool: str, tmp_path: Path) -> None:
    """Flower and `celery control revoke` tell the workers, and no worker that starts later."""
    made, client = world
    worker = made.worker("--pool", pool, "--concurrency", "1")
    file = tmp_path / "marks"
    [id] = call(made, f"quick.delay({str(file)!r}, countdown=5)")
    said = made.run("celery", "-A", "core", "control", "revoke", id)
    assert said.returncode == 0, said.stderr
    worker.stop()

    made.worker("--pool", pool, "--concurrency", "1")
    call(made, f"quick.delay({str(tmp_path / 'later')!r}, countdown=3)")
    wait_until(lambda: lines(tmp_path / "later"), 20, "a call that was due later ran")

    assert lines(file) == []
    assert client.ttl(f"core-cancelled-{id}") > 3600
    assert b'"status": "REVOKED"' in client.get(f"celery-task-meta-{id}")


def test_the_mark_of_a_cancellation_lives_as_long_as_its_countdown(world: tuple[Project, Any]) -> None:
    made, client = world
    made.worker("--pool", "threads", "--concurrency", "1")
    [id] = call(made, "quick.delay('/dev/null', countdown=30 * 86400)")
    wait_until(lambda: client.zcard("core-delayed") == 1, 20, "it is parked")

    done = made.caller(
        f"import asyncio\nfrom core.tasks import TaskResult\nprint(asyncio.run(TaskResult.from_id({id!r}).cancel()))"
    )

    assert done.stdout == "True\n", done.stderr
    assert client.ttl(f"core-cancelled-{id}") > 30 * 86400


@one_pool
def test_a_call_that_no_worker_knows_waits_for_one_that_does(
    world: tuple[Project, Any], pool: str, tmp_path: Path
) -> None:
    """A rolling deploy: the callers are new, and the first worker is old."""
    made, client = world
    made.environment["TASK_UNKNOWN_HOLD"] = "60"
    old = made.worker("--pool", pool, "--concurrency", "1")
    made.write(
        "src/tasks.py", TASKS.format(timeout="None") + "\n\n@task\ndef fresh(file: str) -> None: note(file, 'ran')\n"
    )
    [id] = call(made, f"fresh.delay({str(tmp_path / 'marks')!r})")
    old.wait_for(f"src.tasks.fresh[{id}] waits for another worker: no worker knows its task")

    made.worker("--pool", pool, "--concurrency", "1")
    wait_until(lambda: lines(tmp_path / "marks"), 20, "the new worker runs it")

    assert not client.zcard("core-dead")


@one_pool
def test_a_call_that_nobody_knows_for_too_long_is_set_aside(world: tuple[Project, Any], pool: str) -> None:
    made, client = world
    made.environment["TASK_UNKNOWN_HOLD"] = "1"
    worker = made.worker("--pool", pool, "--concurrency", "1")
    done = made.caller("from core.celery import app\nprint(app.send_task('src.tasks.nobody', queue='default').id)")
    assert done.returncode == 0, done.stderr
    id = done.stdout.strip()

    worker.wait_for(f"src.tasks.nobody[{id}] from default was set aside: no worker knows its task")

    assert client.zrange("core-dead", 0, -1) == [id.encode()]
    stored = wait_until(lambda: client.get(f"celery-task-meta-{id}"), 5, "its outcome is stored")
    assert b'"status": "FAILURE"' in stored
