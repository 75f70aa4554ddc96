"""Schedulers of both kinds, and what they have put into the queue."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import redis
from faults.rows import Finding
from faults.world import Worker, World, ending, until

#: Seconds of the scheduler's lock here, and the longest time between two of its looks.
LOCK = 4
LOOP = 1
#: Seconds between two runs of the entries of these rows.
EVERY = 1
PREFIX = "faults."
#: The part of an interval by which a run may be seen late, while the next one is in time.
LATE = 0.9
#: What it says when it leads.
LEADS = "beat: Acquired lock"

Plan = dict[str, float | str]
TICKS: Plan = {"ticks": EVERY}


class Scheduler(Worker):
    """One scheduler process."""

    what = "scheduler"

    def stop(self) -> None:
        """SIGTERM, and its end."""
        self.terminate()
        if code := self.wait(10):
            raise Finding(f"a stopped scheduler {ending(code)}")

    def sends(self) -> int:
        """How many runs it has said that it sends."""
        return self.text().count("Sending due task")


def scheduler(
    world: World,
    plan: Plan,
    *,
    pidfile: str = "",
    ready: str = "beat: Starting...",
    loglevel: str = "info",
    **environment: str,
) -> Scheduler:
    """Start a scheduler of these entries, and wait until it says that it is *ready*.

    Args:
        plan: The entries by name: seconds, or cron text.
        pidfile: Its pidfile; without one it has a file of its own, as a standby on the same host needs it.
        ready: Empty does not wait.
    """
    pidfile = pidfile or f"scheduler-{len(world.workers)}.pid"
    if world.ours:
        command = ["core", "scheduler", "start", "--loglevel", loglevel, "--pidfile", pidfile]
    else:
        command = ["celery", "-A", "stock", "--quiet", "beat", "--scheduler", "redbeat.RedBeatScheduler",
                   "--loglevel", loglevel, "--pidfile", pidfile]  # fmt: skip
    made = Scheduler(world.project.start(*command, **{**of_plan(plan), **environment}))
    world.workers.append(made)
    if ready:
        until(lambda: ready in made.text() or made.ended() is not None, 30, f"does not say {ready!r}")
        if ready not in made.text():
            code = made.ended()
            raise Finding(f"scheduler does not start: exits {code}")
    return made


def standby(world: World, plan: Plan, **environment: str) -> Scheduler:
    """Start a scheduler beside one that leads, and wait until it has seen that it does."""
    if not world.ours:
        return scheduler(world, plan, ready="beat: Acquiring lock...", loglevel="debug", **environment)
    made = scheduler(world, plan, **environment)
    until(lambda: stands_by(world, made), 15, "does not stand by")
    return made


def stands_by(world: World, one: Scheduler) -> bool:
    """Whether a scheduler of ours has said in Redis that it waits for the lead."""
    found = keys(world, "standbys")
    return any(json.loads(each)["pid"] == one.pid for key in found for each in world.server.client.zrange(key, 0, -1))


def of_plan(plan: Plan) -> dict[str, str]:
    """The variables that give a process this schedule, with short times."""
    celery = {"redbeat_lock_timeout": LOCK, "beat_max_loop_interval": LOOP}
    return {"FAULTS_SCHEDULE": json.dumps(plan), "CELERY": json.dumps(celery)}


def keys(world: World, name: str) -> list[bytes]:
    """The key under which RedBeat keeps its lock, its schedule …, in a list: nothing while it is not there."""
    return list(world.server.client.scan_iter(f"*:beat::{name}", count=1000))


def entries(world: World) -> dict[str, bytes]:
    """The keys of the stored entries, by name."""
    found: list[bytes] = [
        key for schedule in keys(world, "schedule") for key in world.server.client.zrange(schedule, 0, -1)
    ]
    return {key.decode().partition(":beat:")[2].removeprefix(PREFIX): key for key in found}


def definitions(world: World) -> dict[str, Any]:
    """What is stored of each entry."""
    client = world.server.client
    return {name: json.loads(client.hget(key, "definition") or b"null") for name, key in entries(world).items()}


def overdue(world: World, name: str, hours: float) -> None:
    """Let an entry have run last so many hours ago."""
    client, key = world.server.client, entries(world)[name]
    at = time.gmtime(time.time() - hours * 3600)
    names = ("year", "month", "day", "hour", "minute", "second")
    meta = json.loads(client.hget(key, "meta") or b"{}")
    meta["last_run_at"] = {
        "__type__": "datetime",
        "microsecond": 0,
        "timezone": "UTC",
        **dict(zip(names, at, strict=False)),
    }
    client.hset(key, "meta", json.dumps(meta))
    client.zadd(keys(world, "schedule")[0], {key: 1})


@dataclass(frozen=True)
class Run:
    """One run of a periodic task, and when it was seen."""

    name: str
    id: str
    at: float


class Sent:
    """The runs that schedulers have put into the queue of a world that has no worker."""

    def __init__(self, world: World) -> None:
        self._client = redis.Redis(port=world.server.port, socket_timeout=10)
        self._world = world
        self._runs: list[Run] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._client.close()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self._runs += self._news()

    def _news(self) -> list[Run]:
        try:
            texts: list[Any] = self._client.lrange("default", 0, -1 - len(self._runs))
        except redis.RedisError:
            return []
        now = time.time()
        headers = [json.loads(text)["headers"] for text in reversed(texts)]
        return [Run(each["task"].removeprefix(PREFIX), each["id"], now) for each in headers]

    def runs(self, name: str, since: float = 0) -> list[Run]:
        """The runs of one entry, in their order."""
        return [run for run in list(self._runs) if run.name == name and run.at > since]

    def count(self, name: str) -> int:
        return len(self.runs(name))

    def more(self, name: str, times: int = 1, within: float = 10, said: str = "") -> None:
        """Wait for so many more runs of an entry."""
        before = self.count(name)
        within *= self._world.patience
        until(lambda: self.count(name) >= before + times, within, said or f"{name} is not sent within {within:g} s")

    def twice(self, every: float = EVERY, since: float = 0) -> int:
        """How many due times were sent a second time: by their ids, or since there are more runs than due times."""
        found = 0
        for name in {run.name for run in list(self._runs)}:
            runs = self.runs(name, since)
            first = {run.id: run.at for run in reversed(runs)}
            found += len(runs) - len(first) + too_many(sorted(first.values()), every)
        return found

    def longest(self, name: str) -> float:
        """The longest time between two runs of an entry."""
        return max((later.at - run.at for run, later in pairwise(self.runs(name))), default=0.0)

    def once(self) -> None:
        """A Finding when a due time was sent a second time."""
        if again := self.twice():
            raise Finding(f"{again} due times are sent twice")


def too_many(times: list[float], every: float) -> int:
    """How many of these runs come too soon for an interval that counts from run to run; one of them may be late."""
    found, due = 0, 0.0
    for at in times:
        if due + every - at > LATE * every:
            found += 1
        else:
            due = max(due + every, at)
    return found


class Ran(Sent):
    """The same where workers run them: each counts from its beginning there."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._events = open(world.project.root / "events", "a+b")  # noqa: SIM115  closed with the rest
        self._events.seek(0)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._events.close()

    def _news(self) -> list[Run]:
        found = []
        for line in self._events.read().decode().splitlines():  # each is written at once
            event, key, _, at = line.split()
            name, slash, task_id = key.partition("/")
            if slash and event == "begun":
                found.append(Run(name, task_id, float(at)))
        return found


def leading(world: World, sent: Sent, crew: list[Scheduler]) -> Scheduler:
    """The scheduler that sends what is due."""
    before = [each.sends() for each in crew]

    def one() -> list[Scheduler]:
        return [each for each, count in zip(crew, before, strict=True) if each.sends() > count]

    sent.more("ticks")
    until(one, 15 * world.patience, "none leads")
    return one()[0]


def takes_over(sent: Sent, name: str, end: Callable[[], Any]) -> float:
    """Seconds from the end of a leader, as *end* brings it about, to the next run that another one sends."""
    began = time.time()
    end()
    ended = time.time()
    until(lambda: sent.runs(name, since=ended), 60, "no other one takes over")
    return sent.runs(name, since=ended)[0].at - began
