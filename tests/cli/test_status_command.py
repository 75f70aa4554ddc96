"""What people ask of a worker that runs: `core status`, `health`, `tasks run --wait` and `cancel`."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import Process, Project, project, redis_server, wait_until

pytestmark = pytest.mark.timeout(180)


class World:
    """A worker of two processes, and its Redis."""

    def __init__(self, made: Project, redis: Redis, server: Any, worker: Process) -> None:
        self.project, self.redis, self.server, self.worker = made, redis, server, worker

    def core(self, *words: str) -> Any:
        return self.project.run("core", *words)

    def files(self) -> list[Path]:
        return sorted((self.project.root / ".core/run").glob(f"worker-{self.worker.pid}-*"))

    def grow_old(self) -> None:
        for file in self.files():
            os.utime(file, (0, 0))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with redis_server() as (url, server), Redis.from_url(url) as redis, project() as made:
        made.environment["REDIS_URL"] = url
        options = ("--queue", "default", "--concurrency", "4", "--processes", "2")
        worker = made.worker(*options, TASK_WORKER_PROCESSES="2")
        yield World(made, redis, server, worker)


def test_a_call_runs_and_its_result_is_printed_as_json(world: World) -> None:
    done = world.core("tasks", "run", "echo", "--kwargs", '{"value": {"a": [1, null]}}', "--wait", "--timeout", "20")

    assert (done.returncode, json.loads(done.stdout)) == (0, {"a": [1, None]})


def test_a_call_that_failed_exits_1_with_its_error_and_the_workers_traceback(world: World) -> None:
    done = world.core("tasks", "run", "fails_sync", "--args", '["so it is"]', "--wait")

    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback in the worker:" in done.stderr
    assert "src/apps/probe/tasks.py" in done.stderr
    assert done.stderr.splitlines()[-1] == "Error: OwnError: ('so it is', 7)"


def test_arguments_are_read_as_the_signature_says(world: World) -> None:
    wire = json.dumps({"day": "2026-11-28", "price": "1.50"})

    done = world.core("tasks", "run", "typed", "--kwargs", wire, "--wait")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kinds"] == {"day": "date", "price": "Decimal"}


def test_status_and_queues_tell_of_what_runs_until_it_is_cancelled(world: World) -> None:
    call_id = world.core("tasks", "run", "nap", "--args", "[60]").stdout.strip()
    other = world.core("tasks", "run", "send_urgent_notification", "--args", '[1, "x"]', "--countdown", "600")
    wait_until(lambda: b'"STARTED"' in (world.redis.get(f"celery-task-meta-{call_id}") or b""), 20, "it runs")

    workers = json.loads(world.core("status", "--json").stdout)
    told = world.core("status")
    queues = {queue["name"]: queue for queue in json.loads(world.core("queues", "--json").stdout)}

    assert [(w["pool"], w["concurrency"], w["queues"], w["reserved"]) for w in workers] == [
        ("asyncio", 2, ["default"], 0)
    ] * 2
    assert sum(w["running"] for w in workers) == 1
    assert all(w["name"].startswith(f"worker-{w['pid']}@") for w in workers)
    assert told.returncode == 0
    assert told.stdout.splitlines()[0].startswith(f"{workers[0]['name']}  asyncio  2 at once  ")
    assert (queues["default"]["held"], queues["default"]["workers"]) == (1, [w["name"] for w in workers])
    assert (queues["high-priority"]["waiting"], queues["high-priority"]["workers"]) == (1, [])
    assert (queues["high-priority"]["oldest"], queues["default"]["oldest"]) == (0, None), "its time has not come"

    cancelled = world.core("cancel", call_id, other.stdout.strip(), "never-heard-of")

    assert (cancelled.returncode, cancelled.stderr) == (0, "")
    assert cancelled.stdout.splitlines() == [
        f"{call_id} cancelled",
        f"{other.stdout.strip()} cancelled",
        "never-heard-of is not known here; if it comes, it does not run",
    ]
    wait_until(lambda: b'"REVOKED"' in (world.redis.get(f"celery-task-meta-{call_id}") or b""), 20, "it has ended")
    again = world.core("cancel", call_id)
    assert (again.returncode, again.stdout, again.stderr) == (1, "", f"Error: {call_id} has finished already.\n")


def test_a_process_that_hangs_makes_the_worker_unhealthy(world: World) -> None:
    assert len(world.files()) == 2
    assert world.core("health", "worker").stdout.startswith("healthy: 2 processes, the last turn ")
    pid = int(world.files()[1].read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        os.utime(world.files()[1], (0, 0))
        hangs = world.core("health", "worker")
    finally:
        os.kill(pid, signal.SIGCONT)

    assert (hangs.returncode, hangs.stdout) == (1, "")
    assert hangs.stderr.startswith(f"Error: unhealthy: the worker (pid {pid}) has not turned for ")
    wait_until(lambda: world.core("health", "worker").returncode == 0, 20, "it turns again")


def test_a_worker_without_its_redis_is_healthy_and_the_broker_is_not(world: World) -> None:
    assert world.core("health", "broker").stdout.startswith("healthy: ")
    world.server.kill()
    world.server.wait()
    wait_until(lambda: world.worker.text().count("Trying again") >= 2, 20, "both processes have seen it")

    world.grow_old()

    assert world.core("health", "broker").returncode == 69
    wait_until(lambda: world.core("health", "worker").returncode == 0, 20, "they turn")
    assert world.worker.stop() == 0
    gone = world.core("health", "worker")
    assert (gone.returncode, gone.stderr) == (3, "Error: No worker of this project runs on this host.\n")
    assert world.files() == []


def test_a_worker_that_waits_for_its_first_redis_is_healthy(world: World) -> None:
    waits = world.project.start("core", "runworker")
    waits.wait_for("Waiting for it")
    (file,) = (world.project.root / ".core/run").glob("worker-*")
    os.utime(file, (0, 0))

    wait_until(lambda: world.core("health", "worker").returncode == 0, 20, "it turns")
    assert waits.stop() == 0
    assert world.core("health", "worker").returncode == 3
