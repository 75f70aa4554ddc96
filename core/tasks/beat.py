"""The scheduler: Celery's beat with RedBeat, which keeps the schedule in Redis, made to outlive everything there.

One scheduler leads and sends what is due; the others stand by. What the leader does to the schedule, Redis does only
while the lock is still this leader's; and a run that two of them send is sent once.
"""

import json
import logging
import os
import signal
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from redbeat.decoder import RedBeatJSONEncoder
from redbeat.schedulers import RedBeatScheduler, RedBeatSchedulerEntry, get_redis
from redis.exceptions import RedisError, ResponseError

from core import config, embedded
from core.broker_error import reason
from core.errors import CoreError, NotRunning, PublishError, TasksDisabled
from core.pidfile import PidFile
from core.tasks import bridge, celery_app, heartbeat, publish, signing, timetable
from core.tasks.definition import PeriodicTask
from core.tasks.envelope import Call
from core.tasks.log import log_to_stderr
from core.tasks.schedule import celery_schedule, due_after
from core.tasks.worker import end_while_starting, prepared_app, wait_for_broker

logger = logging.getLogger("core.tasks")

#: A periodic message is worth running for at least this many seconds, however short its interval.
SHORTEST_LIFE = 10.0
#: Seconds between two looks of a standby, and of a leader that has something left to do.
SOON = 1.0

# In one step: lead, if nobody else does, and say who leads and who stands by.
# KEYS  lock, leader, standbys   ARGV  token, milliseconds of the lock, who this is, seconds for which a standby counts
# Returns 2 when this one leads from now on, 1 when it goes on, 0 when another one leads.
_LEAD = """
local holder, leads = redis.call('GET', KEYS[1]), 1
local now = tonumber(redis.call('TIME')[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif not holder then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  leads = 2
else
  leads = 0
end
if leads > 0 then
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2])
  redis.call('ZREM', KEYS[3], ARGV[4])
else
  redis.call('ZADD', KEYS[3], now, ARGV[4])
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[5])
return leads
"""
# KEYS  lock, leader, standbys   ARGV  token, who this is
_LEAVE = """
redis.call('ZREM', KEYS[3], ARGV[2])
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2]) end
"""
# KEYS  lock, entry, schedule   ARGV  token, what is kept of the entry's last run, when it is due next
# Returns whether this one still leads; else nothing is changed.
_ADVANCE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[2], 'meta', ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], KEYS[2])
return 1
"""


def entries() -> dict[str, dict[str, Any]]:
    """The schedule that the declared periodic tasks make, as Celery's beat reads it."""
    made = {}
    limit = config.get_settings().task_max_argument_bytes
    for task in celery_app.declared():
        if isinstance(task, PeriodicTask) and task.schedule.enabled:
            args, kwargs = task.arguments.encode(task.schedule.args, task.schedule.kwargs, limit)
            made[task.name] = {
                "task": task.name,
                "schedule": celery_schedule(task.schedule.cron, task.schedule.interval),
                "args": args,
                "kwargs": kwargs,
            }
    return made


class Deposed(Exception):
    """Another scheduler leads."""


class Entry(RedBeatSchedulerEntry):  # type: ignore[misc]
    """RedBeat's entry, which one that cannot be read does not keep from the others."""

    schedule: Any

    def __repr__(self) -> str:
        return f"<Entry: {self.name} {self.task} {self.schedule!r}>"  # its arguments may be sensitive

    @classmethod
    def from_key(cls, key: str, app: Any = None) -> Any:
        """Read an entry. What cannot be read goes, or is as the code declares it.

        Raises:
            KeyError: It is not there any more.
        """
        try:
            entry = super().from_key(key, app=app)
            if entry.last_run_at is not None:
                entry.last_run_at = entry.last_run_at.astimezone(UTC)
            entry.is_due()
            return entry
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            cause: Exception = error
        except (KeyError, RedisError, OSError):
            raise
        except Exception as error:
            cause = error
        name = key.removeprefix(app.redbeat_conf.key_prefix)
        declared = app.conf.beat_schedule.get(name)
        logger.error("%s is no entry that can be read (%s: %s): it %s", key, type(cause).__name__, cause,
                     "begins anew, as the code declares it" if declared else "is dropped")  # fmt: skip
        get_redis(app).delete(key)
        if declared is None:
            raise KeyError(key) from cause
        return cls(**declared, name=name, app=app).save()

    def default_now(self) -> datetime:
        """Now, in UTC: RedBeat stores no more than date and time, which come twice where summer time ends."""
        now: datetime = super().default_now()
        return now.astimezone(UTC)

    _default_now = default_now

    @property
    def due_at(self) -> datetime | None:
        """When it is due next, None for never. RedBeat adds what is left from now on to the last run."""
        left = self.schedule.remaining_estimate(self.last_run_at) if self.last_run_at else timedelta()
        return None if left is None else self.default_now() + max(left, timedelta())

    def moment(self) -> datetime:
        """When the run that is due was due first; every scheduler that asks gets the same answer."""
        if self.last_run_at is None:
            moment: datetime = self.default_now().replace(second=0, microsecond=0)
        elif isinstance(self.schedule, crontab | schedule):
            return due_after(self.schedule, self.last_run_at)
        else:
            moment = self.default_now() + self.schedule.remaining_estimate(self.last_run_at)
            moment = moment.replace(microsecond=0)
        return moment.astimezone(UTC)

    def is_late(self, most: float) -> bool:
        """Whether the latest time at which it was due is more than *most* seconds ago."""
        now = self.default_now()
        if isinstance(self.schedule, crontab):
            last, delta, _ = self.schedule.remaining_delta(now - timedelta(seconds=most))
            return bool(last + delta > now)
        every = self.schedule.run_every.total_seconds()
        return bool(((now - self.last_run_at).total_seconds() % every) > most)


class Scheduler(RedBeatScheduler):  # type: ignore[misc]
    """RedBeat's scheduler, which never ends because of Redis, and touches the schedule only while it leads."""

    Entry = Entry
    app: Any

    def __init__(self, app: Any, **options: Any) -> None:
        app.conf.beat_schedule = {**(app.conf.beat_schedule or {}), **entries()}
        self._leads = self._away = False
        self._token = uuid4().hex
        self._me = {"host": socket.gethostname(), "pid": os.getpid()}
        self._leader: dict[str, Any] = {}
        #: Entries whose run no broker took, which was said once.
        self._refused: set[str] = set()
        super().__init__(app, **options)
        self.lock_key = None  # RedBeat's own waiting for it would block, and end with the first error
        lock, prefix = app.redbeat_conf.lock_key, app.redbeat_conf.key_prefix
        self._keys = [lock, *(f"{prefix}:{name}" for name in ("leader", "standbys"))]

    def setup_schedule(self) -> None:
        """Store what the code declares. Only a leader does: a standby may be of an older release."""
        if self._leads:
            super().setup_schedule()

    def tick(self, *args: Any, **options: Any) -> float:
        """Lead, or stand by, and send what is due; return the seconds until the next look."""
        heartbeat.beat()
        try:
            wait = self._send_due() if self._lead() else SOON
        except Deposed:
            self._leads = False
            logger.warning("another scheduler leads now: this one stands by")
            return SOON
        except (RedisError, OSError) as error:
            if not self._away:
                logger.warning("the schedule stands still: %s. It goes on by itself.", reason(error))
            self._away = True
            with suppress(CoreError):
                embedded.broker_url()  # starts the development server, if it is ours that is gone
            return SOON
        self._away = False
        return wait

    def _lead(self) -> bool:
        """Ask for the lead, or go on with it."""
        client = get_redis(self.app)
        if not self._leads:
            self._leader = {**self._me, "since": datetime.now(UTC).isoformat(timespec="seconds")}
        words = [self._token, int(self.lock_timeout * 1000), json.dumps(self._leader), json.dumps(self._me), 10]
        said = client.eval(_LEAD, len(self._keys), *self._keys, *words)
        if not said and self._leads:
            raise Deposed
        if said == 2:
            self._leads = True
            logger.info("beat: Acquired lock")
            self.setup_schedule()  # a Redis that lost the lock has perhaps lost the schedule as well
        return bool(said)

    def _send_due(self) -> float:
        paused = get_redis(self.app).smembers(f"{self.app.redbeat_conf.key_prefix}:paused")
        waits, began = [self.max_interval], time.monotonic()
        for entry in self.schedule.values():
            is_due, wait = entry.is_due()
            if is_due and not self._send(entry, entry.name in paused):
                wait = SOON  # the others are not to wait for it
                if time.monotonic() - began > self.max_interval / 2:
                    return SOON  # the broker is away, and the lock has to be renewed
            waits.append(wait)
        return float(min(waits))

    def _send(self, entry: Any, paused: bool) -> bool:
        """Send a run that is due, unless it is not to be; False where no broker has taken it and it is due still."""
        moment = entry.moment()
        task = celery_app.find(entry.task)
        most = task.schedule.max_lateness if isinstance(task, PeriodicTask) else None
        late = (datetime.now(UTC) - moment).total_seconds()
        if paused:
            logger.debug("%s is paused", entry.name)
        elif most is not None and entry.is_late(most):
            logger.warning("%s was due %.0f s ago, which is more than its max_lateness of %g s: skipped",
                           entry.name, late, most)  # fmt: skip
        elif signing.is_on() and not self._is_declared(entry):
            logger.error("%s is not sent: it is not as the code declares it, and what this scheduler sends is signed "
                         "(task_signing_keys)", entry.name)  # fmt: skip
        else:
            again = entry.name in self._refused
            logger.log(logging.DEBUG if again else logging.INFO, "Scheduler: Sending due task %s (%s)",
                       entry.name, entry.task)  # fmt: skip
            try:
                self._publish(entry, task, moment)
            except PublishError as error:
                logger.log(logging.DEBUG if again else logging.WARNING, "%s It is tried again.", error)
                self._refused.add(entry.name)
                return False
            except Exception:
                logger.exception("this run of %s is left out", entry.name)
            self._refused.discard(entry.name)
            self._leader["late"] = round(max(late, 0.0), 3)
        self._advance(entry)
        return True

    def _is_declared(self, entry: Any) -> bool:
        """Whether an entry in Redis calls what the code says that it calls; when it does is the entry's own."""
        declared = self.app.conf.beat_schedule.get(entry.name)
        if declared is None:
            return False
        own = self.Entry(**declared, name=entry.name, app=self.app)
        return all(
            json.dumps(getattr(own, part) or None) == json.dumps(getattr(entry, part) or None)
            for part in ("task", "args", "kwargs", "options")
        )

    def _publish(self, entry: Any, task: Any, moment: datetime) -> None:
        # Its message expires when the next one is due, so that an outage leaves one run to do.
        due_in = entry.schedule.remaining_estimate(self.app.now()).total_seconds()
        options = {"expires": max(due_in, SHORTEST_LIFE), **entry.options}
        name = f"{self.app.redbeat_conf.key_prefix}{entry.name}@{moment.isoformat()}"
        task_id = str(uuid5(NAMESPACE_URL, name))
        if task is None or set(options) - {"expires", "queue", "priority"}:  # as somebody else's tool has put it there
            self.app.send_task(entry.task, entry.args, entry.kwargs, task_id=task_id, retry=False, **options)
            return
        args, kwargs = entry.args or [], entry.kwargs or {}
        call = Call(task, task_id, args, kwargs, options, None, f"core-sent-{task_id}", *task.lock(args, kwargs))
        there = bridge.run(publish.send(call), "the scheduler", "publish.send()")
        if there != task_id:
            logger.info("%s: its last run (%s) has not ended, and this one is left out", entry.name, there)

    def _advance(self, entry: Any) -> None:
        """Note that an entry has run.

        Raises:
            Deposed: Another one leads, and does this itself.
        """
        following: Any = ScheduleEntry.next(entry)
        kept = {"last_run_at": following.last_run_at, "total_run_count": following.total_run_count}
        keys = [self._keys[0], entry.key, self.app.redbeat_conf.schedule_key]
        words = [self._token, json.dumps(kept, cls=RedBeatJSONEncoder), following.score]
        if not get_redis(self.app).eval(_ADVANCE, len(keys), *keys, *words):
            raise Deposed

    def close(self) -> None:
        """Give up the lead, so that a standby takes over at once."""
        try:
            get_redis(self.app).eval(_LEAVE, len(self._keys), *self._keys, self._token, json.dumps(self._me))
        except (RedisError, OSError) as error:
            logger.warning("the schedule's lock could not be released (%s): it ends by itself", error)
        super().close()


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
    held = PidFile(pidfile or timetable.default_pidfile()).acquire("The scheduler")
    heartbeat.keep(held)
    try:
        if not wait_for_broker():
            return 0
        planned = [f"{name.rpartition('.')[2]}" for name in entries()]
        logger.info("scheduling %d periodic task%s: %s", len(planned), "s" * (len(planned) != 1), ", ".join(planned))
        if leader := timetable.leader():
            logger.info("standing by: the scheduler on %s (pid %s) leads", leader["host"], leader["pid"])
        app.backend  # noqa: B018  Celery's handlers of signals would import it again in the middle of its import
        try:
            app.Beat(loglevel=loglevel, quiet=True, redirect_stdouts=False).run()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 0
        return 0
    finally:
        heartbeat.keep(None)
        held.release()


def stop(*, pidfile: Path | None = None, timeout: float = 15.0) -> int:
    """Stop the scheduler that this project runs on this host, wait until it is gone, and return its pid.

    Raises:
        NotRunning: None runs here. The message names the host that holds the schedule's lock, if one does.
        CoreError: It did not end within *timeout* seconds.
    """
    file = PidFile(pidfile or timetable.default_pidfile())
    pid = file.holder()
    if pid is None:
        raise NotRunning(f"No scheduler of this project is running on this host.{timetable.elsewhere()}")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while file.holder() == pid:
        if time.monotonic() > deadline:
            raise CoreError(f"The scheduler (pid {pid}) did not end within {timeout:g} s. It is still asked to.")
        time.sleep(0.05)
    return pid
