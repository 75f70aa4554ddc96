"""`take.lua`: calls that are not due yet wait elsewhere until their time has come."""

import json
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from redis import Redis
from support import wait_until

LATER = "default\x06\x163"
CENTURY = 100 * 365 * 86400  # seconds
CHANCE = random.Random(4)


def written(moment: datetime) -> str:
    """A moment as some producer would write it."""
    zone = CHANCE.choice([UTC, timezone(timedelta(minutes=CHANCE.randint(-14 * 60, 14 * 60)))])
    text = moment.astimezone(zone).isoformat(sep=CHANCE.choice("T "))
    return text.replace("+00:00", CHANCE.choice(["+00:00", "Z", "+0000", "-00:00"]))


def moments(first: float, last: float) -> list[datetime]:
    """Random moments between two, half of them with microseconds."""
    found = [datetime.fromtimestamp(CHANCE.uniform(first, last), UTC) for _ in range(250)]
    return [moment.replace(microsecond=CHANCE.choice([0, moment.microsecond])) for moment in found]


def parked(redis: "Redis[bytes]", prefix: str) -> dict[str, tuple[bytes, float]]:
    """What waits for its time: by id, its list with its message, and the time."""
    calls, times = (
        redis.hgetall(f"{prefix}core-delayed-calls"),
        redis.zrange(f"{prefix}core-delayed", 0, -1, withscores=True),
    )
    assert sorted(calls) == sorted(name for name, _ in times)
    found = [(calls[name], at) for name, at in times]
    return {json.loads(call.partition(b"\n")[2])["headers"]["id"]: (call, at) for call, at in found}


def hurry(redis: "Redis[bytes]", prefix: str, seconds: float) -> None:
    """Let so many seconds pass for every call that waits."""
    for name, at in redis.zrange(f"{prefix}core-delayed", 0, -1, withscores=True):
        redis.zadd(f"{prefix}core-delayed", {name: at - seconds})


# Not due yet


def test_a_countdown_waits_elsewhere_with_its_list(one: Any, send: Any, waiting: Any, redis: Any, prefix: str) -> None:
    before = redis.time()[0]
    sent = [send("a", countdown=60), send("b", countdown=90, priority=3)]

    assert one.take(lists=("default", LATER), queues=1).calls == []

    found = parked(redis, prefix)
    assert [call for call, _ in found.values()] == [b"default\n" + sent[0], LATER.encode() + b"\n" + sent[1]]
    assert found["a"][1] == pytest.approx(before + 60, abs=5)
    assert (waiting(), waiting(LATER), one.holds()) == ([], [], {})


def test_calls_that_wait_take_no_room(one: Any, send: Any) -> None:
    for number in range(20):
        send(f"later{number}", countdown=60)
    send("now")

    assert one.take(1).ids == ["now"]


def test_a_call_waits_under_its_own_id(one: Any, send: Any, redis: Any, prefix: str) -> None:
    """Whoever cancels it finds out how long it may still wait."""
    before = redis.time()[0]
    send("a", countdown=60)
    one.take()

    assert redis.zscore(f"{prefix}core-delayed", "a") == pytest.approx(before + 60, abs=5)


def test_two_calls_of_one_id_both_wait(one: Any, send: Any, waiting: Any, redis: Any, prefix: str) -> None:
    sent = [send("a", countdown=seconds) for seconds in (60, 30, 90)]
    one.take()

    assert redis.hlen(f"{prefix}core-delayed-calls") == redis.zcard(f"{prefix}core-delayed") == 3
    hurry(redis, prefix, 100)
    one.take(0)

    assert redis.lrange(f"{prefix}default", 0, -1)[::-1] == [sent[1], sent[0], sent[2]]


def test_two_workers_park_under_different_names(one: Any, other: Any, send: Any, redis: Any, prefix: str) -> None:
    for worker, task_id in ((one, "a"), (other, "b"), (one, "c")):
        send(task_id, countdown=60)
        worker.take()

    assert list(parked(redis, prefix)) == ["a", "b", "c"]


def test_one_take_looks_at_a_bounded_number_of_calls(one: Any, send: Any, redis: Any, prefix: str) -> None:
    """However many countdowns stand before an ordinary call, it is found."""
    message = send("a", countdown=60)
    redis.lpush(f"{prefix}default", *[message] * 2500)
    send("now")

    takes = [one.take(500) for _ in range(3)]

    assert [found.ids for found in takes] == [[], [], ["now"]]
    assert [found.more for found in takes] == [True, True, False]
    assert redis.zcard(f"{prefix}core-delayed") == redis.hlen(f"{prefix}core-delayed-calls") == 2501


def test_a_call_of_bad_bytes_waits_as_it_is(one: Any, redis: Any, prefix: str) -> None:
    message = b'\xff\x00{"eta": "2090-01-01T00:00:00Z"\n' + bytes(range(256))
    redis.lpush(f"{prefix}default", message)

    one.take()

    assert redis.hvals(f"{prefix}core-delayed-calls") == [b"default\n" + message]


# What an eta says


def test_every_moment_is_read_as_python_reads_it(one: Any, send: Any, redis: Any, prefix: str) -> None:
    now = redis.time()[0]
    etas = {f"c{number}": written(moment) for number, moment in enumerate(moments(now + 120, now + CENTURY - 120))}
    for task_id, eta in etas.items():
        send(task_id, eta=eta)

    assert one.take(500).calls == []

    read = {task_id: at for task_id, (_, at) in parked(redis, prefix).items()}
    assert read == {task_id: pytest.approx(datetime.fromisoformat(eta).timestamp(), abs=2e-6, rel=0)
                    for task_id, eta in etas.items()}  # fmt: skip


def test_every_moment_that_has_passed_is_due_at_once(one: Any, send: Any, redis: Any, prefix: str) -> None:
    ids = [f"c{number}" for number in range(250)]
    for task_id, moment in zip(ids, moments(-5e9, redis.time()[0] - 1), strict=True):
        send(task_id, eta=written(moment))

    assert one.take(500).ids == ids
    assert parked(redis, prefix) == {}


@pytest.mark.parametrize(
    "eta",
    [
        "2096-02-29T12:00:00+00:00",
        "2096-03-01T00:00:00Z",
        "2099-12-31T23:59:59.999999Z",
        "2100-02-28T23:59:59.999999+00:00",
        "2100-03-01T00:00:00+00:00",
        "2100-02-28T20:00:00-05:30",
        "2100-03-01T03:00:00+14:00",
        "2080-01-01T00:00:00.5Z",
        "2080-01-01T00:00:00.000001+00:00",
        "2080-06-30 23:59:59+0200",
    ],
)
def test_leap_years_centuries_and_offsets(one: Any, send: Any, redis: Any, prefix: str, eta: str) -> None:
    send("a", eta=eta)

    one.take()

    expected = datetime.fromisoformat(eta).timestamp()
    assert parked(redis, prefix)["a"][1] == pytest.approx(expected, abs=2e-6, rel=0)


@pytest.mark.parametrize(
    "eta",
    [
        "2080-01-01T00:00:00",  # whose time zone this is, a worker knows
        "2080-01-01T00:00:00.5",
        "9999-12-31T23:59:59Z",
        "2080-01-01T00:00:00+05",
        "2080-01-01T00:00:00+05:30:15",
        "2080-01-01",
        "zz",
        "",
        "١٩٨٠-01-01T00:00:00Z",
    ],
)
def test_an_eta_that_is_not_plain_is_left_to_the_worker(one: Any, send: Any, redis: Any, prefix: str, eta: str) -> None:
    send("a", eta=eta)

    assert one.take().ids == ["a"]
    assert parked(redis, prefix) == {}


@pytest.mark.parametrize(
    "eta", [b"5", b"null", b"{}", b'["2080-01-01T00:00:00Z"]', b'"2080-01-01T00:00:00Z', b"", b'"']
)
def test_an_eta_that_is_no_text_is_left_to_the_worker(one: Any, send: Any, redis: Any, prefix: str, eta: bytes) -> None:
    odd = send("a").replace(b'"eta": null', b'"eta": ' + eta)
    one.take()
    redis.lpush(f"{prefix}default", odd)

    assert [call.message for call in one.take().calls] == [odd]


# When the time has come


def test_calls_that_are_due_go_to_the_front_the_earliest_first(
    one: Any, send: Any, waiting: Any, redis: Any, prefix: str
) -> None:
    for task_id, seconds in (("third", 90), ("first", 30), ("second", 60), ("not yet", 900)):
        send(task_id, countdown=seconds)
    one.take()
    send("ordinary")
    hurry(redis, prefix, 100)

    one.take(0)

    assert waiting() == ["first", "second", "third", "ordinary"]
    assert list(parked(redis, prefix)) == ["not yet"]


def test_a_call_that_is_due_goes_back_into_the_list_of_its_priority(
    one: Any, send: Any, waiting: Any, redis: Any, prefix: str
) -> None:
    sent = send("a", countdown=60, priority=3)
    one.take(lists=("default", LATER), queues=1)
    hurry(redis, prefix, 100)

    one.take(0, ("default", LATER), queues=1)

    assert waiting() == []
    assert redis.lrange(f"{prefix}{LATER}", 0, -1) == [sent]


def test_a_countdown_runs_when_its_time_has_come(one: Any, send: Any) -> None:
    sent = send("a", countdown=0.15)
    assert one.take().ids == []

    (call,) = wait_until(lambda: one.take().calls, 5, "the call is due")

    assert call.message == sent


def test_without_looking_nothing_that_is_due_moves(one: Any, send: Any, redis: Any, prefix: str) -> None:
    send("a", countdown=60)
    one.take()
    hurry(redis, prefix, 100)

    assert one.take(look=False) == (False, None, [])
    assert list(parked(redis, prefix)) == ["a"]


def test_calls_of_a_queue_that_this_worker_does_not_serve_are_moved_too(
    one: Any, other: Any, send: Any, waiting: Any, redis: Any, prefix: str
) -> None:
    send("a", queue="low", countdown=60)
    one.take(lists=("low",))
    hurry(redis, prefix, 100)

    assert other.take().ids == []
    assert waiting("low") == ["a"]


def test_many_that_are_due_at_once_all_come(one: Any, send: Any, redis: Any, prefix: str) -> None:
    message = send("a", countdown=60)
    redis.lpush(f"{prefix}default", *[message] * 1199)
    for _ in range(2):
        one.take(500)
    assert len(redis.zrange(f"{prefix}core-delayed", 0, -1)) == 1200
    hurry(redis, prefix, 100)

    seconds = [one.take(0).seconds for _ in range(3)]

    assert seconds == [0.0, 0.0, None]
    assert redis.llen(f"{prefix}default") == 1200
    assert redis.exists(f"{prefix}core-delayed", f"{prefix}core-delayed-calls") == 0


def test_a_due_call_whose_list_is_something_else_stops_nobody(one: Any, send: Any, redis: Any, prefix: str) -> None:
    send("a", queue="low", countdown=60)
    one.take(lists=("low",))
    hurry(redis, prefix, 100)
    redis.set(f"{prefix}low", "text")
    send("b")

    assert one.take().ids == ["b"]
    assert "a" in parked(redis, prefix)


# Seconds until the next


def test_nothing_waits_and_nothing_is_said(one: Any, send: Any) -> None:
    send("a")

    assert one.take().seconds is None


def test_the_seconds_until_the_next_call_are_said(one: Any, send: Any, redis: Any, prefix: str) -> None:
    send("a", countdown=500)
    assert one.take().seconds == pytest.approx(500, abs=3)

    send("b", countdown=90)
    assert one.take().seconds == pytest.approx(90, abs=3)

    send("c", countdown=700)
    assert one.take().seconds == pytest.approx(90, abs=3)

    hurry(redis, prefix, 60)
    assert one.take().seconds == pytest.approx(30, abs=3)


def test_without_looking_the_seconds_are_those_of_what_was_parked_now(one: Any, send: Any) -> None:
    send("a", countdown=30)
    one.take()
    assert one.take(look=False).seconds is None

    for task_id, seconds in (("b", 500), ("c", 90), ("d", 700)):
        send(task_id, countdown=seconds)

    assert one.take(look=False).seconds == pytest.approx(90, abs=3)
