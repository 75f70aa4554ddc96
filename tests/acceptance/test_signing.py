"""`task_signing_keys`: workers run what a key has signed, as it was signed, and set everything else aside."""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from marks import core_transport
from redis import Redis
from support import Process, Project, project, redis_server, wait_until

pytestmark = core_transport

OLD, NEW, STRANGE = (letter * 40 for letter in "ons")
TASKS = """
from celery import chain, chord, group
from core.tasks import TaskError, current, periodic_task, task


@task
async def add(a: int, b: int = 0) -> int:
    return a + b


@task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@task(retry_delay=0.1, max_retries=1)
async def second_time(kind: str) -> str:
    if current().attempt == 1:
        raise TaskError("once more")
    return kind


@task
async def parent() -> int:
    return await (await add.delay(20, 1)).get(timeout=20)


@task
async def noted(*_: object) -> str:
    print("NOTED")
    return "noted"


@periodic_task(interval=1)
async def tick() -> None: ...
"""
EVERY_WAY = """
import asyncio, json
from celery import chain, chord, group
from core.celery import app
from src.tasks import add, noted, parent, second_time, total

async def main():
    ways = {
        "delay": await add.delay(1, 2),
        "many": (await add.delay_many([(3, 4), {"a": 5, "b": 6}]))[1],
        "countdown": await add.delay(1, countdown=0.3, expires=60),
        "retry": await second_time.delay("é"),
        "child": await parent.delay(),
    }
    return {name: await result.get(timeout=30) for name, result in ways.items()}

found = asyncio.run(main())
canvas = {
    "chain": chain(add.s(1, 2), add.s(3)).delay(),
    "group": group(add.s(1), add.s(2)).delay(),
    "chord": chord([add.s(1), add.s(2)], total.s()).delay(),
    "link": add.celery_task.apply_async((1,), link=noted.si()),
    "name": app.send_task("src.tasks.add", (40, 2)),
    "packed": add.celery_task.apply_async((1,), compression="gzip"),
}
found |= {name: result.get(timeout=30) for name, result in canvas.items()}
print(json.dumps(found))
"""


class World:
    """A project of its own on a server of its own."""

    def __init__(self, made: Project, client: Any) -> None:
        self.project, self.client = made, client

    def worker(self, pool: str = "asyncio", **environment: str) -> Process:
        return self.project.worker("--pool", pool, "--concurrency", "2", **environment)

    def call(self, line: str, **environment: str) -> str:
        """Run one line of a caller; what it printed."""
        code = f"import asyncio\nfrom core.celery import app\nfrom src.tasks import add, noted\n{line}"
        done = self.project.caller(code, **environment)
        assert done.returncode == 0, done.stderr
        return str(done.stdout).strip()

    def queued(self, **environment: str) -> dict[str, Any]:
        """The message of one call that no worker has taken yet, out of its list."""
        self.call("asyncio.run(add.delay(1, 2))", **environment)
        message: dict[str, Any] = json.loads(self.client.rpop("default"))
        return message

    def push(self, message: dict[str, Any]) -> None:
        self.client.lpush("default", json.dumps(message))

    def dead(self) -> list[dict[str, Any]]:
        return [json.loads(entry) for entry in self.client.hvals("core-dead-calls")]


@pytest.fixture
def world() -> Iterator[World]:
    with redis_server() as (url, _), project(None) as made, Redis.from_url(url) as client:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.environment |= {"REDIS_URL": url, "TASK_SIGNING_KEYS": OLD}
        yield World(made, client)


def test_every_kind_of_call_is_signed_and_runs(world: World, pool: str) -> None:
    worker = world.worker(pool)
    world.project.start("core", "scheduler", "start")

    done = world.project.caller(EVERY_WAY)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "delay": 3, "many": 11, "countdown": 1, "retry": "é", "child": 21, "chain": 6, "group": [1, 2], "chord": 3,
        "link": 1, "name": 42, "packed": 1,
    }  # fmt: skip
    worker.wait_for("NOTED")
    worker.wait_for("src.tasks.tick[")
    assert not world.dead()


@pytest.mark.parametrize(
    "way",
    ["add.celery_task.apply_async((1,))", "asyncio.run(add.delay(1))", "app.send_task('src.tasks.add', (1,))"],
    ids=["apply_async", "delay", "by name"],
)
def test_who_has_no_key_is_not_run(world: World, way: str) -> None:
    world.worker()
    for keys in ("", STRANGE):
        world.call(way, TASK_SIGNING_KEYS=keys)
    wait_until(lambda: len(world.dead()) == 2, 10, "both are set aside")

    assert {entry["reason"] for entry in world.dead()} == {"it is not signed as it is by any of the task_signing_keys"}
    assert {entry["task"] for entry in world.dead()} == {"src.tasks.add"}


def _arguments(message: dict[str, Any]) -> None:
    message["body"] = base64.b64encode(json.dumps([[6, 6], {}, {}]).encode()).decode()


def _callbacks(message: dict[str, Any]) -> None:
    noted = {"task": "src.tasks.noted", "args": [], "kwargs": {}, "options": {}, "subtask_type": None}
    follow = {"callbacks": [noted], "errbacks": [noted], "chain": None, "chord": None}
    message["body"] = base64.b64encode(json.dumps([[6, 6], {}, follow]).encode()).decode()


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(message: dict[str, Any]) -> None:
        *way, last = path
        for name in way:
            message = message[name]
        message[last] = to

    return change


CHANGES = {
    "task": _set("headers", "task", to="src.tasks.noted"),
    "id": _set("headers", "id", to="another"),
    "eta": _set("headers", "eta", to="2020-01-01T00:00:00+00:00"),
    "expires": _set("headers", "expires", to="2090-01-01T00:00:00+00:00"),
    "timelimit": _set("headers", "timelimit", to=[9000, None]),
    "retries": _set("headers", "retries", to=2),
    "another header": _set("headers", "x", to=1),
    "arguments": _arguments,
    "callbacks": _callbacks,
    "queue": _set("properties", "delivery_info", "routing_key", to="elsewhere"),
    "reply_to": _set("properties", "reply_to", to="elsewhere"),
    "correlation_id": _set("properties", "correlation_id", to="another"),
    "content type": _set("content-type", to="application/x-python-serialize"),
    "no base64": _set("body", to="%%%"),
    "signature": _set("headers", "core-signature", to="sha256:" + "0" * 64),
    "signature of a number": _set("headers", "core-signature", to=1),
    "no text": _set("headers", "core-signature", to="é"),
    "no signature": lambda message: message["headers"].pop("core-signature"),
}


def test_what_was_changed_on_the_way_does_not_run_and_calls_nobody(world: World) -> None:
    messages = {name: world.queued() for name in ("same", "first")}
    for name, change in CHANGES.items():
        messages[name] = json.loads(json.dumps(messages["first"]))
        change(messages[name])
    del messages["first"]
    worker = world.worker()
    for name in CHANGES:
        before = worker.text().count("was set aside")
        world.push(messages[name])
        wait_until(lambda: worker.text().count("was set aside") > before, 10, f"{name} is set aside")  # noqa: B023
    world.push(messages["same"])

    worker.wait_for(f"src.tasks.add[{messages['same']['headers']['id']}] success")
    assert worker.text().count("success") == 1
    assert "NOTED" not in worker.text()


def test_a_call_of_the_dead_list_is_looked_at_again(world: World) -> None:
    message = world.queued(TASK_SIGNING_KEYS="")
    world.push(message)
    worker = world.worker()
    id = message["headers"]["id"]
    worker.wait_for(f"{id}] from default was set aside")

    assert world.project.run("core", "dead", "retry", id).returncode == 0
    wait_until(lambda: worker.text().count(f"{id}] from default was set aside") == 2, 10, "it is set aside again")


def test_keys_are_changed_while_calls_come(world: World) -> None:
    """First every process knows the new key as well, then all sign with it, then the old one goes."""
    get = "print(add.delay_sync(1).get_sync(timeout=20))"
    both, turned = f"{OLD},{NEW}", f"{NEW},{OLD}"
    for workers, callers in ((OLD, [OLD]), (both, [OLD, both, turned]), (turned, [both, turned, NEW]), (NEW, [NEW])):
        worker = world.worker(TASK_SIGNING_KEYS=workers)
        for caller in callers:
            assert world.call(get, TASK_SIGNING_KEYS=caller) == "1", (workers, caller)
        assert worker.stop() == 0


def test_while_it_is_rolled_out_unsigned_calls_run_and_forged_ones_do_not(world: World) -> None:
    unsigned, forged = world.queued(TASK_SIGNING_KEYS=""), world.queued(TASK_SIGNING_KEYS=STRANGE)
    world.push(forged)
    world.push(unsigned)
    worker = world.worker(TASK_ACCEPT_UNSIGNED="true")

    worker.wait_for(f"{unsigned['headers']['id']}] success")
    worker.wait_for(f"{forged['headers']['id']}] from default was set aside")


def test_an_entry_that_is_not_as_the_code_declares_it_is_not_sent(world: World) -> None:
    """Else whoever can write to Redis has the scheduler sign."""
    worker = world.worker()
    scheduler = world.project.start("core", "scheduler", "start", CELERY='{"beat_max_loop_interval": 1}')
    worker.wait_for("src.tasks.tick[")
    planted = (
        "from datetime import timedelta\n"
        "from celery.schedules import schedule\n"
        "from redbeat import RedBeatSchedulerEntry as Entry\n"
        "Entry('planted', 'src.tasks.noted', schedule(timedelta(seconds=1)), app=app).save()"
    )
    world.call(planted)
    scheduler.wait_for("planted is not sent: it is not as the code declares it")
    tick = next(key for key in world.client.scan_iter("*:beat:*") if key.endswith(b"src.tasks.tick"))
    definition = json.loads(world.client.hget(tick, "definition"))
    world.client.hset(tick, "definition", json.dumps({**definition, "task": "src.tasks.noted"}))
    scheduler.wait_for("src.tasks.tick is not sent: it is not as the code declares it")

    assert "NOTED" not in worker.text()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TASK_SIGNING_KEYS": "short"}, "a key has fewer than 32 characters"),
        ({"TASK_BROKER_TRANSPORT": "stock"}, "task_signing_keys is for a broker that is Redis"),
        ({"TASK_BROKER_URL": "amqp://127.0.0.1:1//"}, "task_signing_keys is for a broker that is Redis"),
    ],
)
def test_keys_that_would_guard_nothing_are_refused(world: World, environment: dict[str, str], said: str) -> None:
    refused = world.project.run("core", "runworker", **environment)
    called = world.project.caller("from src.tasks import add\nadd.delay_sync(1)", **environment)

    assert (refused.returncode, said in refused.stderr, said in called.stderr) == (2, True, True)
    for text in (refused.stderr, called.stderr):
        assert OLD not in text
        assert "short" not in text


def test_no_command_shows_a_key(world: World) -> None:
    worker = world.project.worker("--loglevel", "debug")
    world.call("add.delay_sync(1)")
    worker.wait_for("] success")
    shown = [
        world.project.run(*command)
        for command in (
            ("core", "config"), ("core", "config", "--json"), ("core", "check", "--deploy"),
            ("celery", "-A", "core", "report"), ("celery", "-A", "core", "inspect", "conf"),
        )
    ]  # fmt: skip
    printed = world.project.run(
        sys.executable, "-c", "from core.config import get_settings\nprint(repr(get_settings()), get_settings())"
    )

    for text in (worker.text(), printed.stdout, *(one.stdout + one.stderr for one in shown)):
        assert text.strip()
        assert OLD not in text
