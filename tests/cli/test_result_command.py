"""`core result`: words, JSON and exit codes, for calls that are stored as a worker stores them."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from support import CORE, Project, clean_environment, project, redis_server, wait_until

DONE = "2026-11-24T09:34:39.319000+00:00"
FAILED = {"exc_type": "ValueError", "exc_message": ["no \x1b[31mred"], "exc_module": "builtins"}
AWAY = "redis://127.0.0.1:1/0"


class Calls:
    """Calls in a Redis, and the command that looks at them."""

    def __init__(self, made: Project, url: str) -> None:
        self.project = made
        self.redis = Redis.from_url(url)
        made.environment["REDIS_URL"] = url

    def store(self, call: str, status: str, result: Any = None, **more: Any) -> None:
        meta = json.dumps({"status": status, "result": result, "traceback": None, "date_done": None, **more})
        self.redis.set(f"celery-task-meta-{call}", meta)
        self.redis.publish(f"celery-task-meta-{call}", meta)

    def core(self, *words: str, **environment: str) -> Any:
        return self.project.run("core", "result", *words, **environment)

    def is_followed(self) -> bool:
        return bool(self.redis.pubsub_channels())


@pytest.fixture(scope="module")
def calls() -> Iterator[Calls]:
    with project() as made, redis_server() as (url, _):
        found = Calls(made, url)
        yield found
        found.redis.close()


def test_a_call_that_has_succeeded(calls: Calls) -> None:
    calls.store("a", "SUCCESS", {"sent": True}, name="mail.send", date_done=DONE)

    words, document = calls.core("a"), calls.core("a", "--json")

    assert words.stdout.splitlines() == [
        "id       a", "task     mail.send", "status   success", 'result   {"sent": true}',
    ]  # fmt: skip
    assert json.loads(document.stdout) == {
        "id": "a", "task": "mail.send", "status": "success", "progress": None, "result": {"sent": True},
        "error": None, "traceback": None, "finished": DONE,
    }  # fmt: skip
    assert (words.returncode, document.returncode, words.stderr) == (0, 0, "")


def test_a_call_that_has_failed_exits_1_and_shows_its_traceback(calls: Calls) -> None:
    calls.store("a", "FAILURE", FAILED, traceback="Traceback (most recent):\n  far away\x07", name="mail.send")

    words, document = calls.core("a", "--follow"), calls.core("a", "--json")

    assert words.stdout.splitlines() == [
        "id       a", "task     mail.send", "status   failed", "error    ValueError: no \ufffd[31mred",
        "Traceback (most recent):", "  far away\ufffd",
    ]  # fmt: skip
    assert json.loads(document.stdout)["error"] == "ValueError: no \x1b[31mred"
    assert (words.returncode, document.returncode) == (1, 1)


def test_a_call_that_runs_shows_how_far_it_is(calls: Calls) -> None:
    calls.store("a", "PROGRESS", {"done": 3, "total": 10, "message": "row 3"})

    words, document = calls.core("a"), calls.core("a", "--json")

    assert words.stdout.splitlines()[2:] == ["status   running", "progress 3 of 10 (30 %) row 3"]
    assert json.loads(document.stdout)["progress"] == {"done": 3, "total": 10, "message": "row 3"}
    assert (words.returncode, document.returncode) == (0, 0)


def test_a_call_that_nobody_queued_exits_1(calls: Calls) -> None:
    done = calls.core("nobody")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: Nothing is known of nobody: ")


@pytest.mark.parametrize("options", [(), ("--follow",)], ids=["once", "follow"])
def test_without_redis_it_exits_69(calls: Calls, options: tuple[str, ...]) -> None:
    done = calls.core("a", *options, REDIS_URL=AWAY)

    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("Error: No Redis answers at 127.0.0.1:1/0")


def test_a_call_is_followed_line_by_line_to_its_end(calls: Calls) -> None:
    calls.store("a", "PENDING")
    follower = calls.project.start("core", "result", "a", "--follow")
    wait_until(calls.is_followed, 20, "it is followed")

    for number in (1, 2):
        calls.store("a", "PROGRESS", {"done": number, "total": 2, "message": f"row {number}"})
        follower.wait_for(f"row {number}\n")
    calls.store("a", "SUCCESS", 7)

    assert follower.wait() == 0
    assert follower.text().splitlines() == [
        "1 of 2 (50 %) row 1", "2 of 2 (100 %) row 2", "id       a", "task     -", "status   success", "result   7",
    ]  # fmt: skip


def test_a_document_is_all_there_is_on_stdout_at_the_end(calls: Calls) -> None:
    calls.store("a", "PROGRESS", {"done": 1, "total": 2, "message": ""})
    follower = calls.project.start("core", "result", "a", "--follow", "--json")
    wait_until(calls.is_followed, 20, "it is followed")
    calls.store("a", "FAILURE", FAILED)

    assert follower.wait() == 1
    assert json.loads(follower.text())["status"] == "failed"


def test_on_a_terminal_there_is_a_bar(calls: Calls) -> None:
    calls.store("a", "PENDING")
    terminal, theirs = os.openpty()
    follower = subprocess.Popen(
        [CORE, "result", "a", "--follow"], cwd=calls.project.root, stdin=theirs, stdout=theirs, stderr=theirs,
        env=clean_environment(**calls.project.environment, TERM="xterm"),
    )  # fmt: skip
    os.close(theirs)
    shown = b""

    def reads(text: bytes) -> bool:
        nonlocal shown
        try:
            shown += os.read(terminal, 10_000)
        except OSError:  # the other end is closed
            return True
        return text in shown

    wait_until(calls.is_followed, 20, "it is followed")
    calls.store("a", "PROGRESS", {"done": 1, "total": 2, "message": "row [1]"})
    wait_until(lambda: reads(b"row [1]"), 20, "the bar has the message")
    calls.store("a", "SUCCESS", 7)
    wait_until(lambda: reads(b"result   7"), 20, "it has ended")
    os.close(terminal)

    assert follower.wait(20) == 0
    assert re.search(r"━.* 50%", shown.decode())
