"""How a worker starts: what it serves, what it says, and what it waits for."""

import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import CORE, Process, Project, redis_server, wait_until

from core.tasks import TaskError

# Root ignores the permissions of files unless it gives that power up for the command that it starts.
WITHOUT_ROOTS_POWERS = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
if os.getuid() == 0:
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
QUEUE_ONE = "import asyncio\nfrom src.apps.probe.tasks import add\nprint(asyncio.run(add.delay(20, 3)).id)"


def ready_line(worker: Process) -> str:
    return re.findall(r"serving .*", worker.text())[0]


def test_the_ready_line_says_what_is_served_how_many_at_once_and_where(worker: Process, pool: str) -> None:
    processes = {"prefork": "4 processes"}.get(pool, "1 process")

    assert ready_line(worker) == f"serving default, high-priority, other · 4 at once · {pool}, {processes}"


async def test_a_worker_looks_for_garbage_but_not_in_what_it_was_started_with(worker: Process) -> None:
    """While it starts it does not look at all."""
    from src.apps.probe.tasks import garbage

    looks, frozen = await (await garbage.delay()).get(timeout=20)

    assert looks
    assert frozen > 50_000


async def test_a_finished_call_has_one_line_without_its_arguments(worker: Process) -> None:
    from src.apps.probe.tasks import echo, permanent

    done = await echo.delay("a-secret-of-the-user")
    failed = await permanent.delay()
    await done.get(timeout=20)
    with pytest.raises(Exception, match="permanent"):
        await failed.get(timeout=20)

    def lines(id: str) -> list[str]:
        return [line for line in worker.text().splitlines() if id in line]

    wait_until(lambda: lines(done.id) and lines(failed.id), 20, "both calls are logged")
    assert len(lines(done.id)) == len(lines(failed.id)) == 1
    assert re.search(rf" INFO src\.apps\.probe\.tasks\.echo\[{done.id}\] success in \d+\.\d{{3}} s$", lines(done.id)[0])
    assert f" ERROR src.apps.probe.tasks.permanent[{failed.id}] failed and was not retried: " in lines(failed.id)[0]
    assert "a-secret-of-the-user" not in worker.text()


async def test_a_failure_names_the_command_that_shows_it_again(worker: Process, example: Project) -> None:
    from src.apps.probe.tasks import permanent

    failed = await permanent.delay()
    with pytest.raises(Exception, match="permanent"):
        await failed.get(timeout=20)
    (line,) = [line for line in worker.text().splitlines() if f"permanent[{failed.id}]" in line]

    words = re.search(r"See `core (result [\w-]+)` \(\d+\.\d{3} s\)$", line)

    assert words, line
    shown = example.run("core", *words[1].split())
    assert shown.returncode == 1
    assert "src/apps/probe/tasks.py" in shown.stdout
    assert shown.stdout.endswith("OwnError: ('permanent', 7)\n")


async def test_a_traceback_begins_in_the_body(worker: Process) -> None:
    """What calls it is the same for every call, and nothing that its author could change."""
    from src.apps.probe.tasks import OwnError, caused, fails_sync

    for call in (await caused.delay(), await fails_sync.delay("sync")):
        with pytest.raises((TaskError, OwnError), match=r"later|sync"):
            await call.get(timeout=20)
        log = wait_until(lambda call=call: worker.text().partition(f"[{call.id}] failed")[2], 20, "it is logged")
        shown = re.findall(r"^(Traceback .*|  File .*|The above exception.*)$", log, re.MULTILINE)
        assert shown[0].startswith("Traceback")
        assert "src/apps/probe/tasks.py" in shown[1], log
        assert not any("core/tasks/" in line for line in shown[:5]), log


def test_celerys_own_command_is_the_same_worker(fresh: Project) -> None:
    environment = {"TASK_QUEUES": "mail,reports", "TASK_WORKER_PROCESSES": "1"}  # Celery's own command starts one
    celerys = fresh.start("celery", "-A", "core", "worker", "-l", "info", "-c", "2", **environment)
    own = fresh.start("core", "runworker", "-c", "2", **environment)
    celerys.wait_for("serving ")
    own.wait_for("serving ")

    id = fresh.caller(QUEUE_ONE, **environment).stdout.strip()

    assert ready_line(celerys) == ready_line(own)
    assert ready_line(own) == "serving default, mail, reports, high-priority, other · 2 at once · asyncio, 1 process"
    wait_until(lambda: f"[{id}] success in " in celerys.text() + own.text(), 20, "one of them runs it")


def test_the_number_of_calls_at_once_comes_from_the_settings(fresh: Project) -> None:
    """Without it, threads have 50."""
    three = fresh.start("core", "runworker", TASK_WORKER_POOL="threads", TASK_WORKER_CONCURRENCY="3")
    many = fresh.start("core", "runworker", "--pool", "threads")
    three.wait_for("serving ")
    many.wait_for("serving ")

    assert "· 3 at once · threads" in ready_line(three)
    assert "· 50 at once · threads" in ready_line(many)


def test_a_worker_with_queues_serves_only_them(fresh: Project) -> None:
    worker = fresh.worker("--pool", "threads", "--queue", "high-priority", "--queue", "other")
    assert "serving high-priority, other · " in ready_line(worker)

    fresh.caller(
        "import asyncio\n"
        "from src.apps.probe.tasks import add, elsewhere\n"
        "async def main():\n"
        "    await add.delay(1)\n"
        "    await elsewhere.delay()\n"
        "asyncio.run(main())"
    )

    worker.wait_for("elsewhere[")
    with Redis(unix_socket_path=str(fresh.root / ".core/broker.sock")) as client:
        assert client.llen("default") == 1
    assert "tasks.add[" not in worker.text()


def test_worker_and_scheduler_wait_for_redis_and_join_by_themselves(fresh: Project) -> None:
    """They say once that they wait, however long it takes."""
    socket = f"{fresh.root.parent}/later.sock"
    url = f"unix://{socket}"
    worker = fresh.start("core", "runworker", "--pool", "threads", REDIS_URL=url)
    scheduler = fresh.start("core", "scheduler", "start", REDIS_URL=url)
    for process in (worker, scheduler):
        process.wait_for(f"No Redis answers at {socket}: No such file or directory.")
    # It looks again after 0.5 s: both have met the missing server at least twice when the worker's call fails.
    assert "was not queued" in fresh.caller(QUEUE_ONE, REDIS_URL=url).stderr

    with redis_server("--unixsocket", socket):
        worker.wait_for("serving ")
        worker.wait_for("sync_external_data[")
        assert worker.text().count("No Redis answers") == scheduler.text().count("No Redis answers") == 1
        assert "Traceback" not in worker.text() + scheduler.text()
        assert (worker.stop(), scheduler.stop()) == (0, 0)


@pytest.mark.parametrize("command", [("runworker",), ("scheduler", "start")], ids=" ".join)
def test_what_waits_for_redis_can_be_stopped(fresh: Project, command: tuple[str, ...]) -> None:
    process = fresh.start("core", *command, REDIS_URL="redis://127.0.0.1:1/0")
    process.wait_for("Connection refused. Start it, or set REDIS_URL to one that is running. Waiting for it")

    process.signal(signal.SIGTERM)

    assert process.wait(10) == 0


def test_a_project_that_cannot_be_written_runs_with_a_redis_of_its_own(fresh: Project, tmp_path: Path) -> None:
    """As in a container: the scheduler's pidfile goes to the user's runtime directory."""
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    fresh.root.chmod(0o555)
    alone = (sys.executable, "-c", WITHOUT_ROOTS_POWERS, CORE)
    with redis_server() as (url, _):
        environment = {"REDIS_URL": url, "XDG_RUNTIME_DIR": str(runtime), "PYTHONDONTWRITEBYTECODE": "1"}
        worker = fresh.start(*alone, "runworker", **environment)
        scheduler = fresh.start(*alone, "scheduler", "start", **environment)
        worker.wait_for("sync_external_data[")

        told = fresh.run(*alone, "scheduler", "status", **environment)
        stopped = fresh.run(*alone, "scheduler", "stop", **environment)

        assert worker.stop() == scheduler.wait() == 0
    fresh.root.chmod(0o755)
    assert told.stdout.startswith(f"running · pid {scheduler.pid} · leader"), told.stderr
    assert (stopped.returncode, stopped.stdout) == (0, f"stopped (pid {scheduler.pid})\n")
    assert [file.name for file in runtime.rglob("*.pid")] == ["scheduler.pid"]
    assert not (fresh.root / ".core").exists()


def test_a_folder_named_core_is_pointed_out_at_the_start(fresh: Project) -> None:
    """It does no harm to `core runworker`, and `celery -A core` would load it in place of this package."""
    fresh.write("core/__init__.py", "")

    worker = fresh.worker("--pool", "threads")

    assert f"{fresh.root}/core has the name of the installed package `core`" in worker.text()


def test_celerys_commands_see_the_worker_and_its_tasks(fresh: Project) -> None:
    fresh.worker("--pool", "threads", "--concurrency", "2")
    called = fresh.run("celery", "-A", "core", "call", "src.apps.probe.tasks.nap", "--args", "[10]").stdout.strip()

    def ask(what: str) -> Any:
        return fresh.run("celery", "-A", "core", "inspect", "--json", "--timeout", "2", what)

    with ThreadPoolExecutor() as at_once:
        asked = list(at_once.map(ask, ("ping", "registered", "active")))

    assert [done.returncode for done in asked] == [0, 0, 0]
    ping, registered, active = (done.stdout for done in asked)
    assert '"pong"' in ping
    assert "src.apps.emails.tasks.send_email" in registered
    assert called in active
