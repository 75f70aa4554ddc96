"""How a worker stops: what runs finishes or goes back to its queue, and nothing is left behind."""

import signal
import time
from pathlib import Path

import pytest
from marks import core_transport
from redis import Redis
from support import Process, Project, held, wait_until

# What runs for long when it is begun for the first time, and not at all when it is run again.
TASKS = """
import asyncio
import time

from core.tasks import task


def begun(file):
    with open(file, "a") as marks:
        marks.write("begun\\n")
    with open(file) as marks:
        return len(marks.readlines())


@task
async def long_at_first(file: str):
    if begun(file) == 1:
        await asyncio.sleep(60)


@task
def long_at_first_sync(file: str):
    if begun(file) == 1:
        time.sleep(60)


@task
async def quick(file: str):
    begun(file)


@task
async def two_seconds(file: str):
    begun(file)
    await asyncio.sleep(2)
"""


@pytest.fixture
def stopping(fresh: Project) -> Project:
    """The example project with tasks that show how they were stopped."""
    fresh.write("src/apps/stopping/tasks.py", TASKS)
    return fresh


def call(project: Project, *calls: str) -> list[str]:
    """Make these calls from a process inside the project and return their ids."""
    lines = "".join(f"    print((await {line}).id)\n" for line in calls)
    made = project.caller(f"import asyncio\nfrom src.apps.stopping.tasks import *\nasync def main():\n{lines}\n"
                          "asyncio.run(main())")  # fmt: skip
    assert made.returncode == 0, made.stderr
    return list(made.stdout.split())


def waiting(project: Project) -> tuple[int, int]:
    """How many messages are in the default queue, and how many some worker holds."""
    with Redis(unix_socket_path=str(project.root / ".core/broker.sock")) as client:
        return int(client.llen("default")), len(held(client))


def marks(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def left_behind(worker: Process) -> list[str]:
    """The processes of the worker's session that still run."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == worker.pid and state != "Z":
                left.append((process / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue  # it has ended meanwhile
    return left


def assert_gone(worker: Process) -> None:
    wait_until(lambda: not left_behind(worker), 10, "nothing of the worker runs any more")


def test_a_first_signal_lets_what_runs_finish_and_begins_nothing_more(
    stopping: Project, pool: str, tmp_path: Path
) -> None:
    worker = stopping.worker("--pool", pool, "--concurrency", "2")
    files = [tmp_path / name for name in "abc"]
    ids = call(stopping, *(f"two_seconds.delay({str(file)!r})" for file in files))
    wait_until(lambda: sum(map(marks, files)) == 2, 20, "two calls run")

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    text = worker.text()
    assert "stopping: 2 running calls may finish within 25 s; again to quit now" in text
    assert [text.count(f"[{id}] success in ") for id in ids] == [1, 1, 0]
    assert waiting(stopping) == (1, 0)
    assert_gone(worker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_second_signal_quits_and_puts_back_what_is_unfinished(
    stopping: Project, pool: str, number: signal.Signals, tmp_path: Path
) -> None:
    """What runs, what waits behind it and what waits for its time: all of it is in the queue again."""
    worker = stopping.worker("--pool", pool, "--concurrency", "2")
    files = [tmp_path / "async", tmp_path / "sync"]
    call(
        stopping,
        f"long_at_first.delay({str(files[0])!r}, countdown=0)",
        f"long_at_first_sync.delay({str(files[1])!r})",
        f"long_at_first.delay({str(tmp_path / 'behind')!r})",
        f"long_at_first.delay({str(tmp_path / 'later')!r}, countdown=600)",
    )
    wait_until(lambda: sum(map(marks, files)) == 2, 20, "both calls run")

    worker.signal(number)
    worker.wait_for("stopping: ")
    again = time.monotonic()
    worker.signal(number)
    code = worker.wait(10)

    assert code == 130
    assert time.monotonic() - again < 4  # promised are 2 s
    assert waiting(stopping) == (4, 0)
    assert "a second signal: quit, 2 unfinished calls put back" in worker.text()
    assert "Traceback" not in worker.text()
    assert_gone(worker)


def test_after_the_grace_time_unfinished_calls_go_back_and_the_next_worker_runs_them(
    stopping: Project, pool: str, tmp_path: Path
) -> None:
    worker = stopping.worker("--pool", pool, "--concurrency", "2", TASK_SHUTDOWN_TIMEOUT="1")
    files = [tmp_path / "async", tmp_path / "sync"]
    ids = call(stopping, f"long_at_first.delay({str(files[0])!r})", f"long_at_first_sync.delay({str(files[1])!r})")
    wait_until(lambda: sum(map(marks, files)) == 2, 20, "both calls run")

    worker.signal(signal.SIGTERM)

    assert worker.wait(15) == 0
    assert "1 s passed: quit, 2 unfinished calls put back" in worker.text()
    assert "Traceback" not in worker.text()
    assert_gone(worker)
    assert waiting(stopping) == (2, 0)
    successor = stopping.worker("--pool", pool, "--concurrency", "2")
    for id in ids:
        successor.wait_for(f"[{id}] success in ")
    assert [marks(file) for file in files] == [2, 2]


@core_transport
def test_a_call_that_waits_for_its_time_survives_the_worker_that_holds_it(
    stopping: Project, pool: str, tmp_path: Path
) -> None:
    """No worker holds it meanwhile: it is parked in Redis."""
    worker = stopping.worker("--pool", pool, "--concurrency", "2")
    due = time.monotonic() + 4
    [id] = call(stopping, f"quick.delay({str(tmp_path / 'later')!r}, countdown=4)")
    wait_until(lambda: waiting(stopping) == (0, 0), 20, "it is parked")

    assert worker.stop() == 0
    assert waiting(stopping) == (0, 0)
    successor = stopping.worker("--pool", pool, "--concurrency", "2")
    wait_until(lambda: marks(tmp_path / "later"), 20, "it runs")

    assert time.monotonic() > due
    successor.wait_for(f"[{id}] success in ")
    assert marks(tmp_path / "later") == 1


def test_celerys_own_command_stops_in_the_same_way(stopping: Project, tmp_path: Path) -> None:
    worker = stopping.start("celery", "-A", "core", "worker", "-l", "info", "-c", "1", "-P", "threads")
    worker.wait_for("serving ")
    call(stopping, f"long_at_first.delay({str(tmp_path / 'file')!r})")
    wait_until(lambda: marks(tmp_path / "file"), 20, "the call runs")

    worker.signal(signal.SIGTERM)
    worker.wait_for("stopping: 1 running call may finish")
    worker.signal(signal.SIGTERM)

    assert worker.wait(10) == 130
    assert waiting(stopping) == (1, 0)
