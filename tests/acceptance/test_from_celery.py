"""A project that moves task by task: plain Celery and ours share queues, results, canvas and revocations, both ways."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from marks import core_transport
from redis import Redis
from support import CELERY, Process, Project, project, redis_server, wait_until

OLD = """
import os, time
from celery import Celery, chain, chord, group

app = Celery("old", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.task_default_queue = "old"
app.conf.task_routes = {"src.tasks.*": {"queue": "default"}}
app.conf.broker_connection_retry_on_startup = True


@app.task(name="old.double")
def double(number):
    return 2 * number


@app.task(name="old.total")
def total(numbers):
    return sum(numbers)


@app.task(name="old.slow")
def slow(seconds):
    time.sleep(seconds)
    return seconds
"""
TASKS = """
import asyncio
from core.tasks import task


@task
async def add(a: int, b: int = 0) -> int:
    return a + b


@task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@task
async def naps(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds
"""
#: Each side has *here*, its own application, and the tasks of both by their names.
CANVAS = """
ours, our_total = (here.signature(f"src.tasks.{name}", queue="default") for name in ("add", "total"))
theirs, their_total = (here.signature(f"old.{name}", queue="old") for name in ("double", "total"))
sent = {
    "by name": here.send_task("src.tasks.add", (1, 2), queue="default"),
    "the other way": here.send_task("old.double", (4,), queue="old"),
    "chain": chain(ours.clone((1, 2)), theirs, ours.clone((10,)), app=here).apply_async(),
    "chord with their body": chord([ours.clone((1, 2)), theirs.clone((4,))], their_total, app=here).apply_async(),
    "chord with our body": chord([ours.clone((1, 2)), theirs.clone((4,))], our_total, app=here).apply_async(),
}
print(json.dumps({name: result.get(timeout=30) for name, result in sent.items()}))
"""
SAID = {"by name": 3, "the other way": 8, "chain": 16, "chord with their body": 11, "chord with our body": 11}


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Project, Any, Process]]:
    with redis_server() as (url, _), project(None) as made, Redis.from_url(url, decode_responses=True) as client:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.write("old.py", OLD)
        made.environment |= {"REDIS_URL": url, "TASK_FOREIGN_CALLBACKS": "old.*"}
        old = made.start(CELERY, "-A", "old", "worker", "-c", "1", "-l", "info", "-Q", "old")
        ours = made.worker("--queue", "default")
        old.wait_for("ready.")
        yield made, client, ours


@pytest.mark.parametrize(
    "here", ["from core.celery import app as here", "from old import app as here"], ids=["ours", "plain Celery"]
)
def test_either_side_calls_the_other_and_puts_both_into_a_canvas(
    world: tuple[Project, Any, Process], here: str
) -> None:
    made, _, _ = world
    done = made.run(
        sys.executable, "-c", f"import json\nfrom celery import chain, chord\n{here}\n{CANVAS}", PYTHONPATH="."
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == SAID


@core_transport
def test_what_either_side_revokes_never_runs_on_the_other(world: tuple[Project, Any, Process]) -> None:
    made, client, ours = world
    done = made.run(
        sys.executable, "-c",
        "import asyncio, json\n"
        "from core.tasks import TaskResult\nfrom core.celery import app\nfrom src.tasks import add\nimport old\n"
        "async def main():\n"
        "    mine = await add.delay(1, countdown=3)\n"
        "    await asyncio.to_thread(old.app.control.revoke, mine.id, reply=True, timeout=2)\n"
        "    theirs = await asyncio.to_thread(app.send_task, 'old.slow', (0,), queue='old', countdown=3)\n"
        "    await TaskResult.from_id(theirs.id).cancel()\n"
        "    print(json.dumps([mine.id, theirs.id]))\n"
        "asyncio.run(main())",
        PYTHONPATH=".",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids = json.loads(done.stdout)

    for id in ids:
        wait_until(lambda id=id: "REVOKED" in (client.get(f"celery-task-meta-{id}") or ""), 20, "it was revoked")
    assert f"add[{ids[0]}] success" not in ours.text()


def test_a_result_of_one_side_is_read_by_the_other(world: tuple[Project, Any, Process]) -> None:
    made, _, _ = world
    done = made.run(
        sys.executable, "-c",
        "import old\nfrom core.tasks import TaskResult\nfrom src.tasks import add\n"
        "mine, theirs = add.delay_sync(1, 2), old.double.delay(4)\n"
        "print(old.app.AsyncResult(mine.id).get(timeout=20), TaskResult.from_id(theirs.id).get_sync(timeout=20))",
        PYTHONPATH=".",
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "3 8\n"), done.stderr
