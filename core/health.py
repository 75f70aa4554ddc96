"""Whether a worker or a scheduler turns, judged by the files that they touch whenever they do.

Whoever watches asks every few seconds, so nothing is loaded for it: no Celery, no settings, no code of the project.
"""

import re
from contextlib import suppress
from pathlib import Path

from core.errors import CoreError, NotRunning
from core.pidfile import PidFile, default_path

#: The file of one process of a worker: the worker's pid, the number of the process, and how many there are.
_WORKER = re.compile(r"worker-(\d+)-(\d+)of(\d+)")
#: Seconds for which a file that nobody holds may be one that somebody is about to hold.
NEW = 60.0


def worker_file(root: Path, worker: int, number: int = 1, processes: int = 1) -> PidFile:
    """The file that a process of a worker holds and touches; those that killed ones left behind are removed.

    Args:
        root: The project's root.
        worker: The worker's pid.
        number: Which of its processes this is, from 1 on.
        processes: How many it has.
    """
    made = PidFile(default_path(root, f"worker-{worker}-{number}of{processes}"))
    for file in _worker_files(root):
        with suppress(OSError):
            if file.age() > NEW and file.holder() is None:
                file.path.unlink()
    return made


def worker(root: Path, max_age: float) -> str:
    """What there is to say of the project's workers on this host, all of which turn.

    Args:
        root: The project's root.
        max_age: Seconds ago that each of their processes has turned, at most.

    Raises:
        NotRunning: No worker runs here.
        CoreError: One of their processes has not turned for longer, or is missing.
    """
    running: dict[tuple[str, int], list[int]] = {}
    oldest = 0.0
    for file in _worker_files(root):
        pid = file.holder()
        if pid is not None and (name := _WORKER.fullmatch(file.path.name)):
            oldest = max(oldest, _age(file, "worker", pid, max_age))
            running.setdefault((name[1], int(name[3])), []).append(pid)
    if not running:
        raise NotRunning("No worker of this project runs on this host.")
    for (pid_of, processes), pids in running.items():
        if len(pids) < processes:
            raise CoreError(f"unhealthy: {len(pids)} of {processes} processes of the worker (pid {pid_of}) run.")
    count = sum(map(len, running.values()))
    return f"healthy: {count} process{'es' * (count != 1)}, the last turn {max(oldest, 0):.0f} s ago"


def scheduler(pidfile: Path, max_age: float) -> str:
    """What there is to say of a scheduler that turns.

    Args:
        pidfile: Its pidfile.
        max_age: Seconds ago that it has turned, at most.

    Raises:
        NotRunning: None holds the file.
        CoreError: It has not turned for longer.
    """
    file = PidFile(pidfile)
    pid = file.holder()
    if pid is None:
        raise NotRunning("No scheduler of this project runs on this host.")
    return f"healthy: pid {pid}, the last turn {max(_age(file, 'scheduler', pid, max_age), 0):.0f} s ago"


def _age(file: PidFile, what: str, pid: int, max_age: float) -> float:
    age = file.age()
    if age > max_age:
        raise CoreError(f"unhealthy: the {what} (pid {pid}) has not turned for {age:.0f} s, {max_age:g} s are allowed.")
    return age


def _worker_files(root: Path) -> list[PidFile]:
    return [PidFile(path) for path in sorted(default_path(root, "worker").parent.glob("worker-*-*of*"))]
