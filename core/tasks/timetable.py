"""The schedule as Redis keeps it: who leads, what is due when, and what people change of it."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from core import config, discovery, embedded
from core.broker_error import broker_error
from core.errors import BrokerUnreachable, OptionError
from core.pidfile import PidFile, default_path
from core.tasks import catalog, celery_app
from core.tasks.definition import PeriodicTask


@dataclass(frozen=True)
class Status:
    """Where the schedule is run from."""

    running: bool
    pid: int | None
    #: leader, standby, or None when no scheduler runs on this host.
    role: str | None
    #: The host and pid of the scheduler that leads, wherever it is, since when (ISO 8601, UTC), and by how many seconds
    #: the last run was late, once there was one.
    leader: dict[str, Any] | None
    #: The hosts and pids of those that would take over.
    standbys: list[dict[str, Any]]
    #: Seconds until the leader is replaced unless it says that it is there; None where none leads.
    lock_ends_in: float | None
    #: What is due next, and when (ISO 8601, UTC).
    next_entry: str | None
    next_run: str | None

    def overdue(self) -> float:
        """For how many seconds the next run has been due; 0 where none is."""
        due = datetime.fromisoformat(self.next_run) if self.next_run else None
        return max((datetime.now(UTC) - due).total_seconds(), 0.0) if due else 0.0

    def words(self) -> list[str]:
        """What there is to know beside who leads, for people to read."""
        said = []
        if self.leader:
            since = f"leads since {self.leader.get('since', 'an unknown time')}"
            late = self.leader.get("late")
            last = "" if late is None else f", the last run {late:.1f} s late"
            said.append(f"{since}, its lock ends in {self.lock_ends_in or 0:.0f} s unless renewed{last}")
        if self.standbys:
            said.append("standing by: " + ", ".join(f"{one['host']} (pid {one['pid']})" for one in self.standbys))
        if self.next_entry:
            said.append(f"next: {self.next_entry} at {self.next_run}")
        return said


def status(*, pidfile: Path | None = None) -> Status:
    """Whether a scheduler of this project runs on this host, who leads, and what comes next.

    Raises:
        BrokerUnreachable: Redis does not answer.
    """
    pid = PidFile(pidfile or default_pidfile()).holder()
    prefix = _prefix()
    with _redis() as client:
        ends, told = client.pttl(f"{prefix}:lock"), client.get(f"{prefix}:leader")
        standbys = [json.loads(one) for one in client.zrange(f"{prefix}:standbys", 0, -1)]
        first = client.zrangebyscore(f"{prefix}:schedule", 0, "+inf", start=0, num=1, withscores=True)
    leads = _who(told) if ends > 0 else None
    mine = bool(leads and leads["pid"] == pid and leads["host"] == socket.gethostname())
    name, at = first[0] if first else (None, None)
    return Status(
        running=pid is not None,
        pid=pid,
        role=("leader" if mine else "standby") if pid else None,
        leader=leads,
        standbys=standbys if leads else [],
        lock_ends_in=ends / 1000 if leads else None,
        next_entry=name.removeprefix(prefix) if name else None,
        next_run=_time(at),
    )


@dataclass(frozen=True)
class Line:
    """One line of the schedule."""

    name: str
    schedule: str
    queue: str | None
    enabled: bool
    #: When it is due next (ISO 8601, UTC); None while no scheduler has taken it up.
    next_run: str | None
    #: Whether its runs are left out until it is resumed.
    paused: bool


def lines() -> list[Line]:
    """The periodic tasks that the code declares, and those that only Redis knows, with their next times.

    Raises:
        BrokerUnreachable: Redis does not answer.
    """
    celery_app.import_tasks()
    prefix = _prefix()
    with _redis() as client:
        due = {key.removeprefix(prefix): at for key, at in client.zrange(f"{prefix}:schedule", 0, -1, withscores=True)}
        paused = client.smembers(f"{prefix}:paused")
    listed = []
    default = config.get_settings().task_default_queue
    for task in _declared():
        at = due.pop(task.name, None) if task.schedule.enabled else None
        if at and task.schedule.cron:
            at = -(-at // 60) * 60  # RedBeat keeps whole seconds, cut off: a full minute as the second before it
        queue, stops = task.queue or default, task.name in paused
        listed.append(Line(task.name, str(task.schedule), queue, task.schedule.enabled, _time(at), stops))
    for name, at in sorted(due.items()):
        listed.append(Line(name, "kept in Redis only", None, True, _time(at), name in paused))
    return listed


def pause(name: str) -> str:
    """Leave out the runs of a periodic task until it is resumed; return its whole name. A restart changes nothing.

    Raises:
        OptionError: No entry of the schedule has this name.
        BrokerUnreachable: Redis does not answer.
    """
    return _mark(name, paused=True)


def resume(name: str) -> str:
    """Let a periodic task run again from its next time on; return its whole name.

    Raises:
        OptionError: No entry of the schedule has this name.
        BrokerUnreachable: Redis does not answer.
    """
    return _mark(name, paused=False)


def run_now(name: str) -> str:
    """Queue a call of a periodic task with the arguments of its schedule, which stays as it is; return the call's id.

    Raises:
        OptionError: No periodic task has this name.
        PublishError: No broker took the call.
    """
    found = _find(name)
    for task in _declared():
        if task.name == found:
            return task.options().delay_sync(*task.schedule.args, **task.schedule.kwargs).id
    raise OptionError(f"{found} is in Redis only: its task is not declared here.")


def leader() -> dict[str, Any] | None:
    """The host and pid of the scheduler that leads, wherever it is.

    Raises:
        BrokerUnreachable: Redis does not answer.
    """
    prefix = _prefix()
    with _redis() as client:
        held, told = client.exists(f"{prefix}:lock"), client.get(f"{prefix}:leader")
    return _who(told) if held else None


def elsewhere() -> str:
    """Where the leader is, as a sentence; empty where none is known."""
    try:
        leads = leader()
    except BrokerUnreachable:
        return ""
    return f" The one on {leads['host']} (pid {leads['pid']}) leads; stop it there." if leads else ""


def default_pidfile() -> Path:
    """The pidfile of this project's scheduler."""
    return default_path(config.get_project().root, "scheduler.pid")


def _declared() -> list[PeriodicTask[Any, Any]]:
    return [task for task in celery_app.declared() if isinstance(task, PeriodicTask)]


def _mark(name: str, paused: bool) -> str:
    found = _find(name)
    with _redis() as client:
        (client.sadd if paused else client.srem)(f"{_prefix()}:paused", found)
    return found


def _find(name: str) -> str:
    """The whole name of an entry of which the whole name or its last word is given."""
    return catalog.whole_name(name, [line.name for line in lines()], "The schedule has no", "core scheduler list")


def _who(told: str | None) -> dict[str, Any]:
    try:
        return dict(json.loads(told or ""))
    except (TypeError, ValueError):
        return {"host": "an unknown host", "pid": None}


def _time(score: float | None) -> str | None:
    return None if score is None else datetime.fromtimestamp(score, UTC).isoformat(timespec="seconds")


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
