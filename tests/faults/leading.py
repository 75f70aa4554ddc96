"""Rows 34 to 38: which of several schedulers leads, whatever becomes of them, of Redis and of what it keeps."""

import json
import time
from collections.abc import Callable

from faults.rows import ONCE, Finding, row
from faults.schedulers import (
    EVERY,
    LEADS,
    LOCK,
    LOOP,
    TICKS,
    Plan,
    Scheduler,
    Sent,
    definitions,
    entries,
    keys,
    leading,
    scheduler,
    standby,
    takes_over,
)
from faults.world import World, ending, until

#: Seconds that sending takes, and seeing it.
SLACK = 0.5


@row(34, "two schedulers side by side, three entries that are due every second", pools=ONCE)
def two_schedulers(world: World) -> str:
    plan: Plan = {"ticks": EVERY, "tocks": EVERY, "tacks": EVERY}
    with Sent(world) as sent:
        crew = [scheduler(world, plan, ready=LEADS), standby(world, plan)]
        for name in plan:
            world.until(lambda name=name: sent.count(name) >= 12, 30 * world.patience, "runs are missing")
        world.alive()
        sent.once()
        late = max(sent.longest(name) for name in plan)
    if late > 2 * EVERY * world.patience:
        raise Finding(f"{late:.1f} s without a run")
    if all(each.sends() for each in crew):
        raise Finding("both send")
    return "one of them sends each due time, once"


@row(
    35,
    f"`kill -9` of the leading scheduler (its lock is {LOCK} s here), SIGTERM of a leader and of a standby",
    pools=ONCE,
    alone=True,
)
def leader_ends(world: World) -> str:
    with Sent(world) as sent:
        first, second = scheduler(world, TICKS, ready=LEADS), standby(world, TICKS)
        sent.more("ticks")
        killed = takes_over(sent, "ticks", first.kill)
        third = standby(world, TICKS)
        sent.more("ticks")
        stopped = takes_over(sent, "ticks", second.stop)
        fourth, began = standby(world, TICKS), time.monotonic()
        fourth.stop()
        took = time.monotonic() - began
        sent.more("ticks")
        world.alive()
        sent.once()
    if killed > (LOCK + LOOP + SLACK) * world.patience or stopped > 2 * world.patience or took > world.patience:
        raise Finding(f"{killed:.1f} s after a kill, {stopped:.1f} s after SIGTERM, a standby ends in {took:.1f} s")
    assert third.ended() is None
    return f"a standby leads within {LOCK + LOOP} s after a kill, within 2 s after SIGTERM, and ends within 1 s itself"


def lock_deleted(world: World, _: Scheduler) -> None:
    assert world.server.client.delete(*keys(world, "lock"))


def redis_away(world: World, _: Scheduler) -> None:
    world.server.kill()
    time.sleep(3)
    world.server.start()


def redis_frozen(world: World, _: Scheduler) -> None:
    with world.server.frozen():
        time.sleep(6)


def leader_frozen(_: World, leader: Scheduler) -> None:
    leader.freeze()
    time.sleep(LOCK + 1)
    leader.thaw()


FAULTS: dict[str, Callable[[World, Scheduler], None]] = {
    "lock deleted": lock_deleted,
    "Redis down": redis_away,
    "Redis frozen": redis_frozen,
    "leader frozen": leader_frozen,
}


@row(
    36,
    f"the schedulers' lock is deleted; Redis is down for 3 s, frozen for 6 s; the leader is frozen for {LOCK + 1} s",
    pools=ONCE,
)
def leader_is_lost(world: World) -> str:
    found: list[str] = []
    with Sent(world) as sent:
        crew: list[Scheduler] = []
        for name, fault in FAULTS.items():
            crew = [each for each in crew if each.ended() is None]
            while len(crew) < 2:
                crew.append(scheduler(world, TICKS) if not crew else standby(world, TICKS))
            leader, began = leading(world, sent, crew), time.time()
            fault(world, leader)
            back = sent.count("ticks") + 3
            until(lambda crew=crew, back=back: sent.count("ticks") >= back or all(each.ended() for each in crew),
                  15 * world.patience, f"{name}: nothing is sent within 15 s")  # fmt: skip
            ended = [ending(code) for each in crew if (code := each.ended()) is not None]
            found += [f"{name}: {'both end' if len(ended) == len(crew) else each}" for each in ended]
            if again := sent.twice(since=began):
                found.append(f"{name}: {again} due times are sent twice")
    if found:
        raise Finding("; ".join(dict.fromkeys(found)))
    return "no scheduler ends, and each due time is sent once"


@row(37, "an entry of the schedule that is no JSON, and one with an impossible time", pools=ONCE)
def entries_broken(world: World) -> str:
    plan: Plan = {"ticks": EVERY, **dict.fromkeys(BROKEN, EVERY)}
    with Sent(world) as sent:
        first = scheduler(world, plan)
        for name in plan:
            sent.more(name)
        break_entries(world)
        until(lambda: not ghosts(world) or first.ended() is not None, 10, "what nobody declares stays")
        if code := first.ended():
            again = scheduler(world, plan, ready="")
            until(lambda: again.ended() is not None or LEADS in again.text(), 20, "does not start again")
            raise Finding(ending(code) + (", and when it is started again" if again.ended() else ""))
        for name in plan:
            sent.more(name, 3)
        world.alive()
        sent.once()
    told = [line for line in first.text().splitlines() if " ERROR " in line]
    if len(told) != 2 * len(BROKEN):
        raise Finding(f"{len(told)} lines tell of {2 * len(BROKEN)} entries")
    return "told in the log; what the code declares begins anew, the rest is dropped, the others go on"


#: What is put in the place of a definition, by the name of the entry.
NEVER = {"__type__": "crontab", "minute": "99", **dict.fromkeys(("hour", "day_of_week", "day_of_month"), "*")}
BROKEN = {"text": "{", "never": json.dumps({"schedule": {**NEVER, "month_of_year": "*"}})}


def break_entries(world: World) -> None:
    """Make the declared entries unreadable, and others beside them that nobody declares."""
    stored, (schedule,) = entries(world), keys(world, "schedule")
    with world.server.client.pipeline() as all_at_once:
        for name, text in BROKEN.items():
            for key in (stored[name], stored[name] + GHOST.encode()):
                all_at_once.hset(key, "definition", text)
                all_at_once.zadd(schedule, {key: 1})
        all_at_once.execute()


GHOST = "-ghost"


def ghosts(world: World) -> list[str]:
    return [name for name in entries(world) if name.endswith(GHOST)]


@row(38, "a standby with older code starts beside the leader", pools=ONCE)
def older_standby(world: World) -> str:
    with Sent(world) as sent:
        leader = scheduler(world, {"ticks": EVERY, "newer": EVERY})
        sent.more("newer")
        before = definitions(world)
        standby(world, {"ticks": 7 * EVERY})
        sent.more("ticks", said="the leader's schedule is overwritten")
        if definitions(world) != before:
            raise Finding("the leader's schedule is overwritten")
        sent.more("newer", 2)
        assert leader.ended() is None
    return "the leader's schedule stays as it is"
