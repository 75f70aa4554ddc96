"""`adopt.lua`: over a new connection a worker says what it still holds."""

from typing import Any

import pytest

LATER = "default\x06\x163"


def test_what_a_worker_keeps_stays_and_the_rest_goes_back(one: Any, send: Any, waiting: Any) -> None:
    for name in "abcd":
        send(name)
    calls = {call.id: call.record for call in one.take().calls}

    assert one.adopt(calls["a"], calls["c"]) == 2

    assert set(one.holds()) == {calls["a"], calls["c"]}
    assert sorted(waiting()) == ["b", "d"]


def test_everything_goes_back_in_front_in_the_order_in_which_it_was_taken(one: Any, send: Any, waiting: Any) -> None:
    ids = [f"a{number}" for number in range(60)]
    for name in ids:
        send(name)
    while one.take(5).calls:
        pass
    send("new")

    assert one.adopt() == 60

    assert waiting() == [*ids, "new"]


def test_calls_of_several_connections_go_back_in_order(one: Any, send: Any, waiting: Any) -> None:
    """A call that was kept is older than any that was taken since."""
    ids = [f"a{number}" for number in range(36)]
    for name in ids:
        send(name)
    for _ in range(12):
        one.take(3)
        one.adopt(*one.holds())

    one.adopt()

    assert waiting() == ids


def test_each_call_goes_back_into_the_list_of_its_priority(
    again: Any, one: Any, send: Any, waiting: Any, redis: Any
) -> None:
    send("a")
    urgent = send("b", priority=3)
    send("c", queue="low")
    one.take(lists=("default", LATER, "low"))

    assert one.adopt() == 3

    assert (waiting(), waiting(LATER), waiting("low")) == (["a"], ["b"], ["c"])
    assert redis.lindex(f"{one.prefix}{LATER}", 0) == again(urgent)


@pytest.mark.parametrize("message", [b"", b"garbage", b"a\nb\n", bytes(range(256))])
def test_bad_bytes_go_back_as_they_are(one: Any, redis: Any, message: bytes) -> None:
    redis.lpush(f"{one.prefix}default", message)
    one.take()

    one.adopt()

    assert redis.lrange(f"{one.prefix}default", 0, -1) == [message]


def test_a_connection_that_was_given_up_takes_nothing_any_more(one: Any, send: Any, redis: Any) -> None:
    send("a")
    one.adopt()
    assert redis.hget(one.key, "connection") == str(one.connection).encode()

    assert one.take(connection=one.connection - 1).calls == []
    assert one.take().ids == ["a"]


def test_what_goes_back_is_no_loss(one: Any, send: Any, redis: Any, prefix: str) -> None:
    send("a")
    for _ in range(4):
        one.take()
        one.adopt()

    assert redis.keys(f"{prefix}core-losses-*") == []
    assert one.take().ids == ["a"]


def test_what_others_have_got_meanwhile_is_not_taken_from_them(one: Any, other: Any, send: Any, waiting: Any) -> None:
    send("a")
    (call,) = one.take().calls
    one.dies()
    other.lease()
    other.take()

    assert one.adopt(call.record) == 0

    assert (one.holds(), len(other.holds()), waiting()) == ({}, 1, [])


def test_a_new_connection_renews_the_lease(one: Any, other: Any, send: Any, redis: Any, prefix: str) -> None:
    send("a")
    (call,) = one.take().calls
    one.dies()

    one.adopt(call.record, seconds=30)

    assert redis.zscore(f"{prefix}core-workers", one.name) == pytest.approx(redis.time()[0] + 30, abs=2)
    assert other.lease() == []
    assert list(one.holds()) == [call.record]


def test_records_of_what_had_not_begun_are_no_calls(one: Any, send: Any, waiting: Any) -> None:
    send("a")
    (call,) = one.take().calls
    one.lease(waiting=(call.record,))

    assert one.adopt(call.record) == 0
    assert one.adopt() == 1
    assert waiting() == ["a"]


def test_a_lease_of_zero_seconds_ends_and_everything_goes_back(
    one: Any, other: Any, send: Any, waiting: Any, redis: Any, prefix: str
) -> None:
    ids = [f"a{number}" for number in range(20)]
    for name in ids:
        send(name)
    one.take_all()
    one.lease(waiting=("1.1:3",))

    assert one.adopt(seconds=0) == 20

    assert waiting() == ids
    assert redis.hkeys(one.key) == [b"connection"]
    assert 0 < redis.ttl(one.key) <= 60
    assert redis.zscore(f"{prefix}core-workers", one.name) <= redis.time()[0] + 1
    assert other.lease() == []


def test_a_worker_that_ends_takes_nothing_by_what_its_connections_still_wait_for(
    one: Any, other: Any, send: Any, waiting: Any
) -> None:
    """The server sees a call that was given back before it sees that they are gone."""
    send("a")
    one.adopt()
    one.take()
    one.adopt(seconds=0)

    assert one.take().calls == []
    other.lease()
    assert one.take().calls == []

    assert waiting() == ["a"]


def test_what_an_ended_worker_still_takes_goes_back(one: Any, other: Any, send: Any, waiting: Any) -> None:
    """Its last question may still have been on its way."""
    one.adopt(seconds=0)
    send("a")
    one.take()

    other.lease()

    assert waiting() == ["a"]


def test_a_list_that_is_something_else_does_not_keep_a_worker_from_starting(
    one: Any, send: Any, waiting: Any, redis: Any
) -> None:
    send("a", queue="low")
    send("b")
    one.take(lists=("low", "default"))
    redis.set(f"{one.prefix}low", "text")

    one.adopt()

    assert waiting() == ["b"]
    assert [call.startswith(b"low\n") for call in one.holds().values()] == [True]
