"""Health is judged by files alone: who holds them, and when they were touched."""

import os
import re
import time
from pathlib import Path

import pytest

from core import health
from core.errors import CoreError, NotRunning
from core.pidfile import PidFile
from core.tasks import heartbeat


def begin(root: Path, number: int = 1, processes: int = 1, worker: int = 77) -> PidFile:
    return health.worker_file(root, worker, number, processes).acquire("The worker")


def age(file: PidFile, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(file.path, (moment, moment))


def test_nothing_runs_where_there_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match=r"No worker of this project runs on this host\."):
        health.worker(tmp_path, 60)
    with pytest.raises(NotRunning, match=r"No scheduler of this project runs on this host\."):
        health.scheduler(tmp_path / "scheduler.pid", 60)


def test_a_worker_is_healthy_as_long_as_it_touches_its_file(tmp_path: Path) -> None:
    file = begin(tmp_path)
    age(file, 70)
    with pytest.raises(CoreError, match=rf"the worker \(pid {os.getpid()}\) has not turned for 70 s, 60 s are allowed"):
        health.worker(tmp_path, 60)
    assert health.worker(tmp_path, 80) == "healthy: 1 process, the last turn 70 s ago"

    file.touch()

    assert health.worker(tmp_path, 60) == "healthy: 1 process, the last turn 0 s ago"
    file.release()


def test_every_process_of_a_worker_counts(tmp_path: Path) -> None:
    first = begin(tmp_path, 1, 2)
    with pytest.raises(CoreError, match=re.escape("1 of 2 processes of the worker (pid 77) run.")):
        health.worker(tmp_path, 60)

    second = begin(tmp_path, 2, 2)
    assert health.worker(tmp_path, 60) == "healthy: 2 processes, the last turn 0 s ago"

    age(second, 61)
    with pytest.raises(CoreError, match="has not turned for 61 s"):
        health.worker(tmp_path, 60)
    first.release()
    second.release()


def test_who_excuses_himself_is_healthy_for_so_long(tmp_path: Path) -> None:
    """A worker that stops lets its calls finish and takes no others: it does not turn."""
    file = begin(tmp_path)
    file.touch(ahead=600)
    assert health.worker(tmp_path, 0.1) == "healthy: 1 process, the last turn 0 s ago"
    file.release()


def test_what_a_killed_worker_left_behind_is_no_worker_and_goes_with_the_next(tmp_path: Path) -> None:
    left, young = begin(tmp_path, worker=11), begin(tmp_path, worker=12)
    left.release()
    young.release()
    age(left, 61)

    with pytest.raises(NotRunning):
        health.worker(tmp_path, 600)
    held = begin(tmp_path)
    age(held, 61)
    health.worker_file(tmp_path, 78)

    assert (left.path.exists(), young.path.exists(), held.path.exists()) == (False, True, True)
    held.release()


def test_a_scheduler_is_healthy_as_long_as_it_touches_its_pidfile(tmp_path: Path) -> None:
    file = PidFile(tmp_path / "scheduler.pid").acquire("The scheduler")
    assert health.scheduler(file.path, 60) == f"healthy: pid {os.getpid()}, the last turn 0 s ago"

    age(file, 61)

    with pytest.raises(CoreError, match=rf"the scheduler \(pid {os.getpid()}\) has not turned for 61 s"):
        health.scheduler(file.path, 60)
    file.release()


def test_a_later_turn_does_not_take_the_excuse_back(tmp_path: Path) -> None:
    heartbeat.begin(tmp_path)
    heartbeat.beat(ahead=600)

    heartbeat.beat()

    (file,) = (tmp_path / ".core/run").glob("worker-*")
    assert file.stat().st_mtime > time.time() + 500
    heartbeat.end()
    assert not file.exists()
