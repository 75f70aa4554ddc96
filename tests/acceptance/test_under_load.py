"""Stopping, dying and holding back on the asyncio pool while hundreds of calls run: none is lost, none is too many."""

import json
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from celery import states
from marks import core_transport
from stock.world import World, world
from support import Process, held, wait_until

pytestmark = core_transport

TASKS = str(Path(__file__).parent.parent / "load/tasks.py")
#: Calls that one process runs at once, where it runs many; those that end free their places a moment before Redis
#: hears of it, one round trip's worth.
MANY, TOLD_AT_ONCE = 2000, 500


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world(TASKS) as made:
        made.project.environment["TASK_LEASE"] = "1"
        yield made


def start(made: World, *, at_once: int, processes: int = 2) -> Process:
    return made.start("--pool", "asyncio", "--processes", f"{processes}", "--concurrency", f"{at_once}")


def queue(made: World, count: int, name: str, *args: object, **options: object) -> list[str]:
    """Queue many calls as stock Celery does, of which it makes one; their ids."""
    with made.app.connection_for_write() as connection:
        channel = connection.default_channel
        made.app.send_task(f"src.tasks.{name}", args=args, queue="template", producer=made.app.amqp.Producer(channel),
                           **options)  # fmt: skip
    raw = made.redis.rpop("template")
    assert raw is not None
    text = raw.decode().replace('"routing_key": "template"', '"routing_key": "default"')
    id, ids = json.loads(text)["headers"]["id"], [str(uuid4()) for _ in range(count)]
    made.redis.lpush("default", *(text.replace(id, own) for own in ids))
    return ids


def words(made: World) -> defaultdict[str, Counter[str]]:
    """What was written down of each call."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in made.file.read_text().splitlines():
        id, word, _ = line.split()
        found[id][word] += 1
    return found


def begun(made: World, ids: list[str]) -> int:
    found = words(made)
    return sum(bool(found[id]["begun"]) for id in ids)


def succeeded(made: World, ids: list[str]) -> set[str]:
    """Those of these calls that have succeeded; the others have no outcome."""
    stored = dict(zip(ids, made.redis.mget(f"celery-task-meta-{id}" for id in ids), strict=True))
    found = {id: json.loads(meta)["status"] for id, meta in stored.items() if meta}
    assert set(found.values()) <= {states.SUCCESS, states.STARTED}, found
    return {id for id, state in found.items() if state == states.SUCCESS}


def put_back(made: World) -> list[str]:
    """Take the calls that wait out of the queue: every call that is not done, since none is held."""
    assert not held(made.redis)
    waiting = [json.loads(message)["headers"]["id"] for message in made.redis.lrange("default", 0, -1)]
    made.redis.delete("default")
    return waiting


def all_succeed(made: World, ids: list[str]) -> None:
    """Wait for that, and until nothing waits and nothing is held."""
    wait_until(lambda: len(succeeded(made, ids)) == len(ids), 20, "every call has succeeded")
    wait_until(lambda: not (held(made.redis) or made.redis.llen("default")), 5, "nothing waits and nothing is held")


def nodes(made: World, worker: Process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()]


def test_a_warm_stop_loses_nothing_and_runs_nothing_twice(made: World) -> None:
    worker = start(made, at_once=100)
    ids = [*queue(made, 400, "nap", 0.3, 1), *queue(made, 20, "plain", 0.05, 1)]
    wait_until(lambda: succeeded(made, ids) and begun(made, ids) > 160, 20, "it is busy")

    worker.signal(signal.SIGTERM)

    assert worker.wait(20) == 0
    done, found = succeeded(made, ids), words(made)
    assert len(done) > 160
    assert sorted(put_back(made)) == sorted(set(ids) - done)
    for id in ids:
        assert [found[id][word] for word in ("begun", "ended", "success")] == [id in done] * 3


def test_a_quick_stop_puts_everything_back_that_has_not_ended(made: World) -> None:
    worker = start(made, at_once=100)
    ids = queue(made, 300, "nap", 0.6, 1)
    wait_until(lambda: begun(made, ids) == 200, 20, "the second hundred runs")

    worker.signal(signal.SIGTERM)
    worker.wait_for("stopping: ")
    worker.signal(signal.SIGTERM)

    assert worker.wait(10) == 130
    done, found = succeeded(made, ids), words(made)
    assert 100 <= len(done) < 200
    assert sorted(put_back(made)) == sorted(set(ids) - done)
    for id in ids:
        assert [found[id][word] for word in ("ended", "success")] == [id in done] * 2
        assert found[id]["begun"] == found[id]["ended"] + found[id]["cancelled"]


def test_a_process_that_is_killed_under_load_takes_nothing_with_it(made: World, tmp_path: Path) -> None:
    worker = start(made, at_once=200)
    ids = queue(made, 300, "gated", str(tmp_path / "gate"))
    wait_until(lambda: begun(made, ids) == 200, 20, "both processes are full")
    before = nodes(made, worker)

    os.kill(before[0], signal.SIGKILL)

    wait_until(lambda: sum(word["begun"] for word in words(made).values()) >= 300, 20, "its calls run again")
    (tmp_path / "gate").touch()
    all_succeed(made, ids)
    found = words(made)
    assert {(found[id]["ended"], found[id]["success"]) for id in ids} == {(1, 1)}
    assert Counter(found[id]["begun"] for id in ids) == {1: 200, 2: 100}
    assert before[1] in nodes(made, worker)
    assert worker.stop() == 0


def test_what_computes_is_shared_by_the_processes(made: World) -> None:
    """What one of them has taken and cannot begin with, it would keep from the other."""
    worker = start(made, at_once=400)
    few = queue(made, 30, "computes", 0.02)
    all_succeed(made, few)
    marks = [line.split() for line in made.file.read_text().splitlines()]
    at_work = Counter(pid for id, word, pid in marks if id in few and word == "begun")
    assert max(at_work.values()) <= 20, at_work

    many, most = queue(made, 200, "computes", 0.02), 0
    while len(succeeded(made, many)) < 200:
        most = max(most, *(made.redis.hlen(key) for key in made.redis.scan_iter("core-held-*")))
    assert most <= 20
    all_succeed(made, [*few, *many])
    assert worker.stop() == 0


def test_no_process_takes_more_than_it_runs_at_once(made: World, tmp_path: Path) -> None:
    """Calls with a countdown do not make it more, before or after their time has come."""
    gate = str(tmp_path / "gate")
    later = queue(made, 300, "gated", gate, countdown=6)
    ids = queue(made, 5000, "gated", gate)
    first = start(made, at_once=MANY, processes=1)
    wait_until(lambda: begun(made, ids) == MANY, 20, "the first is full")
    assert (len(held(made.redis)), made.redis.llen("default"), made.redis.zcard("core-delayed")) == (MANY, 3000, 300)
    assert made.ask("stats")["prefetch_count"] == MANY
    second = start(made, at_once=MANY, processes=1)
    wait_until(lambda: begun(made, [*ids, *later]) == 2 * MANY, 20, "the second is full")
    assert len(held(made.redis)) == 2 * MANY
    assert made.ask("stats")["prefetch_count"] == MANY

    Path(gate).touch()

    most: Counter[bytes] = Counter()
    while len(succeeded(made, [*ids, *later])) < 5300:
        for key in made.redis.scan_iter("core-held-*"):
            most[key] = max(most[key], made.redis.hlen(key))
    assert all(count <= MANY + TOLD_AT_ONCE for count in most.values()), most
    all_succeed(made, [*ids, *later])
    found = words(made)
    assert {(found[id]["begun"], found[id]["success"]) for id in [*ids, *later]} == {(1, 1)}
    for worker in (first, second):
        made.workers.append(worker)
        assert made.ask("look")["most"][gate] == MANY
        assert worker.stop() == 0
