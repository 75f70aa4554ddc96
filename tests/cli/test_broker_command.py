"""`core broker`: words, JSON and exit codes."""

import json

from support import Project


def test_start_stop_and_status_tell_with_words_and_exit_codes(fresh: Project) -> None:
    before = fresh.run("core", "broker", "status")
    assert (before.returncode, before.stdout) == (3, "not running\n")

    started = fresh.run("core", "broker", "start")
    assert started.returncode == 0
    assert f" · {fresh.root}/.core/broker.sock" in started.stdout
    again = fresh.run("core", "broker", "start")
    assert (again.returncode, again.stdout, again.stderr) == (0, started.stdout, "")

    running = fresh.run("core", "broker", "status")
    assert (running.returncode, running.stdout) == (0, f"running · {started.stdout}")

    stopped = fresh.run("core", "broker", "stop")
    assert stopped.returncode == 0
    assert stopped.stdout.startswith("stopped (pid ")
    idle = fresh.run("core", "broker", "stop")
    assert idle.returncode == 3
    assert idle.stderr == f"Error: No development server is running for {fresh.root}.\n"


def test_status_has_one_json_document_on_stdout(fresh: Project) -> None:
    before = fresh.run("core", "broker", "status", "--json")
    assert (before.returncode, json.loads(before.stdout)) == (3, {"running": False})

    fresh.run("core", "broker", "start")
    running = fresh.run("core", "broker", "status", "--json")

    found = json.loads(running.stdout)
    assert (running.returncode, sorted(found)) == (0, ["pid", "running", "socket", "version"])
    assert found["socket"] == str(fresh.root / ".core/broker.sock")


def test_a_stopped_server_is_gone_when_the_command_ends(fresh: Project) -> None:
    """So that a start right behind it gets a new server, not one that is on its way out."""
    fresh.run("core", "broker", "start")

    fresh.run("core", "broker", "stop")

    assert not (fresh.root / ".core/broker.sock").exists()
    assert fresh.run("core", "broker", "start").returncode == 0
    assert fresh.run("core", "broker", "status").returncode == 0
