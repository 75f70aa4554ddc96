"""The scheduler in real processes: what fires when, who leads, and a pidfile that never points at a stranger."""

import json
import os
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

    assert first.stop() == 0

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
