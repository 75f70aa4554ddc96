"""The file by which `core health` sees that this process turns.

It is touched by what does the work and by nothing else: the loop that takes calls, or the one that sends what is due.
A broker that is away is no fault of theirs, so they say that they are there while they wait for it, too.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from core import health
from core.errors import CoreError
from core.pidfile import PidFile

logger = logging.getLogger("core.tasks")

#: Seconds between two turns that are told of.
EVERY = 5.0


class _Process:
    """The file that this process holds."""

    file: PidFile | None = None
    #: Until when it has excused itself, by `time.monotonic`.
    excused = 0.0


def keep(file: PidFile | None) -> None:
    """Touch this file, which this process holds, from now on; None is none."""
    _Process.file = file


def is_kept() -> bool:
    """Whether this process touches a file."""
    return _Process.file is not None


def begin(root: Path, worker: int | None = None, number: int = 1, processes: int = 1) -> None:
    """Hold and touch the file of a worker's process, in the place of any other.

    Args:
        root: The project's root.
        worker: The worker's pid; None is this process.
        number: Which of the worker's processes this is, from 1 on.
        processes: How many it has.
    """
    end()
    try:
        keep(health.worker_file(root, worker or os.getpid(), number, processes).acquire("The worker"))
    except (CoreError, OSError) as error:
        logger.warning("`core health worker` cannot see this worker: %s", error)


def end() -> None:
    """Give up the file, and remove it: no other process has its name."""
    if file := _Process.file:
        keep(None)
        file.path.unlink(missing_ok=True)
        file.release()


def beat(ahead: float = 0) -> None:
    """This process turns.

    Args:
        ahead: Seconds for which it will have no time to say so again.
    """
    now = time.monotonic()
    if _Process.file is not None and now + ahead >= _Process.excused:
        _Process.excused = now + ahead
        _Process.file.touch(ahead)


def boot_step() -> Any:
    """The step of Celery's consumer that tells of its turns, and of its waiting for a broker that is away."""
    from celery import bootsteps

    class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc]
        """Beats when the consumer's own loop gets to it."""

        def __init__(self, parent: Any, **options: Any) -> None:
            super().__init__(parent, **options)
            self._timer: Any = None
            connect = parent.ensure_connected
            parent.ensure_connected = lambda connection: connect(_told_of_tries(connection))

        def start(self, parent: Any) -> None:
            beat()
            self._timer = parent.timer.call_repeatedly(EVERY, beat)

        def stop(self, parent: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()

    return Heartbeat


def _told_of_tries(connection: Any) -> Any:
    """A connection that beats between its tries to connect."""
    ensure = connection.ensure_connection

    def ensure_connection(*args: Any, callback: Any = None, **options: Any) -> Any:
        def turn() -> None:
            beat()
            if callback:
                callback()

        beat()
        return ensure(*args, callback=turn, **options)

    connection.ensure_connection = ensure_connection
    return connection
