"""`core scheduler`: words, JSON and exit codes."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from redbeat.decoder import RedBeatJSONEncoder
from redis import Redis
from support import Process, Project, project

SETTINGS = "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n"


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Project, Process]]:
    """The example project with its scheduler, which leads."""
    with project() as made:
        scheduler = made.start("core", "scheduler", "start")
        scheduler.wait_for("Sending due task")
        yield made, scheduler


def test_status_says_who_leads(running: tuple[Project, Process]) -> None:
    project, scheduler = running

    told = project.run("core", "scheduler", "status")
    document = json.loads(project.run("core", "scheduler", "status", "--json").stdout)

    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"running · pid {scheduler.pid} · leader · ")
    assert (document["running"], document["pid"], document["role"]) == (True, scheduler.pid, "leader")
    assert document["leader"]["pid"] == scheduler.pid


def test_a_second_start_exits_73_and_says_where_the_first_is(running: tuple[Project, Process]) -> None:
    project, scheduler = running

    second = project.run("core", "scheduler", "start")

    assert second.returncode == 73
    assert f"already running here (pid {scheduler.pid}, {project.root}/.core/run/scheduler.pid)" in second.stderr
    assert "Traceback" not in second.stderr


def test_run_queues_a_call_now(running: tuple[Project, Process]) -> None:
    project, _ = running

    done = project.run("core", "scheduler", "run", "sync_external_data")
    wrong = project.run("core", "scheduler", "run", "sync_external_date")

    result = project.caller(f"from core.tasks import TaskResult\nimport asyncio\n"
                            f"print(asyncio.run(TaskResult.from_id({done.stdout.strip()!r}).exists()))")  # fmt: skip
    assert result.stdout.strip() == "True"
    assert wrong.returncode == 2
    assert "Did you mean 'sync_external_data'?" in wrong.stderr


def test_stop_with_another_pidfile_does_not_stop_this_one(running: tuple[Project, Process]) -> None:
    """It has nothing to stop there, and names who leads instead."""
    project, scheduler = running

    stopped = project.run("core", "scheduler", "stop", "--pidfile", "other.pid")

    assert stopped.returncode == 3
    assert f"(pid {scheduler.pid}) leads; stop it there." in stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1
    assert scheduler.popen.poll() is None


def test_list_names_every_entry_with_its_next_time(running: tuple[Project, Process]) -> None:
    project, _ = running

    told = project.run("core", "scheduler", "list")
    entries = {entry["name"]: entry for entry in json.loads(project.run("core", "scheduler", "list", "--json").stdout)}

    assert told.returncode == 0
    assert "src.apps.tokens.tasks.sync_external_data  every 1 s  queue default  next 20" in told.stdout
    hourly = entries["src.apps.tokens.tasks.cleanup_expired_tokens"]
    assert (hourly["schedule"], hourly["queue"], hourly["enabled"]) == ("cron 0 * * * *", "default", True)
    assert hourly["next_run"].endswith(":00:00+00:00")


def test_a_restart_changes_no_time_of_the_list(fresh: Project) -> None:
    """An hourly run that is due in half an hour is due then, and not when the scheduler starts."""
    fresh.write(
        "src/apps/hours/tasks.py",
        "from core.tasks import periodic_task\n\n\n@periodic_task(interval=3600)\nasync def hours(): ...\n",
    )
    scheduler = fresh.start("core", "scheduler", "start")
    scheduler.wait_for("Sending due task")
    assert scheduler.stop() == 0
    half_an_hour_ago = datetime.now(UTC) - timedelta(minutes=30)
    with Redis(unix_socket_path=str(fresh.root / ".core/broker.sock"), decode_responses=True) as client:
        [key] = client.keys("*:beat:src.apps.hours.tasks.hours")
        client.hset(key, "meta", json.dumps({"last_run_at": half_an_hour_ago}, cls=RedBeatJSONEncoder))

    fresh.start("core", "scheduler", "start").wait_for("Sending due task")
    entries = {entry["name"]: entry for entry in json.loads(fresh.run("core", "scheduler", "list", "--json").stdout)}

    due_in = datetime.fromisoformat(entries["src.apps.hours.tasks.hours"]["next_run"]) - datetime.now(UTC)
    assert timedelta(minutes=29) < due_in <= timedelta(minutes=30)


def test_without_a_scheduler_list_shows_what_the_code_declares(fresh: Project) -> None:
    fresh.write(
        "src/apps/off/tasks.py",
        "from core.tasks import periodic_task\n\n\n"
        "@periodic_task(cron='@daily', queue='night', enabled=False)\nasync def off(): ...\n",
    )

    told = fresh.run("core", "scheduler", "list")

    assert told.returncode == 0, told.stderr
    assert "src.apps.off.tasks.off  cron 0 0 * * *  queue night  next disabled" in told.stdout
    assert "next no scheduler has run yet" in told.stdout


def test_with_nothing_periodic_the_list_is_an_empty_document(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/tasks.py", "from core.tasks import task\n\n\n@task\nasync def f(): ...\n")

    listed = empty.run("core", "scheduler", "list", "--json")

    assert (listed.returncode, listed.stdout) == (0, "[]\n")


def test_where_none_runs_stop_and_status_exit_3(fresh: Project) -> None:
    stopped = fresh.run("core", "scheduler", "stop")
    told = fresh.run("core", "scheduler", "status")
    document = fresh.run("core", "scheduler", "status", "--json")

    assert stopped.returncode == told.returncode == document.returncode == 3
    assert stopped.stderr.splitlines()[-1] == "Error: No scheduler of this project is running on this host."
    assert told.stdout == "not running here\n"
    nothing = dict.fromkeys(("pid", "role", "leader", "lock_ends_in", "next_entry", "next_run"))
    assert json.loads(document.stdout) == {"running": False, "standbys": [], **nothing}


def test_a_scheduler_does_not_start_where_tasks_are_disabled(fresh: Project) -> None:
    refused = fresh.run("core", "scheduler", "start", TASK_ENABLED="false")

    assert refused.returncode == 2
    assert "The scheduler does not start: task_enabled is False. Set TASK_ENABLED=true" in refused.stderr


@pytest.mark.parametrize("command", ["list", "status"])
def test_a_redis_that_does_not_answer_ends_what_asks_once(fresh: Project, command: str) -> None:
    ended = fresh.run("core", "scheduler", command, "--json", REDIS_URL="redis://127.0.0.1:1/0")

    assert (ended.returncode, ended.stdout) == (69, "")
    assert ended.stderr == (
        "Error: No Redis answers at 127.0.0.1:1/0: Connection refused. "
        "Start it, or set REDIS_URL to one that is running.\n"
    )


def test_stop_needs_no_redis_to_find_that_nothing_runs(fresh: Project) -> None:
    assert fresh.run("core", "scheduler", "stop", REDIS_URL="redis://127.0.0.1:1/0").returncode == 3


def test_the_pidfile_is_refused_where_it_cannot_be(fresh: Project) -> None:
    refused = fresh.run("core", "scheduler", "start", "--pidfile", str(fresh.root / "src/settings.py/x.pid"))

    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr
    assert "Traceback" not in refused.stderr
