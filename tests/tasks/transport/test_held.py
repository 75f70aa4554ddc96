"""The holder: what a worker has taken is told to Redis when it ends, by whoever speaks to Redis next."""

import json
import sys
import threading
from collections.abc import Iterator

import pytest
from celery import Celery
from redis import Redis
from support import redis_server, wait_until

from core import config
from core.config import Settings
from core.tasks import celery_config, dead
from core.tasks.transport import scripts
from core.tasks.transport.held import Held, Holder

SUCCESS = json.dumps({"status": "SUCCESS", "result": 7})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as (where, _):
        yield where


@pytest.fixture
def holder(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holder]:
    """A holder of a worker on an empty server; it holds `a`, `b` and `c`."""
    monkeypatch.setattr(config._current, "settings", Settings())
    app = Celery(broker=url, backend=url, set_as_current=False)
    app.conf.worker_consumer = celery_config.CONSUMER
    with Redis.from_url(url) as client:
        client.flushall()
        made = Holder(app, lambda call, reason: None)
        made.start(client.connection_pool)
        made.adopt()
        for name in ("a", "b", "c"):
            call = Held(f"{made.worker}/1.1:{name}", "default", {"id": name, "task": "t.work"}, begun=True)
            made.calls[call.tag] = call
            client.hset(made.key, call.record, f"default\n{name}")
        yield made
        made.close(5)


def tag(holder: Holder, name: str) -> str:
    return f"{holder.worker}/1.1:{name}"


def records(holder: Holder) -> set[bytes]:
    return set(holder.client.hkeys(holder.key)) - {b"connection"}


def test_what_ends_is_told_at_once(holder: Holder) -> None:
    holder.keep_result(tag(holder, "a"), ("celery-task-meta-a", 60, SUCCESS))
    holder.settle(tag(holder, "a"), "done")

    wait_until(lambda: records(holder) == {b"1.1:b", b"1.1:c"}, 5, "Redis was told")

    assert holder.client.get("celery-task-meta-a") == SUCCESS.encode()


def test_what_another_carries_is_not_told_twice(holder: Holder) -> None:
    """The consumer takes ends along when it asks for more, and the holder's own thread stands back."""
    holder.wake = lambda: True  # as a consumer that is about to ask
    holder.settle(tag(holder, "a"), "done")
    loan = holder.lend()
    assert loan is not None

    assert holder.lend() is None
    holder.client.script_load(scripts.text("finish"))
    holder.told(loan, holder.client.execute_command(*loan.command))

    assert records(holder) == {b"1.1:b", b"1.1:c"}
    assert holder.lend() is None


def test_what_was_carried_and_not_heard_is_told_by_the_holder(holder: Holder) -> None:
    holder.wake = lambda: True
    holder.settle(tag(holder, "a"), "done")
    loan = holder.lend()
    assert loan is not None

    holder.untold(loan)

    wait_until(lambda: records(holder) == {b"1.1:b", b"1.1:c"}, 5, "Redis was told")


def test_an_answer_that_comes_too_late_settles_nothing_else(holder: Holder) -> None:
    """It was given up, and said again by somebody else."""
    holder.wake = lambda: True
    holder.settle(tag(holder, "a"), "done")
    late = holder.lend(lasting=True)
    assert late is not None
    holder.untold(late)
    wait_until(lambda: records(holder) == {b"1.1:b", b"1.1:c"}, 5, "Redis was told")
    holder.settle(tag(holder, "b"), "done")

    holder.told(late, [b"done"])

    wait_until(lambda: records(holder) == {b"1.1:c"}, 5, "Redis was told of the next")


def test_ends_that_come_while_others_are_told_do_no_harm(holder: Holder) -> None:
    """An iterator over what is pending would break, and nothing would ever be told again."""
    ended, before = threading.Event(), sys.getswitchinterval()

    def adds() -> None:
        while not ended.is_set():
            if len(holder._pending) < 1000:
                holder.write(("celery-task-meta-x", 10, "{}"))

    writer = threading.Thread(target=adds)
    sys.setswitchinterval(1e-5)
    writer.start()
    try:
        for _ in range(40_000):
            with holder._saying:
                holder._next()
    finally:
        ended.set()
        writer.join()
        sys.setswitchinterval(before)

    holder.settle(tag(holder, "a"), "done")
    wait_until(lambda: records(holder) == {b"1.1:b", b"1.1:c"}, 20, "Redis was told")


def test_what_a_consumer_was_to_carry_and_does_not_is_told_all_the_same(holder: Holder) -> None:
    holder.wake = lambda: True

    holder.settle(tag(holder, "a"), "done")

    wait_until(lambda: records(holder) == {b"1.1:b", b"1.1:c"}, 5, "Redis was told")


def test_one_end_that_redis_does_not_understand_holds_no_other_up(holder: Holder) -> None:
    holder.client.zadd("core-dead-calls", {"of the wrong": 1})  # where the dead list keeps its calls
    holder.settle(tag(holder, "a"), "dead", "for the test")
    holder.settle(tag(holder, "b"), "done")
    holder.settle(tag(holder, "c"), "back")

    wait_until(lambda: records(holder) == {b"1.1:a"}, 5, "the others are told")

    assert holder.client.lrange("default", 0, -1) == [b"c"]


def test_a_success_of_a_call_that_was_taken_for_lost_leaves_the_dead_list(holder: Holder) -> None:
    """Its worker was away for too long, and came back with the result."""
    aside = dead.PRELUDE + "set_aside('', 'core-dead', {id = ARGV[1], reason = 'lost its worker', message = ARGV[1]})"
    for name in ("a", "b"):
        holder.client.eval(aside, 0, name)
        holder.client.hdel(holder.key, f"1.1:{name}")
    holder.keep_result(tag(holder, "a"), ("celery-task-meta-a", 60, SUCCESS))
    holder.settle(tag(holder, "a"), "done")

    wait_until(lambda: holder.client.zrange("core-dead", 0, -1) == [b"b"], 5, "it is on the list no more")


def test_closing_tells_everything_and_gives_the_rest_back(holder: Holder) -> None:
    holder.settle(tag(holder, "b"), "done")

    assert holder.close(5)

    assert records(holder) == set()
    assert sorted(holder.client.lrange("default", 0, -1)) == [b"a", b"c"]
