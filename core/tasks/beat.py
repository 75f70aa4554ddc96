"""Run, stop and inspect the scheduler: Celery's beat with RedBeat, which keeps the schedule in Redis."""

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from redbeat.schedulers import RedBeatScheduler, acquire_distributed_beat_lock, get_redis
from redis.exceptions import LockError, RedisError

from core import config, discovery, embedded
from core.broker_error import broker_error, reason
from core.errors import BrokerUnreachable, CoreError, NotRunning, TasksDisabled
from core.tasks import celery_app, schedule
from core.tasks.definition import PeriodicTask
from core.tasks.pidfile import PidFile, default_path
from core.tasks.worker import end_while_starting, log_to_stderr, prepared_app, wait_for_broker

logger = logging.getLogger("core.tasks")

#: A periodic message is worth running for at least this many seconds, however short its interval.
SHORTEST_LIFE = 10.0


def entries() -> dict[str, dict[str, Any]]:
    """The schedule that the declared periodic tasks make, as Celery's beat reads it."""
    made = {}
    limit = config.get_settings().task_max_argument_bytes
    for task in celery_app.declared():
        if isinstance(task, PeriodicTask) and task.schedule.enabled:
            args, kwargs = task.arguments.encode(task.schedule.args, task.schedule.kwargs, limit)
            made[task.name] = {
                "task": task.name,
                "schedule": schedule.celery_schedule(task.schedule.cron, task.schedule.interval),
                "args": args,
                "kwargs": kwargs,
            }
    return made


class Scheduler(RedBeatScheduler):  # type: ignore[misc]
    """RedBeat's scheduler, with the project's periodic tasks, messages that expire, and a leader with a name."""

    lock: Any = None
    _away = False

    def __init__(self, app: Any, **options: Any) -> None:
        app.conf.beat_schedule = {**(app.conf.beat_schedule or {}), **entries()}
        super().__init__(app, **options)
        self._leader = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        )

    @property
    def _leader_key(self) -> str:
        return f"{self.app.redbeat_conf.key_prefix}:leader"

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        """Send a due task. Its message expires when the next one is due, so that an outage leaves one run to do."""
        if "expires" not in entry.options:
            due_in = entry.schedule.remaining_estimate(self.app.now()).total_seconds()
            entry.options = {**entry.options, "expires": max(due_in, SHORTEST_LIFE)}
        return super().apply_async(entry, producer=producer, advance=advance, **options)

    def tick(self, *args: Any, **options: Any) -> float:
        """Send what is due. A lock that was lost, or a Redis that is away, is waited for."""
        try:
            if self.lock_key and not self.lock:
                acquire_distributed_beat_lock(sender=SimpleNamespace(scheduler=self))
                self.setup_schedule()  # a Redis that lost the lock has perhaps lost the schedule as well
            wait: float = super().tick(*args, **options)
            get_redis(self.app).set(self._leader_key, self._leader, ex=int(self.lock_timeout))
        except LockError:
            logger.warning("another scheduler may lead now: this one asks for the lock again")
            self.lock = None
            return 1.0
        except (RedisError, OSError) as error:
            # The lock is kept: a Redis that comes back with its data still knows it as ours.
            if not self._away:
                logger.warning("the schedule stands still: %s. It goes on by itself.", reason(error))
            self._away = True
            with suppress(CoreError):
                embedded.broker_url()  # starts the development server, if it is ours that is gone
            return 1.0
        self._away = False
        return wait

    def close(self) -> None:
        """Give up the lead, so that a standby takes over at once."""
        try:
            if self.lock is not None:
                get_redis(self.app).delete(self._leader_key)
            super().close()
        except (RedisError, OSError) as error:
            logger.warning("the schedule's lock could not be released (%s): it ends by itself", error)
            self.lock = None


def run(*, pidfile: Path | None = None, loglevel: str = "INFO") -> int:
    """Run the scheduler in this process until it is stopped, and return its exit code.

    Args:
        pidfile: Its pidfile; None is the project's own. A standby on the same host needs another one.
        loglevel: The least level that is logged.

    Raises:
        TasksDisabled: `task_enabled` is False.
        AlreadyRunning: The pidfile is held by another process.
        ConfigurationError: The project, the broker's URL or password cannot be used.
    """
    if not config.get_settings().task_enabled:
        raise TasksDisabled("The scheduler does not start")
    app = prepared_app()
    end_while_starting()
    log_to_stderr(loglevel)
    held = PidFile(pidfile or _pidfile()).acquire("The scheduler")
    try:
        if not wait_for_broker():
            return 0
        planned = [f"{name.rpartition('.')[2]}" for name in entries()]
        logger.info("scheduling %d periodic task%s: %s", len(planned), "s" * (len(planned) != 1), ", ".join(planned))
        if leader := _leader():
            logger.info("standing by: the scheduler on %s (pid %s) leads", leader["host"], leader["pid"])
        app.backend  # noqa: B018  Celery's handlers of signals would import it again in the middle of its import
        try:
            app.Beat(loglevel=loglevel, quiet=True, redirect_stdouts=False).run()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 0
        return 0
    finally:
        held.release()


def stop(*, pidfile: Path | None = None, timeout: float = 15.0) -> int:
    """Stop the scheduler that this project runs on this host, wait until it is gone, and return its pid.

    Raises:
        NotRunning: None runs here. The message names the host that holds the schedule's lock, if one does.
        CoreError: It did not end within *timeout* seconds.
    """
    file = PidFile(pidfile or _pidfile())
    pid = file.holder()
    if pid is None:
        raise NotRunning(f"No scheduler of this project is running on this host.{_elsewhere()}")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while file.holder() == pid:
        if time.monotonic() > deadline:
            raise CoreError(f"The scheduler (pid {pid}) did not end within {timeout:g} s. It is still asked to.")
        time.sleep(0.05)
    return pid


@dataclass(frozen=True)
class Status:
    """Where the schedule is run from."""

    running: bool
    pid: int | None
    #: leader, standby, or None when no scheduler runs on this host.
    role: str | None
    #: The host and pid of the scheduler that leads, wherever it is.
    leader: dict[str, Any] | None


def status(*, pidfile: Path | None = None) -> Status:
    """Whether a scheduler of this project runs on this host, and who leads.

    Raises:
        BrokerUnreachable: Redis does not answer.
    """
    pid = PidFile(pidfile or _pidfile()).holder()
    leader = _leader()
    leads = bool(leader and leader["pid"] == pid and leader["host"] == socket.gethostname())
    return Status(pid is not None, pid, ("leader" if leads else "standby") if pid else None, leader)


@dataclass(frozen=True)
class Entry:
    """One line of the schedule."""

    name: str
    schedule: str
    queue: str | None
    enabled: bool
    #: When it is due next (ISO 8601, UTC); None while no scheduler has taken it up.
    next_run: str | None


def list_entries() -> list[Entry]:
    """The periodic tasks that the code declares, and those that only Redis knows, with their next times.

    Raises:
        BrokerUnreachable: Redis does not answer.
    """
    celery_app.import_tasks()
    prefix = _prefix()
    with _redis() as client:
        due = {key.removeprefix(prefix): at for key, at in client.zrange(f"{prefix}:schedule", 0, -1, withscores=True)}
    listed = []
    default = config.get_settings().task_default_queue
    for task in celery_app.declared():
        if isinstance(task, PeriodicTask):
            at = due.pop(task.name, None) if task.schedule.enabled else None
            if at and task.schedule.cron:
                at = -(-at // 60) * 60  # RedBeat keeps whole seconds, cut off: a full minute as the second before it
            listed.append(Entry(task.name, str(task.schedule), task.queue or default, task.schedule.enabled, _time(at)))
    listed += [Entry(name, "kept in Redis only", None, True, _time(at)) for name, at in sorted(due.items())]
    return listed


def _time(score: float | None) -> str | None:
    return None if score is None else datetime.fromtimestamp(score, UTC).isoformat(timespec="seconds")


def _pidfile() -> Path:
    return default_path(config.get_project().root, "scheduler.pid")


def _prefix() -> str:
    default = f"{discovery.project_name(config.get_project().root)}:beat:"
    return str(config.get_settings().celery.get("redbeat_key_prefix", default))


@contextmanager
def _redis() -> Iterator[Any]:
    """A client of the Redis that keeps the schedule."""
    url = embedded.schedule_url()
    try:
        with url.client(decode_responses=True) as client:
            yield client
    except (RedisError, OSError) as error:
        raise broker_error(error, url) from error


def _leader() -> dict[str, Any] | None:
    prefix = _prefix()
    with _redis() as client:
        held, told = client.exists(f"{prefix}:lock"), client.get(f"{prefix}:leader")
    if not held:
        return None
    try:
        return dict(json.loads(told))
    except (TypeError, ValueError):
        return {"host": "an unknown host", "pid": None}


def _elsewhere() -> str:
    try:
        leader = _leader()
    except BrokerUnreachable:
        return ""
    return f" The one on {leader['host']} (pid {leader['pid']}) leads; stop it there." if leader else ""
