"""`finish.lua`: how calls end that a worker holds, many in one step."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from support import wait_until

from core.config import Settings, configure
from core.tasks.transport.held import Held, Holder

LATER = "default\x06\x163"
WEEK = 7 * 86400
SUCCESS = '{"status": "SUCCESS", "result": 1}'
EVERY_BYTE = bytes(range(256))


@pytest.fixture
def aside(redis: "Redis[bytes]", prefix: str) -> Callable[[str], dict[str, Any]]:
    """What the dead list has of one kind, by id."""

    def found(kind: str) -> dict[str, Any]:
        ids = redis.zrange(f"{prefix}{kind}", 0, -1)
        return {name.decode(): json.loads(redis.hget(f"{prefix}core-dead-calls", name) or b"") for name in ids}

    return found


def take_one(worker: Any, send: Any, task_id: str = "a", **options: Any) -> Any:
    """Send a call that this worker then holds."""
    send(task_id, **options)
    (call,) = worker.take(lists=("default", LATER), queues=1).calls
    return call


# One verdict after the other


def test_a_call_that_is_done_is_held_no_more(one: Any, send: Any, admin: Any, prefix: str) -> None:
    before = set(admin.keys())
    first, second = take_one(one, send), take_one(one, send, "b")

    assert one.finish(one.end(first, "done")) == ["done"]

    assert list(one.holds()) == [second.record]
    one.finish(one.end(second, "done"))
    assert {key for key in set(admin.keys()) - before if b"_kombu" not in key} == set()


@pytest.mark.parametrize("priority", [0, 3])
def test_a_call_that_goes_back_is_the_first_of_its_list(
    again: Any, one: Any, send: Any, waiting: Any, priority: int
) -> None:
    call = take_one(one, send, priority=priority)
    send("b", priority=priority)

    assert one.finish(one.end(call, "back")) == ["back"]

    assert waiting(call.list) == ["a", "b"]
    assert one.holds() == {}
    assert one.take(1, (call.list,)).calls[0].message == again(call.message)


def test_a_call_that_lost_its_worker_goes_back_twice_and_is_then_set_aside(
    again: Any, one: Any, send: Any, waiting: Any, aside: Any, redis: Any, prefix: str
) -> None:
    sent = send("a", priority=3)
    answers = []
    for number in range(3):
        (call,) = one.take(lists=(LATER,)).calls
        assert call.message == (again(sent) if number else sent)
        answers += one.finish(one.end(call, "lost"))

    assert answers == ["lost", "lost", "dead"]
    assert (waiting(LATER), one.holds()) == ([], {})
    entry = aside("core-dead")["a"]
    assert (entry["task"], entry["queue"], entry["list"]) == ("t.work", "default", LATER)
    assert entry["message"] == again(sent).decode()
    assert "3 times" in entry["reason"]
    assert WEEK - 10 < redis.ttl(f"{prefix}core-losses-a") <= WEEK


def test_losses_are_those_of_one_call(one: Any, send: Any, waiting: Any) -> None:
    for name in "abcd":
        assert one.finish(one.end(take_one(one, send, name), "lost")) == ["lost"]
        one.take()

    assert waiting() == []
    assert len(one.holds()) == 4


def test_a_call_that_went_back_unrun_is_no_loss(one: Any, send: Any, redis: Any, prefix: str) -> None:
    send("a")
    for _ in range(5):
        (call,) = one.take().calls
        one.finish(one.end(call, "back"))

    assert redis.exists(f"{prefix}core-losses-a") == 0


@pytest.mark.parametrize("keep", [True, False])
def test_a_call_that_is_set_aside_keeps_its_message(one: Any, send: Any, aside: Any, keep: bool) -> None:
    call = take_one(one, send)

    assert one.finish(one.end(call, "dead", reason="so", keep=keep)) == ["dead"]

    entry = aside("core-dead")["a"]
    assert (entry["reason"], entry["message"], entry["list"]) == ("so", call.message.decode(), "default")
    assert aside("core-failed") == one.holds() == {}


def test_bad_bytes_that_are_set_aside_go_back_into_their_list_as_they_were(one: Any, redis: Any, prefix: str) -> None:
    redis.lpush(f"{prefix}default", EVERY_BYTE)
    (call,) = one.take().calls
    one.finish(one.end(call, "dead", id="unreadable-1", task=None))

    stored = redis.eval("return cjson.decode(redis.call('HGET', KEYS[1], 'unreadable-1')).message", 1,
                        f"{prefix}core-dead-calls")  # fmt: skip

    assert stored == EVERY_BYTE


@pytest.mark.parametrize("keep", [True, False])
def test_a_call_that_failed_is_listed_with_its_message_if_that_may_be_kept(
    one: Any, send: Any, waiting: Any, aside: Any, keep: bool
) -> None:
    call = take_one(one, send)

    assert one.finish(
        one.end(call, "failed", (f"{one.prefix}result-a", 60, SUCCESS), reason="ValueError", keep=keep)
    ) == ["failed"]

    entry = aside("core-failed")["a"]
    assert (entry["reason"], entry["message"]) == ("ValueError", call.message.decode() if keep else None)
    assert (aside("core-dead"), waiting(), one.holds()) == ({}, [], {})


# The lock of a call of which there is to be one only


@pytest.mark.parametrize(
    ("verdict", "holder", "frees"),
    [("done", "a", True), ("failed", "a", True), ("dead", "a", True), ("back", "a", False), ("later", "a", False),
     ("lost", "a", False), ("done", "b", False)],
)  # fmt: skip
def test_the_end_of_a_call_frees_its_own_lock(
    one: Any, send: Any, redis: Any, prefix: str, verdict: str, holder: str, frees: bool
) -> None:
    call = take_one(one, send)
    redis.set(f"{prefix}core-unique-t", f"{holder}\n")
    end = one.end(call, verdict, unique="core-unique-t", id="a")
    if verdict == "done":
        end[-1] = json.dumps({"unique": "core-unique-t", "id": "a"})

    one.finish(end)

    assert redis.exists(f"{prefix}core-unique-t") == (not frees)


def test_whoever_does_not_hold_a_call_any_more_frees_nothing(one: Any, other: Any, send: Any, redis: Any) -> None:
    call = take_one(one, send)
    redis.set(f"{one.prefix}core-unique-t", "a\n")
    one.adopt()  # it was put back, and another worker runs it
    other.take()

    one.finish([*one.end(call, "done")[:-1], json.dumps({"unique": "core-unique-t", "id": "a"})])

    assert redis.exists(f"{one.prefix}core-unique-t") == 1


# A task that nobody here knows


def test_a_call_of_an_unknown_task_waits_and_comes_back(one: Any, send: Any, waiting: Any, redis: Any) -> None:
    call = take_one(one, send, priority=3)
    send("b", priority=3)

    one.finish(one.end(call, "later", pause=30))
    assert (waiting(LATER), one.holds()) == (["b"], {})
    assert one.take(0).seconds == pytest.approx(1, abs=0.5)

    redis.zadd(f"{one.prefix}core-delayed", {f"{one.name}/{call.record}": 1})
    one.take(0)
    assert waiting(LATER) == ["a", "b"]


@pytest.mark.parametrize(("unknown_for", "pause"), [(0, 1), (40, 10), (4000, 30)])
def test_a_call_that_stays_unknown_is_looked_at_ever_less_often(
    one: Any, send: Any, redis: Any, unknown_for: int, pause: float
) -> None:
    call = take_one(one, send)
    redis.set(f"{one.prefix}core-unknown-{call.id}", redis.time()[0] - unknown_for)

    one.finish(one.end(call, "later", pause=30, hold=86_400))

    assert one.take(0).seconds == pytest.approx(pause, abs=1.5)


def test_the_first_who_does_not_know_a_task_is_told(one: Any, other: Any, send: Any) -> None:
    unrelated = take_one(one, send, "b")
    answers = one.finish(one.end(take_one(one, send), "later", pause=0))
    for worker in (other, one):
        answers += worker.finish(worker.end(worker.take().calls[0], "later", pause=0))
    answers += one.finish(one.end(unrelated, "later"))

    assert answers == ["first", "later", "later", "first"]


def test_how_long_a_task_is_unknown_is_counted_from_the_first_who_asked(one: Any, send: Any, redis: Any) -> None:
    one.finish(one.end(take_one(one, send), "later", pause=0))
    since = redis.decrby(f"{one.prefix}core-unknown-a", 100)

    one.finish(one.end(one.take().calls[0], "later"))

    assert int(redis.get(f"{one.prefix}core-unknown-a")) == since


@pytest.mark.parametrize(("since", "expected"), [(3590, "later"), (3601, "dead")])
def test_a_call_that_no_worker_knew_for_too_long_is_set_aside(
    one: Any, send: Any, aside: Any, redis: Any, prefix: str, since: int, expected: str
) -> None:
    one.finish(one.end(take_one(one, send), "later", pause=0))
    (call,) = one.take().calls
    assert redis.ttl(f"{prefix}core-unknown-a") > 3600
    redis.decrby(f"{prefix}core-unknown-a", since)

    assert one.finish(one.end(call, "later", reason="nobody knows it")) == [expected]

    assert [entry["reason"] for entry in aside("core-dead").values()] == ["nobody knows it"] * (expected == "dead")
    assert redis.zcard(f"{prefix}core-delayed") == (expected == "later")
    assert one.holds() == {}


# What this worker does not hold


@pytest.mark.parametrize("verdict", ["back", "lost", "dead", "failed", "later"])
def test_a_call_that_others_have_got_meanwhile_stays_theirs(
    one: Any, other: Any, send: Any, admin: Any, verdict: str
) -> None:
    call = take_one(one, send)
    one.dies()
    other.lease()
    other.take()
    before = sorted(admin.keys())

    assert one.finish(one.end(call, verdict)) == ["gone"]

    assert sorted(admin.keys()) == before
    assert len(other.holds()) == 1


def test_an_end_that_is_said_twice_is_one_end(one: Any, send: Any, waiting: Any) -> None:
    """The answer to the first may be lost with its connection."""
    call = take_one(one, send)

    assert [one.finish(one.end(call, "back"))[0] for _ in range(2)] == ["back", "gone"]
    assert waiting() == ["a"]


def test_the_end_of_one_call_is_not_that_of_another(one: Any, other: Any, send: Any) -> None:
    mine, theirs = take_one(one, send), take_one(other, send, "b")
    assert mine.record == theirs.record

    one.finish(one.end(mine, "done"))

    assert list(other.holds()) == [theirs.record]


# Many at once


def test_each_of_many_gets_its_own_verdict(one: Any, send: Any, waiting: Any, aside: Any, redis: Any) -> None:
    for name in "abcdefg":
        send(name)
    calls = {call.id: call for call in one.take().calls}
    gone = calls["g"]._replace(record="9.9:9")
    verdicts = {"a": "done", "b": "back", "c": "dead", "d": "failed", "e": "later", "f": "lost"}
    ends = [one.end(calls[name], verdict) for name, verdict in verdicts.items()]
    alone = ["", "done", f"{one.prefix}result-x", 60, SUCCESS, ""]

    answers = one.finish(*ends[:3], one.end(gone, "back"), *ends[3:], alone, one.end(calls["g"], "done"))

    assert answers == ["done", "back", "dead", "gone", "failed", "first", "lost", "done", "done"]
    assert sorted(waiting()) == ["b", "f"]
    assert (list(aside("core-dead")), list(aside("core-failed"))) == (["c"], ["d"])
    assert redis.get(f"{one.prefix}result-x") == SUCCESS.encode()
    assert one.holds() == {}


def test_a_call_whose_list_is_something_else_does_not_keep_the_others(
    one: Any, send: Any, waiting: Any, redis: Any
) -> None:
    send("a", queue="low")
    send("b")
    low, default = one.take(lists=("low", "default")).calls
    redis.set(f"{one.prefix}low", "text")

    one.finish(one.end(low, "back"), one.end(default, "back"))

    assert waiting() == ["b"]
    assert list(one.holds()) == [low.record]


def test_a_hundred_results_cost_210_commands_at_most(one: Any, send: Any, commands: Callable[..., int]) -> None:
    for number in range(100):
        send(f"a{number}")
    calls = one.take(100).calls
    ends = [one.end(call, "done", (f"{one.prefix}result-{call.id}", 60, SUCCESS)) for call in calls]
    one.finish()

    assert commands(lambda: one.finish(*ends)) <= 210
    assert one.holds() == {}


# Words that Lua may not like


@pytest.fixture
def holder(app: Celery, redis: "Redis[bytes]", caplog: pytest.LogCaptureFixture) -> Iterator[Holder]:
    """A real holder, which tells Redis by a thread of its own."""
    caplog.set_level(logging.CRITICAL + 1, "core.tasks")  # pytest-xdist cannot carry half a character
    configure(Settings)
    made = Holder(app, lambda call, reason: None)
    made.start(redis.connection_pool)
    made.adopt()
    yield made
    made.close(5)


ODD = {
    "a path that is no UTF-8, as Python says it": ({"id": "a", "task": "t"}, "no such file: 'caf\udce9'"),
    "half a character in the id": ({"id": "a\ud800", "task": "t"}, "so"),
    "half a character in the task": ({"id": "a", "task": "\udfff"}, "so"),
    "an object as id": ({"id": {"a": 1}}, "the message names no task"),
    "a list as id": ({"id": ["a"]}, "the message names no task"),
    "a boolean as id": ({"id": True}, "the message names no task"),
    "an object as task": ({"id": "a", "task": {"t": 1}}, "so"),
    "odd characters": ({"id": "a", "task": "t"}, "\x00\x1f\x7f\u2028\U0001f600\ufffe"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("verdict", ["dead", "later"])
def test_whatever_a_call_says_of_itself_it_can_be_ended(
    holder: Holder, redis: "Redis[bytes]", odd: str, verdict: str
) -> None:
    """One that cannot would keep all that ends after it from being told, for ever."""
    headers, reason = ODD[odd]
    for record in ("1.1:1", "1.1:2"):
        redis.hset(holder.key, record, b"default\n{}")
        tag = f"{holder.worker}/{record}"
        holder.calls[tag] = Held(tag, "default", headers)
    first, second = holder.calls

    holder.settle(first, verdict, reason)
    holder.settle(second, "done")

    wait_until(lambda: redis.hkeys(holder.key) == [b"connection"], 1, "Redis was told")
