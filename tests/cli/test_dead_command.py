"""`core dead`: words, JSON and exit codes, on a list that is filled as a worker's scripts fill it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from support import CORE, Project, clean_environment, project, redis_server, wait_until

from core.tasks.dead import PRELUDE

AWAY = "redis://127.0.0.1:1/0"
FAILURE = {"status": "FAILURE", "result": {"exc_type": "ValueError", "exc_message": ["x"], "exc_module": "builtins"}}
TELL = """
import asyncio, json, sys
from core.tasks import TaskResult

async def main():
    call = TaskResult.from_id(sys.argv[1])
    print(json.dumps([await call.status(), await call.get(timeout=20) if len(sys.argv) > 2 else None]))

asyncio.run(main())
"""


class Dead:
    """A project with a Redis of its own, and its dead list."""

    def __init__(self, project: Project, url: str) -> None:
        self.project = project
        self.url = url
        self.redis = Redis.from_url(url)
        project.environment["REDIS_URL"] = url

    def core(self, *words: str, **environment: str) -> Any:
        """Run `core dead …`."""
        return self.project.run("core", "dead", *words, **environment)

    def asked(self, answer: str, *words: str) -> Any:
        """Run `core dead …` on a terminal where somebody types *answer*."""
        terminal, theirs = os.openpty()
        os.write(terminal, answer.encode())
        done = subprocess.run(
            [CORE, "dead", *words], cwd=self.project.root, env=clean_environment(**self.project.environment),
            stdin=theirs, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        os.close(terminal)
        os.close(theirs)
        return done

    def put(self, call_id: str, kind: str = "core-dead", prefix: str = "", **entry: str | None) -> None:
        """Put a call on the list, as a worker's script does."""
        made = {"task": "t.f", "queue": "default", "reason": "so", "list": "default", "message": "{}", **entry}
        script = PRELUDE + "set_aside(ARGV[1], ARGV[2], cjson.decode(ARGV[3]))"
        self.redis.eval(script, 0, prefix, kind, json.dumps({"id": call_id, **made}))

    def call(self) -> tuple[str, str]:
        """Make a real call that no worker has taken yet: its id, and its message off the queue."""
        done = self.project.caller("from src.apps.probe.tasks import add\nprint(add.delay_sync(2, b=3).id)")
        assert done.returncode == 0, done.stderr
        message = self.redis.rpop("default")
        assert isinstance(message, bytes)
        return done.stdout.strip(), message.decode()

    def outcome(self, call_id: str, *wait: str) -> Any:
        """Status and result of a call, as a caller sees them."""
        done = self.project.run(sys.executable, "-c", TELL, call_id, *wait)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def listed(self, *words: str) -> list[str]:
        """The ids that `core dead list --json` gives."""
        return [entry["id"] for entry in json.loads(self.core("list", "--json", *words).stdout)]


@pytest.fixture(scope="module")
def shared() -> Iterator[Dead]:
    with redis_server() as (url, _), project() as made:
        yield Dead(made, url)


@pytest.fixture
def dead(shared: Dead) -> Dead:
    shared.redis.flushall()
    return shared


# list


def test_an_empty_list_is_an_empty_document_and_no_words(dead: Dead) -> None:
    told, document = dead.core("list"), dead.core("list", "--json")

    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
    assert (document.returncode, document.stdout, document.stderr) == (0, "[]\n", "")


def test_list_says_what_is_there_and_why_the_youngest_first(dead: Dead) -> None:
    dead.put("a", reason="it lost its worker 3 times")
    dead.put("unreadable-1", task=None, queue=None, reason="no JSON")

    told, document = dead.core("list"), json.loads(dead.core("list", "--json").stdout)

    first, second = told.stdout.splitlines()
    assert first.endswith("+00:00  unreadable-1  -  queue -  no JSON")
    assert second.endswith("+00:00  a  t.f  queue default  it lost its worker 3 times")
    assert [list(entry) for entry in document] == [["id", "task", "queue", "reason", "at"]] * 2
    assert (document[0]["task"], document[0]["queue"]) == (None, None)
    assert second.startswith(document[1]["at"])


def test_list_is_narrowed_by_its_options(dead: Dead) -> None:
    dead.put("a")
    dead.put("b", "core-failed", task="t.g")
    dead.put("c", "core-failed", queue="low")

    assert dead.listed("--failed") == ["c", "b"]
    assert dead.listed("--set-aside") == ["a"]
    assert dead.listed("--task", "t.g") == ["b"]
    assert dead.listed("--queue", "low") == ["c"]
    assert dead.listed("--limit", "1") == ["c"]


def test_a_reader_that_goes_away_early_is_no_error_of_redis(dead: Dead) -> None:
    for number in range(2000):
        dead.put(f"{number}", reason="long " * 20)

    done = dead.project.run("bash", "-c", f"{CORE} dead list | head -1")

    assert done.stdout.count("\n") == 1
    assert "Redis" not in done.stderr


# show


def test_show_tells_all_of_a_call(dead: Dead) -> None:
    call_id, message = dead.call()
    dead.put(call_id, "core-failed", task="src.apps.probe.tasks.add", reason="ValueError: x", message=message)

    told, document = dead.core("show", call_id), json.loads(dead.core("show", call_id, "--json").stdout)

    assert (told.returncode, told.stderr) == (0, "")
    for line in ("task     src.apps.probe.tasks.add", "reason   ValueError: x", "kind     failed", "args     [2]"):
        assert line in told.stdout.splitlines()
    assert (document["args"], document["kwargs"], document["message"]) == ([2], {"b": 3}, message)
    assert document["headers"]["id"] == call_id


def test_what_a_stranger_wrote_does_nothing_to_the_terminal(dead: Dead) -> None:
    evil = "\x1b[2J\x07 \u202e \r\nfake line"
    dead.put("a", task=evil, reason=evil, message=json.dumps({"headers": {evil: evil}}))

    for command in (("list",), ("show", "a")):
        done = dead.core(*command)
        assert done.returncode == 0
        assert not set("\x1b\x07\u202e\r") & set(done.stdout)
        assert not any(line.startswith("fake") for line in done.stdout.splitlines())


def test_show_of_a_call_that_is_not_there_exits_1(dead: Dead) -> None:
    done = dead.core("show", "nobody", "--json")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: nobody is not on the dead list. `core dead list` says what is.\n"


# retry


def test_a_retried_call_is_pending_again_and_runs(dead: Dead) -> None:
    call_id, message = dead.call()
    dead.put(call_id, "core-failed", message=message)
    dead.redis.set(f"celery-task-meta-{call_id}", json.dumps({**FAILURE, "task_id": call_id}))
    assert dead.outcome(call_id) == ["failed", None]

    done = dead.core("retry", call_id)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{call_id} put back\n", "")
    assert dead.outcome(call_id) == ["pending", None]
    worker = dead.project.worker("--pool", "threads", "--concurrency", "1")
    assert dead.outcome(call_id, "wait")[1] == 5
    worker.stop()


def test_a_call_that_had_used_its_retries_up_has_one_attempt(dead: Dead) -> None:
    worker = dead.project.worker("--pool", "threads", "--concurrency", "1")
    done = dead.project.caller("from src.apps.probe.tasks import risky\nprint(risky.delay_sync('attempts').id)")
    call_id = done.stdout.strip()
    wait_until(lambda: dead.redis.exists("core-failed"), 20, "the call has failed for good")
    assert dead.listed() == [call_id]

    assert dead.core("retry", call_id).returncode == 0

    wait_until(lambda: dead.redis.exists("core-failed"), 20, "it has failed again")
    assert dead.listed() == [call_id]
    assert (dead.project.root / "attempts").read_text().split("\n") == [
        "attempt 1", "attempt 2", "attempt 3", "attempt 3", "",
    ]  # fmt: skip
    worker.stop()


def test_retry_does_what_it_can_and_exits_1_for_the_rest(dead: Dead) -> None:
    dead.put("a", message="one")
    dead.put("b", message=None)
    dead.put("c", message="three")

    done = dead.core("retry", "a", "nobody", "b", "c")

    assert (done.returncode, done.stdout) == (1, "a put back\nc put back\n")
    assert done.stderr.splitlines() == [
        "Error: nobody is not on the dead list.",
        "Error: b cannot be put back: its arguments were not kept (task_store_arguments). Call the task again.",
    ]
    assert dead.redis.lrange("default", 0, -1) == [b"three", b"one"]
    assert dead.listed() == ["b"]


def test_retry_of_all_is_narrowed_by_its_options(dead: Dead) -> None:
    dead.put("a")
    dead.put("b", task="t.g")
    dead.put("c", "core-failed")

    assert dead.core("retry", "--all", "--task", "t.g").stdout == "b put back\n"
    assert dead.core("retry", "--all", "--failed").stdout == "c put back\n"
    assert dead.core("retry", "--all").stdout == "a put back\n"
    assert (dead.core("retry", "--all").returncode, dead.redis.llen("default")) == (0, 3)


# purge


def test_purge_asks_on_a_terminal(dead: Dead) -> None:
    dead.put("a")
    dead.put("b")

    refused = dead.asked("n\n", "purge", "--all")

    assert refused.returncode == 1
    assert "Drop 2 calls for good? [y/N]" in refused.stdout + refused.stderr
    assert dead.listed() == ["b", "a"]
    assert dead.asked("y\n", "purge", "--all").stdout.splitlines()[-1].endswith("purged 2")
    assert dead.listed() == []


def test_purge_without_a_terminal_needs_yes(dead: Dead) -> None:
    dead.put("a")

    refused = dead.core("purge", "a")

    assert refused.returncode == 2
    assert "Add --yes." in refused.stderr
    assert dead.listed() == ["a"]
    assert dead.core("purge", "a", "--yes").stdout == "a purged\n"
    assert dead.listed() == []


def test_purge_does_what_it_can_and_exits_1_for_the_rest(dead: Dead) -> None:
    dead.put("a")

    done = dead.core("purge", "nobody", "a", "--yes")

    assert (done.returncode, done.stdout, done.stderr) == (
        1, "a purged\n", "Error: nobody is not on the dead list.\n",
    )  # fmt: skip
    assert dead.listed() == []


def test_purge_of_all_is_narrowed_by_age_and_kind(dead: Dead) -> None:
    dead.put("a")
    dead.put("b", "core-failed")
    dead.put("c")
    dead.redis.zadd("core-dead", {"a": 1.0})

    assert dead.core("purge", "--all", "--older-than", "60", "--yes").stdout == "purged 1\n"
    assert dead.listed() == ["c", "b"]
    assert dead.core("purge", "--all", "--failed", "--yes").stdout == "purged 1\n"
    assert dead.core("purge", "--all", "--failed", "--yes").stdout == "purged 0\n"
    assert dead.listed() == ["c"]


# What is refused


@pytest.mark.parametrize(
    "words",
    [
        ("retry",),
        ("retry", "a", "--all"),
        ("retry", "a", "--task", "t.f"),
        ("purge", "--yes"),
        ("purge", "a", "--yes", "--older-than", "5"),
        ("purge", "--all", "--yes", "--older-than", "-1"),
        ("list", "--limit", "0"),
    ],
    ids=" ".join,
)
def test_a_command_that_means_nothing_exits_2_and_does_nothing(dead: Dead, words: tuple[str, ...]) -> None:
    dead.put("a")

    done = dead.core(*words)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert dead.listed() == ["a"]


@pytest.mark.parametrize(
    "words",
    [("list", "--json"), ("show", "a"), ("retry", "a"), ("retry", "--all"), ("purge", "--all", "--yes")],
    ids=" ".join,
)
def test_a_redis_that_is_away_ends_a_command_with_one_line(dead: Dead, words: tuple[str, ...]) -> None:
    done = dead.core(*words, REDIS_URL=AWAY)

    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == (
        "Error: No Redis answers at 127.0.0.1:1/0: Connection refused. "
        "Start it, or set REDIS_URL to one that is running.\n"
    )


def test_a_wrong_password_ends_a_command_with_one_line(dead: Dead) -> None:
    dead.redis.config_set("requirepass", "right")
    try:
        done = dead.core("list", REDIS_URL=dead.url.replace("//", "//:wrong@"))
    finally:
        dead.redis.config_set("requirepass", "")

    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "refuses the user or password in REDIS_URL" in done.stderr


def test_where_the_broker_is_no_redis_there_is_no_dead_list(dead: Dead) -> None:
    done = dead.core("list", TASK_BROKER_URL="amqp://guest:secret@127.0.0.1:1//")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: There is no dead list: it is kept in a broker's Redis, and amqp://")
    assert "secret" not in done.stderr


def test_without_the_results_nothing_is_put_back(dead: Dead) -> None:
    """A call that ran again beside its old result would be `failed` for whoever asks."""
    dead.put("a")

    done = dead.core("retry", "--all", TASK_RESULT_BACKEND_URL=AWAY)

    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("Error: No Redis answers at 127.0.0.1:1/0: ")
    assert (dead.listed(), dead.redis.llen("default")) == (["a"], 0)


# Where things are


def test_a_prefix_and_a_database_of_the_results_are_minded(dead: Dead) -> None:
    dead.put("a", "core-failed", prefix="own:", message="m")
    elsewhere = dead.url.removesuffix("/0") + "/1"
    with Redis.from_url(elsewhere) as results:
        results.mset({"theirs:celery-task-meta-a": "{}", "celery-task-meta-a": "{}"})
        environment = {
            "TASK_RESULT_BACKEND_URL": elsewhere,
            "CELERY": json.dumps(
                {
                    "broker_transport_options": {"global_keyprefix": "own:"},
                    "result_backend_transport_options": {"global_keyprefix": "theirs:"},
                }
            ),
        }

        done = dead.core("retry", "a", **environment)

        assert (done.returncode, done.stdout) == (0, "a put back\n"), done.stderr
        assert dead.redis.keys() == [b"own:default"]
        assert results.keys() == [b"celery-task-meta-a"]
