"""What follows a call is a task that its worker knows, or one that the settings name: a message alone does not say."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from marks import core_transport
from redis import Redis
from support import Project, project, redis_server, wait_until

pytestmark = core_transport

TASKS = """
from core.tasks import task


@task
async def add(a: int = 0, b: int = 0) -> int:
    return a + b


@task
async def fails() -> None:
    raise ValueError("no")
"""
#: Ways to have another task follow, for a task `FOLLOW` with the signature `follow`.
WAYS = {
    "callback": "add.celery_task.apply_async((1,), link=follow)",
    "errback": "fails.celery_task.apply_async((), link_error=follow)",
    "chain": "chain(add.s(1), follow).apply_async()",
    "callback of a callback": "link = add.s(1); link.link(follow); add.celery_task.apply_async((1,), link=link)",
    "in a group": "chain(add.s(1), group(add.s(2), follow)).apply_async()",
    "body of a chord": "chain(add.s(1), chord([add.s(2), add.s(3)], follow)).apply_async()",
}


@pytest.fixture
def world() -> Iterator[tuple[Project, Any]]:
    with redis_server() as (url, _), project(None) as made, Redis.from_url(url, decode_responses=True) as client:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.environment |= {"REDIS_URL": url, "TASK_UNKNOWN_HOLD": "2"}
        yield made, client


def followed(made: Project, *follow: str, ways: Sequence[str] = tuple(WAYS.values())) -> list[str]:
    """Queue calls that *follow* is to follow, in each of the *ways*; their ids."""
    sent = "".join(
        f"follow = app.signature({name!r}, queue='elsewhere', immutable=True)\n{way}\n"
        for name in follow
        for way in ways
    )
    done = made.caller(
        f"from celery import chain, chord, group\nfrom core.celery import app\nfrom src.tasks import add, fails\n{sent}"
    )
    assert done.returncode == 0, done.stderr
    with Redis.from_url(made.environment["REDIS_URL"]) as client:
        return [str(json.loads(message)["headers"]["id"]) for message in client.lrange("default", 0, -1)]


def test_a_task_that_nobody_knows_does_not_follow(world: tuple[Project, Any], pool: str) -> None:
    made, client = world
    ids = followed(made, "billing.refund")
    worker = made.worker("--pool", pool)

    assert len(ids) == len(WAYS)
    for id in ids:
        worker.wait_for(f"{id}] waits for another worker: a call of billing.refund is to follow it")
    wait_until(lambda: client.hlen("core-dead-calls") == len(ids), 20, "they are set aside")
    assert "success" not in worker.text()
    assert not client.exists("elsewhere")


def test_a_task_of_the_project_or_of_the_settings_follows(world: tuple[Project, Any]) -> None:
    made, client = world
    followed(made, "billing.refund")
    followed(made, "src.tasks.add", ways=[WAYS["callback"]])
    made.worker(TASK_FOREIGN_CALLBACKS="shop.order,billing.*")

    wait_until(lambda: client.llen("elsewhere") == len(WAYS) + 1, 20, "all follow")
    names = [json.loads(message)["headers"]["task"] for message in client.lrange("elsewhere", 0, -1)]
    assert sorted(names) == ["billing.refund"] * len(WAYS) + ["src.tasks.add"]
    assert client.hlen("core-dead-calls") == 1  # the one that fails


def test_who_signs_may_name_any(world: tuple[Project, Any]) -> None:
    made, client = world
    made.environment["TASK_SIGNING_KEYS"] = "k" * 32
    followed(made, "billing.refund")
    made.worker()

    wait_until(lambda: client.llen("elsewhere") == len(WAYS), 20, "all follow")
