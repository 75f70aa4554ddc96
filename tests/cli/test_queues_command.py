"""`core queues` and `core purge`, on queues that are filled as callers and workers fill them."""

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection
from kombu.transport import memory
from redis import Redis
from support import CORE, Project, clean_environment, project, redis_server

from core.tasks.inspection import can_ask
from core.tasks.queues import _purge_elsewhere, _waiting_elsewhere

AWAY = "redis://127.0.0.1:1/0"


class World:
    """A project without a worker, and its Redis."""

    def __init__(self, made: Project, url: str) -> None:
        self.project, self.redis = made, Redis.from_url(url)
        made.environment["REDIS_URL"] = url

    def core(self, *words: str, **environment: str) -> Any:
        return self.project.run("core", *words, **environment)

    def asked(self, answer: str, *words: str) -> Any:
        """Run `core …` on a terminal where somebody types *answer*."""
        terminal, theirs = os.openpty()
        os.write(terminal, answer.encode())
        done = subprocess.run(
            [CORE, *words], cwd=self.project.root, env=clean_environment(**self.project.environment),
            stdin=theirs, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        os.close(terminal)
        os.close(theirs)
        return done


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with redis_server() as (url, _), project() as made:
        yield World(made, url)


@pytest.fixture
def world(shared: World) -> World:
    """Calls everywhere where a call can be."""
    shared.redis.flushall()
    shared.redis.lpush("default", "a", "b")
    shared.redis.lpush("default\x06\x163", "c")
    shared.redis.lpush("core-next-default", "d")
    shared.redis.lpush("high-priority", "e")
    shared.redis.hset("core-delayed-calls", mapping={"f": "default\nmessage\n", "g": "gone-from-the-code\x06\x166\nm"})
    shared.redis.zadd("core-workers", {"w-1": 1, "w-2": 2})
    shared.redis.hset("core-held-w-1", mapping={"1.1:1": "default\nm", "connection": "1", "waiting": "default\nother"})
    shared.redis.hset("core-held-w-2", mapping={"1.1:1": "default\x06\x163\nm"})
    shared.redis.hset("unacked", mapping={"t": json.dumps([{"body": "["}, "", "high-priority"])})
    return shared


def test_queues_counts_calls_wherever_they_are(world: World) -> None:
    document, told = world.core("queues", "--timeout", "0.1", "--json"), world.core("queues", "--timeout", "0.1")

    assert json.loads(document.stdout)[0]["oldest"] is None, "nobody can read these"
    keys = ("name", "waiting", "delayed", "held", "workers")
    assert [tuple(queue[key] for key in keys) for queue in json.loads(document.stdout)][:2] == [
        ("default", 4, 1, 2, []),
        ("high-priority", 1, 0, 1, []),
    ]
    lines = told.stdout.splitlines()
    assert lines[0] == "default  4 waiting  1 delayed  2 held  workers -"
    assert lines[-1] == "gone-from-the-code  0 waiting  1 delayed  0 held  workers -"
    assert (document.returncode, told.returncode, told.stderr) == (0, 0, "")


def test_a_thousand_calls_and_more_are_counted(world: World) -> None:
    world.redis.hset("core-delayed-calls", mapping={str(number): "default\nm" for number in range(2500)})

    found = json.loads(world.core("queues", "--timeout", "0.1", "--json").stdout)

    assert found[0]["delayed"] == 2501


def test_with_celerys_own_transport_nobody_knows_what_is_delayed(world: World) -> None:
    found = json.loads(world.core("queues", "--timeout", "0.1", "--json", TASK_BROKER_TRANSPORT="stock").stdout)

    assert [queue["delayed"] for queue in found] == [None] * len(found)


def test_purge_drops_what_waits_in_one_queue_and_nothing_else(world: World) -> None:
    world.redis.mset({"core-unique-t-1": "id-1\n", "core-unique-t-2": "id-2\n"})
    world.redis.lpush("default", '{"headers": {"id": "id-1", "core-unique": "core-unique-t-1"}}')
    world.redis.lpush("default", '{"headers": {"id": "late", "core-unique": "core-unique-t-2", "ignore_result": true}}')

    done = world.core("purge", "--queue", "default", "--yes")

    assert (done.returncode, done.stdout, done.stderr) == (0, "default purged 6\n", "")
    assert json.loads(world.redis.get("celery-task-meta-id-1"))["status"] == "REVOKED", "whoever waits for it is told"
    assert not world.redis.exists("celery-task-meta-late"), "it keeps no result"
    kept = ("high-priority", "core-delayed-calls", "core-held-w-1", "core-held-w-2", "unacked", "core-unique-t-2")
    assert not world.redis.exists("default", "default\x06\x163", "core-next-default")
    assert not world.redis.exists("core-unique-t-1"), "another call of its kind may be queued"
    assert world.redis.exists(*kept) == len(kept), "a lock stays with whoever has it"


def test_purge_asks_first(world: World) -> None:
    nobody = world.core("purge")
    no, yes = world.asked("n\n", "purge", "-q", "default"), world.asked("y\n", "purge", "-q", "default")

    assert (nobody.returncode, nobody.stdout) == (2, "")
    assert "There is nobody to ask whether these calls may go. Add --yes." in nobody.stderr
    assert no.returncode == 1
    assert no.stdout.startswith("Drop the waiting calls (4 of default) for good? [y/N]: ")
    assert yes.returncode == 0
    assert yes.stdout.endswith("default purged 4\n")


def test_a_queue_that_nobody_names_is_refused_and_guessed(world: World) -> None:
    done = world.core("purge", "--queue", "defualt", "--yes")

    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'default'?" in done.stderr
    assert world.redis.llen("default") == 2


def test_a_call_by_hand_is_the_same_as_one_by_the_application(world: World) -> None:
    """`unique_key` gets a date, as the body does, where JSON has text."""
    world.project.write(
        "src/apps/dated/tasks.py",
        "from datetime import date\n\nfrom core.tasks import task\n\n\n"
        "@task(unique=True, unique_key=lambda day: day.year)\nasync def yearly(day: date) -> None: ...\n",
    )

    first, second = (
        world.core("tasks", "run", "yearly", "--args", f'["{day}"]') for day in ("2026-11-28", "2026-12-01")
    )

    assert (first.returncode, first.stderr, second.stdout) == (0, "", first.stdout)
    assert world.redis.llen("default") == 3


@pytest.mark.parametrize("words", [("status",), ("queues", "--json"), ("purge", "--yes"), ("health", "broker")])
def test_a_broker_that_is_away_ends_a_command_with_one_line(world: World, words: tuple[str, ...]) -> None:
    done = world.core(*words, REDIS_URL=AWAY)

    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("Error: No Redis answers at 127.0.0.1:1/0: ")
    assert len(done.stderr.splitlines()) == 1


def test_status_exits_69_when_nobody_answers(world: World) -> None:
    told, document = world.core("status", "--timeout", "0.1"), world.core("status", "--timeout", "0.1", "--json")

    assert (told.returncode, told.stdout, document.returncode, document.stdout) == (69, "", 69, "[]\n")
    assert told.stderr.startswith("Error: No worker answers within 0.1 s: ")


def test_workers_are_asked_only_where_a_message_reaches_all() -> None:
    """SQS has queues for one each."""

    class Direct(memory.Transport):
        implements = memory.Transport.implements.extend(exchange_type=frozenset(["direct"]))

    assert can_ask(Connection("memory://"))
    assert can_ask(Connection("redis://"))
    assert not can_ask(Connection(transport=Direct))


def test_where_the_broker_is_no_redis_kombu_counts() -> None:
    """With kombu's broker in memory, which behaves as RabbitMQ does here."""
    with Connection("memory://") as connection:
        connection.SimpleQueue("test-queues-command").put({"a": 1})

        counted = dict(_waiting_elsewhere(connection, ["test-queues-command", "test-queues-nobody"]))

        assert counted == {"test-queues-command": 1, "test-queues-nobody": None}
        assert _purge_elsewhere(connection, "test-queues-command") == 1
        assert dict(_waiting_elsewhere(connection, ["test-queues-command"])) == {"test-queues-command": 0}
