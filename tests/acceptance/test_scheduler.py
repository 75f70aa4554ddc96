"""The scheduler in real processes: what fires when, who leads, and a pidfile that never points at a stranger."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import Process, Project, project, redis_server, wait_until

TICK = "src.apps.tokens.tasks.sync_external_data"
SETTINGS = """
from core.config import Settings


class AppSettings(Settings):
    # A lock that ends soon, so that a test of a killed leader need not wait for 30 s.
    celery: dict = {"redbeat_lock_timeout": 4, "beat_max_loop_interval": 1}
"""
PERIODIC = """
from core.tasks import periodic_task


@periodic_task({schedule})
async def {name}(): ...
"""


@pytest.fixture
def quick(fresh: Project) -> Project:
    """The example project, where a killed scheduler is replaced within seconds."""
    fresh.write("src/settings.py", SETTINGS)
    fresh.run("core", "broker", "start")
    return fresh


def start(project: Project, *options: str, **environment: str) -> Process:
    scheduler = project.start("core", "scheduler", "start", *options, **environment)
    scheduler.wait_for("beat: Starting...")
    return scheduler


def client(project: Project) -> Redis:
    return Redis(unix_socket_path=str(project.root / ".core/broker.sock"), decode_responses=True)


def queued(project: Project, name: str = TICK) -> list[dict[str, Any]]:
    """The headers of a task's messages in the default queue, the oldest first."""
    with client(project) as redis:
        headers = [json.loads(message)["headers"] for message in redis.lrange("default", 0, -1)]
    return [each for each in reversed(headers) if each["task"] == name]


def pidfile(project: Project) -> Path:
    return project.root / ".core/run/scheduler.pid"


# Firing.


def test_two_schedulers_fire_once(quick: Project) -> None:
    """The second stands by: of a task that is due every second there is one message a second."""
    start(quick)
    second = start(quick, "--pidfile", "second.pid")
    second.wait_for("standing by: the scheduler on ")
    wait_until(lambda: len(queued(quick)) >= 1, 20, "the first tick")
    before, began = len(queued(quick)), time.monotonic()

    wait_until(lambda: len(queued(quick)) >= before + 4, 20, "four more")

    assert time.monotonic() - began > 3
    assert "Sending due task" not in second.text()


def test_a_leader_that_is_stopped_hands_over_at_once(fresh: Project) -> None:
    """It gives up its lock of 30 s when it ends."""
    first = start(fresh)
    first.wait_for("Acquired lock")
    second = start(fresh, "--pidfile", "second.pid")
    second.wait_for("standing by")

    assert first.stop() == 0

    second.wait_for("Acquired lock", timeout=2)
    second.wait_for("Sending due task", timeout=15)


def test_a_killed_leader_is_replaced(quick: Project) -> None:
    leader = start(quick)
    leader.wait_for("Sending due task")
    standby = start(quick, "--pidfile", "standby.pid")
    leader.signal(signal.SIGKILL)
    leader.wait()

    standby.wait_for("Sending due task")

    told = quick.run("core", "scheduler", "status", "--pidfile", "standby.pid")
    assert told.stdout.startswith(f"running · pid {standby.pid} · leader")


def test_changed_and_removed_entries_follow_at_the_next_start(fresh: Project) -> None:
    start(fresh).wait_for("Sending due task")
    assert fresh.run("core", "scheduler", "stop").returncode == 0
    fresh.write("src/apps/tokens/tasks.py", PERIODIC.format(schedule="interval=3600", name="sync_external_data"))

    scheduler = start(fresh)
    wait_until(lambda: "Acquired lock" in scheduler.text(), 20, "it leads")
    entries = json.loads(fresh.run("core", "scheduler", "list", "--json").stdout)

    assert [(entry["name"], entry["schedule"]) for entry in entries] == [(TICK, "every 3600 s")]
    due_in = datetime.fromisoformat(entries[0]["next_run"]) - datetime.now(UTC)
    assert 3500 < due_in.total_seconds() <= 3600


def test_a_message_expires_when_the_next_one_is_due(fresh: Project) -> None:
    """So an outage of the workers leaves one run to do. With short intervals it is those of the last 10 s."""
    for name, schedule in {"fives": "interval=300", "hours": "cron='0 * * * *'", "seconds": "interval=1"}.items():
        fresh.write(f"src/apps/{name}/tasks.py", PERIODIC.format(schedule=schedule, name=name))
    start(fresh).wait_for("tasks.seconds (")
    fresh.run("core", "scheduler", "stop")
    with client(fresh) as redis:  # as if none of them had ever run
        [schedule] = redis.keys("*:beat::schedule")
        for key in redis.zrange(schedule, 0, -1):
            assert redis.hdel(key, "meta") == 1
        redis.delete("default")

    scheduler = start(fresh)
    for name in ("fives", "hours", "seconds"):
        scheduler.wait_for(f"Sending due task src.apps.{name}.tasks.{name}")
    now = datetime.now(UTC)

    def lives(name: str) -> float:
        wait_until(lambda: queued(fresh, f"src.apps.{name}.tasks.{name}"), 20, f"{name} is queued")
        [first, *_] = queued(fresh, f"src.apps.{name}.tasks.{name}")
        return (datetime.fromisoformat(first["expires"]) - now).total_seconds()

    until_the_hour = 3600 - (now.minute * 60 + now.second + now.microsecond / 1e6)
    assert lives("fives") == pytest.approx(300, abs=3)
    assert lives("hours") == pytest.approx(until_the_hour, abs=3)
    assert lives("seconds") == pytest.approx(10, abs=3)


def test_the_schedule_outlives_a_kill_of_its_development_server(fresh: Project) -> None:
    """Nobody has to do anything: the scheduler itself starts the server again, and leads on."""
    scheduler = start(fresh)
    scheduler.wait_for("Sending due task")
    pid = json.loads(fresh.run("core", "broker", "status", "--json").stdout)["pid"]

    os.kill(pid, signal.SIGKILL)
    scheduler.wait_for("the schedule stands still: ")
    before = scheduler.text().count("Sending due task")

    wait_until(lambda: scheduler.text().count("Sending due task") > before + 1, 20, "it goes on")
    assert scheduler.text().count("the schedule stands still") == 1
    assert scheduler.stop() == 0


def test_the_schedule_outlives_a_redis_that_comes_back_empty(fresh: Project) -> None:
    socket = f"{fresh.root.parent}/redis.sock"
    url = f"unix://{socket}"
    with redis_server("--unixsocket", socket):
        scheduler = start(fresh, REDIS_URL=url)
        scheduler.wait_for("Sending due task")
    scheduler.wait_for("the schedule stands still: ")
    before = scheduler.text().count("Sending due task")

    with redis_server("--unixsocket", socket):
        wait_until(lambda: scheduler.text().count("Sending due task") > before + 1, 20, "it goes on")
        assert scheduler.stop() == 0


# What becomes of the schedule.


def schedule_keys(project: Project) -> dict[str, str]:
    """The keys of the entries, by the last word of their names."""
    with client(project) as redis:
        return {key.rpartition(".")[2]: key for key in redis.zrange(redis.keys("*:beat::schedule")[0], 0, -1)}


def two_tasks(project: Project) -> None:
    for name in ("ones", "others"):
        project.write(f"src/apps/{name}/tasks.py", PERIODIC.format(schedule="interval=1", name=name))


def sent(scheduler: Process, name: str) -> int:
    return scheduler.text().count(f"Sending due task src.apps.{name}.tasks.{name} ")


def goes_on(scheduler: Process, name: str) -> None:
    """Wait for two more runs: the first one may be under way."""
    before = sent(scheduler, name)
    wait_until(lambda: sent(scheduler, name) >= before + 2, 15, f"{name} goes on")


def test_entries_that_cannot_be_read_stop_nobody(quick: Project) -> None:
    """What the code declares begins anew, another one goes, and all others go on."""
    broken = ("text", "scheduleless", "bad", "hashless")
    for name in (*broken, "others"):
        quick.write(f"src/apps/{name}/tasks.py", PERIODIC.format(schedule="interval=1", name=name))
    scheduler = start(quick)
    goes_on(scheduler, "others")
    keys = schedule_keys(quick)

    with client(quick) as redis:
        [schedule] = redis.keys("*:beat::schedule")
        definition = json.loads(redis.hget(keys["text"], "definition") or "")
        cron = {"__type__": "crontab", "minute": "99", "hour": "*", "day_of_week": "*", "day_of_month": "*",
                "month_of_year": "*"}  # fmt: skip
        texts = ("{", json.dumps({**definition, "schedule": None}), json.dumps({**definition, "schedule": cron}), None)
        with redis.pipeline() as all_at_once:
            for name, text in zip(broken, texts, strict=True):
                for key in (keys[name], keys[name].replace(f"{name}.tasks.{name}", f"{name}.ghost")):
                    if text is None:
                        all_at_once.delete(key)
                        all_at_once.set(key, "text")
                    else:
                        all_at_once.hset(key, "definition", text)
                    all_at_once.zadd(schedule, {key: 1})
            all_at_once.execute()

    for name in broken:
        scheduler.wait_for(f"ERROR {keys[name]} is no entry that can be read (")
    for name in (*broken, "others"):
        goes_on(scheduler, name)
    said = scheduler.text()
    assert (said.count("it begins anew"), said.count("it is dropped")) == (4, 4)
    assert "ghost" not in schedule_keys(quick)
    assert scheduler.stop() == 0


def test_an_entry_that_no_broker_takes_holds_up_no_other(quick: Project) -> None:
    for name, schedule in {"ones": "interval=1, queue='refused'", "others": "interval=1"}.items():
        quick.write(f"src/apps/{name}/tasks.py", PERIODIC.format(schedule=schedule, name=name))
    with client(quick) as redis:
        redis.set("refused", "no list")
    scheduler = start(quick)

    scheduler.wait_for("It is tried again.")
    goes_on(scheduler, "others")
    with client(quick) as redis:
        redis.delete("refused")
        wait_until(lambda: redis.llen("refused") >= 2, 10, "it is sent when it can be")
    assert scheduler.text().count("It is tried again.") == 1


def test_a_leader_that_loses_its_lock_leads_again_or_stands_by(quick: Project) -> None:
    scheduler = start(quick)
    scheduler.wait_for("Sending due task")
    with client(quick) as redis:
        [lock] = redis.keys("*:beat::lock")
        redis.delete(lock)
        wait_until(lambda: scheduler.text().count("Acquired lock") == 2, 10, "it leads again")

        redis.set(lock, "of somebody else", px=6000)
        scheduler.wait_for("another scheduler leads now")
        assert redis.get(lock) == "of somebody else"

    wait_until(lambda: scheduler.text().count("Acquired lock") == 3, 10, "it leads when the other one is gone")
    stood_by = scheduler.text().partition("another scheduler leads now")[2].partition("Acquired lock")[0]
    assert stood_by.count("Sending due task") <= 1
    assert scheduler.stop() == 0


def test_a_leader_that_was_frozen_for_longer_than_its_lock_sends_nothing_twice(quick: Project) -> None:
    leader = start(quick)
    leader.wait_for("Sending due task")
    standby = start(quick, "--pidfile", "standby.pid")
    standby.wait_for("standing by")

    leader.signal(signal.SIGSTOP)
    standby.wait_for("Sending due task")
    leader.signal(signal.SIGCONT)

    leader.wait_for("another scheduler leads now")
    ids = [message["id"] for message in queued(quick)]
    assert len(ids) == len(set(ids))


def test_a_standby_of_another_release_changes_nothing(quick: Project, tmp_path: Path) -> None:
    """Only the leader stores what its code declares."""
    two_tasks(quick)
    start(quick).wait_for("Sending due task")
    keys = schedule_keys(quick)
    quick.write("src/apps/ones/tasks.py", PERIODIC.format(schedule="interval=7", name="ones"))
    quick.write("src/apps/others/tasks.py", "")

    start(quick, "--pidfile", "standby.pid").wait_for("standing by")

    with client(quick) as redis:
        assert json.loads(redis.hget(keys["ones"], "definition") or "")["schedule"]["every"] == 1
    assert schedule_keys(quick) == keys


def test_a_run_that_was_sent_and_not_noted_is_not_sent_again(quick: Project) -> None:
    """As by a leader that was killed in between: the next one sends the same call, which is there already."""
    quick.write("src/apps/ones/tasks.py", PERIODIC.format(schedule="interval=3600", name="ones"))
    start(quick).wait_for("Sending due task")
    key = schedule_keys(quick)["ones"]
    with client(quick) as redis:
        meta = json.loads(redis.hget(key, "meta") or "")
        meta["last_run_at"] = {**meta["last_run_at"], "year": meta["last_run_at"]["year"] - 1, "day": 1}
        overdue = json.dumps(meta)

        def is_due() -> None:
            redis.hset(key, "meta", overdue)
            redis.zadd(redis.keys("*:beat::schedule")[0], {key: 1})

        is_due()
        wait_until(lambda: len(queued(quick, "src.apps.ones.tasks.ones")) == 1, 10, "it is sent once for a year")
        wait_until(lambda: redis.hget(key, "meta") != overdue, 10, "it is noted")
        quick.run("core", "scheduler", "stop")
        is_due()

        start(quick).wait_for("Sending due task src.apps.ones.tasks.ones")
        wait_until(lambda: redis.hget(key, "meta") != overdue, 10, "it is noted")
    assert len(queued(quick, "src.apps.ones.tasks.ones")) == 1


def test_what_is_paused_stays_so_until_it_is_resumed(quick: Project) -> None:
    two_tasks(quick)
    scheduler = start(quick)
    goes_on(scheduler, "ones")

    assert quick.run("core", "scheduler", "pause", "ones").stdout == "paused src.apps.ones.tasks.ones\n"
    time_of_both = sent(scheduler, "ones"), sent(scheduler, "others")
    wait_until(lambda: sent(scheduler, "others") >= time_of_both[1] + 5, 15, "the other one goes on")
    assert sent(scheduler, "ones") <= time_of_both[0] + 2
    assert scheduler.stop() == 0
    scheduler = start(quick)
    goes_on(scheduler, "others")
    assert sent(scheduler, "ones") == 0
    assert "src.apps.ones.tasks.ones  every 1 s  queue default" in quick.run("core", "scheduler", "list").stdout

    assert quick.run("core", "scheduler", "resume", "ones").stdout == "resumed src.apps.ones.tasks.ones\n"
    goes_on(scheduler, "ones")


def test_a_run_that_is_later_than_its_max_lateness_is_left_out(quick: Project) -> None:
    for name, most in {"ones": "max_lateness=60", "others": "max_lateness=None"}.items():
        schedule = f"interval=3600, {most}"
        quick.write(f"src/apps/{name}/tasks.py", PERIODIC.format(schedule=schedule, name=name))
    start(quick).wait_for("Sending due task")
    quick.run("core", "scheduler", "stop")
    with client(quick) as redis:  # it was down for 5 and a half hours
        for key in schedule_keys(quick).values():
            meta = json.loads(redis.hget(key, "meta") or "")
            at = datetime.fromtimestamp(time.time() - 5.5 * 3600, UTC)
            names = ("year", "month", "day", "hour", "minute", "second", "microsecond")
            meta["last_run_at"] |= {name: getattr(at, name) for name in names}
            redis.hset(key, "meta", json.dumps(meta))

    scheduler = start(quick)

    scheduler.wait_for("Sending due task src.apps.others.tasks.others")
    scheduler.wait_for("src.apps.ones.tasks.ones was due 16")
    assert "more than its max_lateness of 60 s: skipped" in scheduler.text()
    assert (sent(scheduler, "ones"), sent(scheduler, "others")) == (0, 1)


# Stopping, and the pidfile.


def test_stop_returns_when_the_scheduler_is_gone_and_the_next_can_start(fresh: Project) -> None:
    scheduler = start(fresh)
    scheduler.wait_for("Sending due task")

    stopped = fresh.run("core", "scheduler", "stop")

    assert (stopped.returncode, stopped.stdout) == (0, f"stopped (pid {scheduler.pid})\n")
    assert scheduler.wait(1) == 0
    assert "Traceback" not in scheduler.text()
    start(fresh).wait_for("Sending due task")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_ends_a_leader_and_a_standby(quick: Project, number: signal.Signals) -> None:
    leader = start(quick)
    leader.wait_for("Acquired lock")
    standby = start(quick, "--pidfile", "standby.pid")

    for scheduler in (standby, leader):
        scheduler.signal(number)
        assert scheduler.wait(10) == 0
        assert "Traceback" not in scheduler.text()


def test_of_two_starts_at_once_one_wins(fresh: Project) -> None:
    both = [fresh.start("core", "scheduler", "start") for _ in range(2)]
    wait_until(lambda: any(p.popen.poll() is not None for p in both), 20, "one of them gives up")

    ended, running = sorted(both, key=lambda process: process.popen.poll() is None)
    running.wait_for("Sending due task")

    assert ended.wait() == 73
    assert f"already running here (pid {running.pid}, " in ended.text()


@pytest.fixture(scope="module")
def shared() -> Iterator[Project]:
    """One project for the tests in which no scheduler runs."""
    with project() as made:
        yield made


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any scheduler."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("text", ["{stranger}\n", "", "garbage\n", "-1", "0", "1", "99999999999"])
def test_a_file_that_nobody_holds_stops_nobody(shared: Project, stranger: subprocess.Popen[bytes], text: str) -> None:
    """Whatever it says: a pid that belongs to somebody else by now is never signalled."""
    pidfile(shared).parent.mkdir(parents=True, exist_ok=True)
    pidfile(shared).write_text(text.format(stranger=stranger.pid))

    stopped = shared.run("core", "scheduler", "stop")

    assert (stopped.returncode, stopped.stdout) == (3, "")
    assert stranger.poll() is None


def test_a_file_left_by_a_kill_is_no_obstacle(fresh: Project, stranger: subprocess.Popen[bytes]) -> None:
    """Nor is it when its pid has been given to another process since."""
    killed = start(fresh)
    killed.wait_for("Acquired lock")
    killed.kill()
    assert pidfile(fresh).read_text() == f"{killed.pid}\n"
    assert fresh.run("core", "scheduler", "status").returncode == 3
    pidfile(fresh).write_text(f"{stranger.pid}\n")

    successor = start(fresh)

    told = fresh.run("core", "scheduler", "status")
    assert (told.returncode, f"pid {successor.pid}" in told.stdout) == (0, True)
    assert fresh.run("core", "scheduler", "stop").returncode == 0
    assert successor.wait(1) == 0
    assert stranger.poll() is None


def test_a_link_in_the_place_of_the_pidfile_is_refused(fresh: Project) -> None:
    """What it points to is not written."""
    victim = fresh.write("victim.txt", "precious\n")
    pidfile(fresh).parent.mkdir(parents=True)
    pidfile(fresh).symlink_to(victim)

    refused = fresh.run("core", "scheduler", "start")

    assert refused.returncode == 2
    assert "scheduler.pid cannot be written" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert victim.read_text() == "precious\n"


# Runs that overlap.


def test_without_overlap_a_run_waits_for_nothing_and_is_left_out(quick: Project) -> None:
    quick.write(
        "src/apps/slow/tasks.py",
        "import asyncio\nfrom core.tasks import periodic_task\n\n\n"
        "@periodic_task(interval=1, overlap=False)\nasync def slow():\n    await asyncio.sleep(2.5)\n",
    )
    scheduler = start(quick)
    worker = quick.worker("--concurrency", "10")

    scheduler.wait_for("src.apps.slow.tasks.slow: its last run (")
    wait_until(lambda: len(re.findall(r"slow\[\S+ success", worker.text())) >= 2, 20, "it has run twice")

    scheduler.stop()
    ends = [float(at) for at in re.findall(r"slow\[\S+ success in ([\d.]+)", worker.text())]
    left_out = scheduler.text().count("its last run (")
    assert all(2.4 < seconds < 3.5 for seconds in ends)
    assert left_out >= 2 * (len(ends) - 1)
