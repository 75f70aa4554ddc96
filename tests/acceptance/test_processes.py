"""A worker of several processes: each a Celery node of its own, started again when it dies, and stopped together."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from marks import core_transport
from redis import Redis
from support import Process, Project, held, project, redis_server, wait_until

TASKS = """
import asyncio, os
from core.tasks import task


@task
async def naps(file: str, seconds: float, again: float = 0) -> None:
    '''Sleep for *seconds* the first time, and for *again* when it is run again.'''
    with open(file, "a") as marks:
        print(os.getpid(), file=marks)
    with open(file) as marks:
        await asyncio.sleep(seconds if len(marks.readlines()) == 1 else again)
"""
TWO = ("--pool", "asyncio", "--processes", "2", "--concurrency", "5")


class World:
    """A project on a Redis of its own, with a lease of two seconds."""

    def __init__(self, made: Project, url: str) -> None:
        self.project = made
        self.redis = Redis.from_url(url)
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.environment |= {"REDIS_URL": url, "TASK_LEASE": "2"}

    def worker(self) -> Process:
        """Start a worker of two processes and wait until both serve."""
        return self.project.worker(*TWO)

    def call(self, file: Path, seconds: float) -> str:
        """Queue a call, wait until it runs, and return its id."""
        code = f"from src.tasks import naps\nprint(naps.delay_sync({str(file)!r}, {seconds}).id)"
        done = self.project.caller(code)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: pids(file), 20, "the call runs")
        return str(done.stdout.strip())

    def waiting(self) -> tuple[int, int]:
        """How many messages are in the queue, and how many some worker holds.

        Where two processes end in one moment, what one gives back may have been set down for the other: the next take
        of any worker begins there. A connection that its process has left behind may still move it.
        """
        with self.redis.pipeline() as both:
            both.llen("default")
            both.llen("core-next-default")
            return sum(both.execute()), len(held(self.redis))


@contextmanager
def a_world() -> Iterator[World]:
    with redis_server() as (url, _), project(None) as made:
        world = World(made, url)
        yield world
        world.redis.close()


@pytest.fixture
def world() -> Iterator[World]:
    with a_world() as made:
        yield made


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[World, Process]]:
    """A worker that several tests look at."""
    with a_world() as made:
        yield made, made.worker()


def pids(file: Path) -> list[int]:
    """The processes that have begun a call."""
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def session(worker: Process) -> dict[int, int]:
    """The processes of a worker that run, each with its parent."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, leader = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue  # it has ended meanwhile
        if int(leader) == worker.pid and state != "Z":
            found[int(process.name)] = int(parent)
    return found


def nodes(worker: Process) -> set[int]:
    return {pid for pid, parent in session(worker).items() if parent == worker.pid}


def test_one_line_says_that_all_processes_serve(running: tuple[World, Process]) -> None:
    assert re.findall(r"serving .*", running[1].text()) == ["serving default · 5 at once · asyncio, 2 processes"]


def test_a_worker_that_runs_as_root_says_so_once(running: tuple[World, Process]) -> None:
    text = running[1].text()
    assert text.count("WARNING this worker runs as root") == (os.geteuid() == 0)
    assert "SecurityWarning" not in text


def test_the_calls_at_once_are_spread_over_the_processes(running: tuple[World, Process]) -> None:
    world, _ = running

    asked = world.project.run("celery", "-A", "core", "inspect", "--json", "--timeout", "3", "stats")

    pools = [answer["pool"] for answer in json.loads(asked.stdout).values()]
    assert sorted(pool["max-concurrency"] for pool in pools) == [2, 3]


def test_a_name_that_is_given_is_numbered_and_options_of_celery_are_for_each_process(
    running: tuple[World, Process],
) -> None:
    """Two nodes of one name answer for each other."""
    world, _ = running
    worker = world.project.worker(*TWO, "--", "-n", "mail@%h", "-c", "7")

    asked = world.project.run("celery", "-A", "core", "inspect", "--json", "--timeout", "3", "stats")

    answers = json.loads(asked.stdout)
    at_once = {name.partition("@")[0]: answer["pool"]["max-concurrency"] for name, answer in answers.items()}
    assert {"mail-1": 7, "mail-2": 7}.items() < at_once.items()
    assert worker.stop() == 0


def test_each_process_is_a_celery_node_of_its_own_name(running: tuple[World, Process]) -> None:
    world, worker = running

    asked = world.project.run("celery", "-A", "core", "inspect", "--json", "--timeout", "3", "ping")

    answers = json.loads(asked.stdout)
    assert list(answers.values()) == [{"ok": "pong"}] * 2
    assert {name.partition("@")[0] for name in answers} == {f"worker-{pid}" for pid in nodes(worker)}


def test_a_worker_of_processes_forks_before_anything_runs_in_it(running: tuple[World, Process]) -> None:
    """A thread that a fork meets may hold a lock, which nobody releases in the child."""
    assert "threads run before the fork" not in running[1].text()


@core_transport
def test_a_process_that_was_killed_is_started_again_and_its_call_runs_again(
    running: tuple[World, Process], tmp_path: Path
) -> None:
    world, worker = running
    before = nodes(worker)
    id = world.call(tmp_path / "file", 60)
    [killed] = pids(tmp_path / "file")

    os.kill(killed, signal.SIGKILL)

    worker.wait_for(f"(pid {killed}) died of SIGKILL")
    worker.wait_for(f"[{id}] success in ")
    assert len(pids(tmp_path / "file")) == 2
    wait_until(lambda: len(nodes(worker)) == 2, 10, "there are two processes again")
    assert len(nodes(worker) & before) == 1


def test_a_first_signal_lets_what_runs_finish(world: World, tmp_path: Path) -> None:
    worker = world.worker()
    id = world.call(tmp_path / "file", 1.5)

    worker.signal(signal.SIGTERM)

    assert worker.wait(20) == 0
    assert worker.text().count(f"[{id}] success in ") == 1
    assert world.waiting() == (0, 0)
    assert session(worker) == {}


def test_a_second_ctrl_c_quits_and_puts_back_what_runs(world: World, tmp_path: Path) -> None:
    """A terminal sends each to the whole process group, and each process counts it once."""
    worker = world.worker()
    world.call(tmp_path / "file", 60)
    os.killpg(worker.pid, signal.SIGINT)
    worker.wait_for("stopping: 1 running call may finish")
    assert worker.popen.poll() is None

    os.killpg(worker.pid, signal.SIGINT)
    began = time.monotonic()

    assert worker.wait(10) == 130
    assert time.monotonic() - began < 2
    assert world.waiting() == (1, 0)
    assert session(worker) == {}


def test_processes_whose_supervisor_was_killed_stop_by_themselves(world: World, tmp_path: Path) -> None:
    worker = world.worker()
    world.call(tmp_path / "file", 60)

    worker.signal(signal.SIGKILL)

    wait_until(lambda: not session(worker), 5, "every process is gone")
    assert world.waiting() == (1, 0)


@pytest.mark.parametrize(
    ("options", "tasks", "said"),
    [
        (("--", "--autoscale", "4,1"), TASKS, "--autoscale is not for the asyncio pool"),
        (("--", "--no-such-option"), TASKS, "No such option '--no-such-option'"),
        ((), "import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
    ],
    ids=["in each process", "an option", "before the fork"],
)
def test_what_cannot_work_ends_with_exit_code_2_and_is_not_tried_again(
    world: World, options: tuple[str, ...], tasks: str, said: str
) -> None:
    world.project.write("src/tasks.py", tasks)

    done = world.project.run("core", "runworker", *TWO, *options)

    assert done.returncode == 2, done.stderr
    assert done.stderr.count(said) == (2 if "--autoscale" in options else 1)
    assert "Traceback" not in done.stderr
