"""Rows 39 to 43: a schedule that changes, is late, or meets a change of the clock; and the scheduler's pidfile."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

from faults.rows import ONCE, Finding, row
from faults.schedulers import EVERY, LEADS, TICKS, Plan, Sent, entries, of_plan, overdue, scheduler
from faults.world import World, ending, until

#: Seconds between two runs that no row waits for.
LONG = 3600
#: Seconds for which a scheduler is away.
AWAY = 4


@row(39, "a scheduler starts with an entry less and other intervals than before, then with no entry", pools=ONCE)
def schedule_changes(world: World) -> str:
    with Sent(world) as sent:
        first = scheduler(world, {"ticks": EVERY, "quicker": LONG, "slower": EVERY, "gone": EVERY}, ready=LEADS)
        sent.more("gone")
        sent.more("slower")
        first.stop()
        counts = {name: sent.count(name) for name in ("gone", "slower")}
        second = scheduler(world, {"ticks": EVERY, "quicker": EVERY, "slower": LONG}, ready=LEADS)
        sent.more("quicker", 2, said="a shorter interval is not followed")
        sent.more("ticks", 2)
        if more := [name for name, count in counts.items() if sent.count(name) > count]:
            raise Finding(f"still sent: {', '.join(more)}")
        second.stop()
        third = scheduler(world, {}, ready=LEADS)
        until(lambda: not [name for name in entries(world) if not name.startswith("celery.")], 10, "some entry stays")
        world.alive()
        third.stop()
    return "followed at the next start"


@row(40, f"no scheduler runs for {AWAY} due times of one entry, and for five hours of an hourly one", pools=ONCE)
def scheduler_away(world: World) -> str:
    plan: Plan = {"ticks": EVERY, "hourly": "0 * * * *"}
    with Sent(world) as sent:
        first = scheduler(world, plan)
        sent.more("ticks", 2)
        first.stop()
        before = sent.count("hourly")
        overdue(world, "hourly", 5)
        world.hold(AWAY)
        scheduler(world, plan)
        sent.more("ticks", 3)
        sent.once()
        until(lambda: sent.count("hourly") > before, 5, "the hourly one is not made up for")
        if (runs := sent.count("hourly") - before) != 1:
            raise Finding(f"the hourly one is sent {runs} times")
    return "each is sent once when one is back, then as usual"


#: The nights of the table in the documentation, in its order, by where they begin (UTC).
NIGHTS = ("2026-03-28T22:55", "2026-10-24T21:55")
ZONE = "Europe/Berlin"
TABLE = Path(__file__).parents[2] / "docs" / "howto" / "periodic-tasks.md"


@row(41, f"summer time begins and ends ({ZONE}, on a simulated clock); the same nights in UTC", pools=ONCE)
def clocks_change(world: World) -> str:
    told = re.findall(r"^\| `([^`]+)` \| ([\d: ]+) \| ([\d: ]+) \|$", TABLE.read_text(), re.MULTILINE)
    assert len(told) == 5, "the table in the documentation has five entries"
    crons = [cron for cron, *_ in told]
    wrong = []
    for night, begin in enumerate(NIGHTS):
        found = through_the_night(world, crons, ZONE, begin)
        expected = {cron: times[night].split() for cron, *times in told}
        wrong += [f"`{cron}` at {' '.join(found[cron])}" for cron in crons if found[cron] != expected[cron]]
        wrong += interval_gaps(found)
        found = through_the_night(world, crons, "UTC", begin)
        wrong += [f"`{cron}` at {' '.join(found[cron])} UTC" for cron in crons if found[cron] != IN_UTC[cron]]
        wrong += interval_gaps(found)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        more = f", and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise Finding(f"not at the documented times: {'; '.join(wrong[:2])}{more}")
    return "each runs at the documented times, one with an interval of an hour in every hour that passes"


#: What the same entries do where no clock changes.
HALVES = "01:00 01:30 02:00 02:30 03:00 03:30"
IN_UTC = {
    "0 1 * * *": ["01:00"],
    "30 2 * * *": ["02:30"],
    "0 3 * * *": ["03:00"],
    "0 * * * *": ["01:00", "02:00", "03:00", "04:00"],
    "*/30 1-3 * * *": HALVES.split(),
}


def through_the_night(world: World, crons: list[str], zone: str, begin: str) -> dict[str, list[str]]:
    """The local times between 00:45 and 04:15 at which each entry is sent; UTC and all of them for an interval."""
    world.server.client.flushall()
    plan: Plan = {**{str(number): cron for number, cron in enumerate(crons)}, "interval": LONG}
    said = world.project.run(sys.executable, "clock.py", world.kind, begin, **of_plan(plan), TASK_TIMEZONE=zone)
    if said.returncode:
        raise AssertionError(said.stderr)
    times = json.loads(said.stdout)
    found = {}
    for number, cron in enumerate(crons):
        local = [datetime.fromisoformat(at).astimezone(ZoneInfo(zone)) for at in times.get(str(number), ())]
        found[cron] = [at for at in (f"{each:%H:%M}" for each in local) if "00:45" < at < "04:15"]
    return {**found, "interval": times.get("interval", [])}


def interval_gaps(found: dict[str, list[str]]) -> list[str]:
    """What is wrong with the entry that has an interval."""
    times = [datetime.fromisoformat(at).timestamp() for at in found["interval"]]
    gaps = [later - at for at, later in pairwise(times)]
    if len(times) == 7 and set(gaps) == {LONG}:
        return []
    return [f"an interval of {LONG / 3600:g} h after {max(gaps, default=0) / 3600:g} h"]


@row(42, "a pidfile with a dead pid, with one used again, empty, left by `kill -9`; two starts at once", pools=ONCE)
def pidfiles(world: World) -> str:
    found = []
    with stranger() as other, subprocess.Popen(["true"]) as gone:
        gone.wait()
        for what, text in {"dead": f"{gone.pid}\n", "used again": f"{other.pid}\n", "empty": ""}.items():
            file = world.project.write(f"{what.replace(' ', '-')}.pid", text)
            found += starts(world, f"a pid that is {what}" if text else "an empty file", file.name)
        killed = scheduler(world, TICKS, pidfile="killed.pid")
        killed.kill()
        found += starts(world, "left by a kill", "killed.pid")
        if other.poll() is not None:
            found.append("a stranger is ended")
    both = [scheduler(world, TICKS, pidfile="both.pid", ready="") for _ in range(2)]
    until(lambda: any(each.ended() is not None for each in both), 20, "two run with one pidfile")
    (second,) = (each for each in both if each.ended() is not None)
    second.dismissed = True
    if "already" not in second.text() or not second.ended():
        found.append(f"a second start {ending(second.ended() or 0)} and does not say why")
    if found:
        raise Finding("; ".join(found))
    return "each starts; of two at once the second says that one is running"


def starts(world: World, what: str, pidfile: str) -> list[str]:
    """What is wrong with a start where this pidfile is there already; the scheduler is ended again."""
    try:
        one = scheduler(world, TICKS, pidfile=pidfile)
    except Finding as finding:
        world.workers[-1].dismissed = True
        return [f"{what}: {finding}"]
    one.kill()
    return []


@contextmanager
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has nothing to do with any scheduler."""
    process = subprocess.Popen(["sleep", "600"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@row(43, "a scheduler is to be stopped: none was started, or the pidfile names a process that is none", pools=ONCE)
def stop_a_stranger(world: World) -> str:
    found = []
    with stranger() as other:
        named = world.project.write("named.pid", f"{other.pid}\n").name
        for what, pidfile in {"none was started": "none.pid", "the pid of a stranger": named}.items():
            said = stop(world, pidfile)
            if not said.returncode:
                found.append(f"{what}: exit code 0")
            elif world.ours and "No scheduler" not in said.stderr:
                found.append(f"{what}: does not say so")
        with suppress(subprocess.TimeoutExpired):
            other.wait(0.5)
        if other.poll() is not None:
            found.append("a stranger is ended")
    if found:
        raise Finding("; ".join(found))
    return "says that none runs, with an exit code; the stranger lives"


def stop(world: World, pidfile: str) -> "subprocess.CompletedProcess[str]":
    """Have the scheduler of a pidfile stopped. Celery has no command for it: its scripts for init do it like this."""
    command = ["core", "scheduler", "stop", "--pidfile", pidfile]
    said: subprocess.CompletedProcess[str] = world.project.run(
        *(command if world.ours else ["sh", "-c", f"kill -TERM $(cat {pidfile})"])
    )
    return said
