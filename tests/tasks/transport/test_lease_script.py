"""`lease.lua`: a worker that renews its lease keeps its calls; what a lost one held is given to others."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

LATER = "default\x06\x163"
WEEK = 7 * 86400


@pytest.fixture
def dead(redis: "Redis[bytes]", prefix: str) -> Callable[[], dict[str, Any]]:
    """What was set aside, by id."""

    def found() -> dict[str, Any]:
        names = redis.zrange(f"{prefix}core-dead", 0, -1)
        return {name.decode(): json.loads(redis.hget(f"{prefix}core-dead-calls", name) or b"") for name in names}

    return found


def lose(worker: Any, by: Any, *, begun: bool = True) -> Any:
    """Let a worker take what there is and lose it all."""
    calls = worker.take_all(lists=("default", LATER), queues=1)
    worker.lease(waiting=() if begun else tuple(call.record for call in calls))
    worker.dies()
    return by.lease()


# Who is alive


def test_a_lease_ends_so_many_seconds_from_now(one: Any, other: Any, redis: Any, prefix: str) -> None:
    before = dict(redis.zrange(f"{prefix}core-workers", 0, -1, withscores=True))

    one.lease(7.5)

    after = dict(redis.zrange(f"{prefix}core-workers", 0, -1, withscores=True))
    seconds, micros = redis.time()
    assert after[one.name.encode()] == pytest.approx(seconds + micros / 1e6 + 7.5, abs=0.5)
    assert after[other.name.encode()] == before[other.name.encode()]


def test_a_living_worker_keeps_its_calls(one: Any, other: Any, send: Any, waiting: Any) -> None:
    send("a")
    one.take()

    assert other.lease() == []
    assert (waiting(), len(one.holds())) == ([], 1)


def test_whoever_renews_in_time_or_late_keeps_its_own(one: Any, send: Any) -> None:
    """Nobody has swept it, so that it is still the one that runs them."""
    send("a")
    one.take()
    one.dies(30)

    assert one.lease() == []
    assert len(one.holds()) == 1


def test_whose_own_lease_has_ended_takes_nobody_for_lost(one: Any, other: Any, send: Any, waiting: Any) -> None:
    """All of them were away, as when the server was frozen: each is to have the time to come back."""
    send("a")
    one.take()
    one.dies()
    other.dies()

    assert other.lease() == []
    assert (waiting(), len(one.holds())) == ([], 1)

    assert other.lease() == [(one.name, 1, [])]


# What a lost worker held


def test_the_calls_of_a_lost_worker_go_back_to_the_front(
    again: Any, one: Any, other: Any, send: Any, waiting: Any
) -> None:
    sent = {"a": send("a"), "b": send("b", priority=3)}
    one.take(lists=("default", LATER), queues=1)
    send("new")
    send("new too", priority=3)
    one.dies()

    assert other.lease() == [(one.name, 2, [])]

    assert (waiting(), waiting(LATER)) == (["a", "new"], ["b", "new too"])
    taken = {call.id: call.message for call in other.take(lists=("default", LATER), queues=1).calls}
    assert {name: taken[name] for name in sent} == {name: again(message) for name, message in sent.items()}


def test_the_hash_of_a_lost_worker_is_gone(one: Any, other: Any, send: Any, redis: Any) -> None:
    send("a")
    lose(one, other)

    assert redis.exists(one.key) == 0
    assert redis.exists(other.key) == 1


def test_calls_are_given_away_once(make_worker: Any, one: Any, send: Any, waiting: Any) -> None:
    for number in range(50):
        send(f"a{number}")
    one.take(50)
    one.dies()
    others = [make_worker(f"000000{number}0") for number in range(10, 18)]

    with ThreadPoolExecutor(8) as threads:
        answers = [answer for found in threads.map(lambda worker: worker.lease(), others) for answer in found]

    assert answers == [(one.name, 50, [])]
    assert sorted(waiting()) == sorted(f"a{number}" for number in range(50))


def test_each_lost_worker_is_named(make_worker: Any, other: Any, send: Any) -> None:
    lost = [make_worker(f"0000000{number}") for number in range(3, 6)]
    for number, worker in enumerate(lost):
        for task in range(number):
            send(f"{worker.name} {task}")
        worker.take_all()
        worker.dies()

    assert sorted(other.lease()) == [(worker.name, number, []) for number, worker in enumerate(lost) if number]


def test_a_worker_with_very_many_calls_loses_none(one: Any, other: Any, send: Any, redis: Any, prefix: str) -> None:
    """One script does a bounded amount of work, and the next one goes on."""
    message = send("a")
    redis.lpush(f"{prefix}default", *[message.replace(b'"id": "a"', b'"id": "%d"' % number) for number in range(2999)])
    for _ in range(6):
        one.take(500)
    one.lease(waiting=tuple(one.holds()))
    one.dies()

    rounds = 0
    while redis.exists(one.key):
        assert len(one.holds()) + redis.llen(f"{prefix}default") == 3000
        other.lease()
        rounds += 1

    assert redis.llen(f"{prefix}default") == 3000
    assert rounds <= 10


@pytest.mark.parametrize("message", [b"", b"garbage", b"a\nb\n", b'{"id": 5, "x": "\xff"}', bytes(range(256))])
def test_bad_bytes_go_back_as_they_are(one: Any, other: Any, redis: Any, prefix: str, message: bytes) -> None:
    """They have no id by which losses could be counted."""
    for _ in range(4):
        redis.lpush(f"{prefix}default", message)
        assert lose(one, other) == [(one.name, 1, [])]
        assert redis.rpop(f"{prefix}default") == message


def test_a_list_that_is_something_else_keeps_no_other_call(one: Any, other: Any, send: Any, waiting: Any) -> None:
    send("a", queue="low")
    send("b")
    one.take(lists=("low", "default"))
    one.dies()
    one.client.set(f"{one.prefix}low", "text")

    other.lease()

    assert waiting() == ["b"]
    assert any(call.startswith(b"low\n") for call in one.holds().values())


# A call that is lost again and again


def test_a_call_that_lost_its_worker_three_times_is_set_aside(
    again: Any, one: Any, other: Any, send: Any, waiting: Any, dead: Any, redis: Any, prefix: str
) -> None:
    sent = send("a", priority=3)

    answers = [lose(one, other) for _ in range(3)]

    assert answers == [[(one.name, 1, [])], [(one.name, 1, [])], [(one.name, 0, [again(sent)])]]
    assert (waiting(), waiting(LATER), redis.exists(one.key)) == ([], [], 0)
    entry = dead()["a"]
    assert (entry["task"], entry["queue"], entry["list"]) == ("t.work", "default", LATER)
    assert entry["message"] == again(sent).decode()
    assert entry["reason"] == "lost its worker 3 times while it ran"
    assert WEEK - 10 < redis.ttl(f"{prefix}core-losses-a") <= WEEK


def test_a_lock_ends_with_the_call_that_is_set_aside_and_not_before(
    one: Any, other: Any, send: Any, redis: Any, prefix: str
) -> None:
    send("a", headers={"core-unique": "core-unique-t"})
    redis.set(f"{prefix}core-unique-t", "a\n")

    for there in (1, 1, 0):
        lose(one, other)
        assert redis.exists(f"{prefix}core-unique-t") == there


def test_a_lost_pool_process_counts_as_a_lost_worker(one: Any, other: Any, send: Any, dead: Any) -> None:
    send("a")
    for _ in range(2):
        (call,) = one.take().calls
        one.finish(one.end(call, "lost"))

    lose(one, other)

    assert list(dead()) == ["a"]


def test_the_others_of_a_worker_that_is_lost_for_the_third_time_go_back(
    one: Any, other: Any, send: Any, waiting: Any, dead: Any
) -> None:
    send("poison")
    for _ in range(2):
        lose(one, other)
    send("innocent")

    ((_, back, aside),) = lose(one, other)

    assert (back, len(aside)) == (1, 1)
    assert (waiting(), list(dead())) == (["innocent"], ["poison"])


def test_a_call_that_had_not_begun_is_not_counted(
    one: Any, other: Any, send: Any, waiting: Any, redis: Any, prefix: str
) -> None:
    send("a")

    for _ in range(5):
        assert lose(one, other, begun=False) == [(one.name, 1, [])]

    assert waiting() == ["a"]
    assert redis.exists(f"{prefix}core-losses-a") == 0


def test_only_those_that_had_not_begun_are_not_counted(
    one: Any, other: Any, send: Any, redis: Any, prefix: str
) -> None:
    """Records are compared whole: `1.1:1` is not in ` 1.1:11 `."""
    for number in range(24):  # half of them are the other worker's
        send(f"a{number}")
    records = {call.id: call.record for call in one.take(12).calls}
    assert (records["a0"], records["a10"]) == ("1.1:1", "1.1:11")
    one.lease(waiting=(records["a10"], records["a5"]))
    one.dies()
    other.lease()

    counted = {key.decode().removeprefix(f"{prefix}core-losses-") for key in redis.keys(f"{prefix}core-losses-*")}

    assert counted == {f"a{number}" for number in range(12)} - {"a5", "a10"}


def test_what_has_begun_meanwhile_is_recorded_by_the_next_renewal(one: Any, other: Any, send: Any, redis: Any) -> None:
    send("a")
    (call,) = one.take().calls
    one.lease(waiting=(call.record,))
    assert redis.hget(one.key, "waiting") == f" {call.record} ".encode()

    one.lease()
    one.dies()
    other.lease()

    assert redis.get(f"{one.prefix}core-losses-a") == b"1"


# Workers that come back, or never do


def test_a_worker_that_only_slept_is_swept_again(one: Any, other: Any, send: Any, waiting: Any, redis: Any) -> None:
    """It may take more before it renews its lease."""
    send("a")
    lose(one, other)
    one.take()
    assert len(one.holds()) == 1

    assert other.lease() == [(one.name, 1, [])]
    assert (waiting(), redis.exists(one.key)) == (["a"], 0)


def test_a_worker_that_slept_is_alive_again_when_it_renews(one: Any, other: Any, send: Any) -> None:
    send("a")
    lose(one, other)

    one.lease()
    one.take()

    assert other.lease() == []
    assert len(one.holds()) == 1


@pytest.mark.parametrize(("ago", "there"), [(3500, True), (3700, False)])
def test_a_dead_worker_is_forgotten_after_an_hour(
    one: Any, other: Any, redis: Any, prefix: str, ago: int, there: bool
) -> None:
    one.dies(ago)

    other.lease()

    assert (redis.zscore(f"{prefix}core-workers", one.name) is not None) is there
    assert redis.zscore(f"{prefix}core-workers", other.name) is not None


def test_a_worker_is_not_forgotten_while_it_holds_something(one: Any, other: Any, send: Any, redis: Any) -> None:
    message = send("a")
    redis.lpush(f"{one.prefix}default", *[message] * 2999)
    for _ in range(6):
        one.take(500)
    one.lease(waiting=tuple(one.holds()))
    one.dies(3700)

    while one.holds():
        assert redis.zscore(f"{one.prefix}core-workers", one.name) is not None
        other.lease()

    assert redis.zscore(f"{one.prefix}core-workers", one.name) is None
    assert redis.llen(f"{one.prefix}default") == 3000


def test_a_renewal_costs_few_commands(one: Any, make_worker: Any, commands: Callable[..., int]) -> None:
    for number in range(10, 30):
        make_worker(f"000000{number}")
    one.lease()

    assert commands(one.lease) <= 7
