"""`take.lua`: which calls a worker takes, in which order, without losing one."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

URGENT, LATER = "default", "default\x06\x163"
EVERY_BYTE = bytes(range(256))
NO_CALLS = (
    b"",
    b"garbage",
    b"{}",
    b"null",
    b"\xff\xfe{",
    EVERY_BYTE,
    b'{"id": "',
    b'"eta": "2999',
    b"a\nb\n",
    b"x" * 100_000,
)


def fill(send: Any, name: str, count: int, **options: Any) -> list[str]:
    """Send so many calls; their ids."""
    ids = [f"{name}{number}" for number in range(count)]
    for task_id in ids:
        send(task_id, **options)
    return ids


# One list


def test_the_oldest_call_leaves_first_as_it_was_sent(one: Any, send: Any) -> None:
    sent = [send("a", args=(1, "é\n\0")), send("b"), send("c")]

    taken = one.take(2)

    assert [(call.list, call.message) for call in taken.calls] == [("default", sent[0]), ("default", sent[1])]


def test_what_is_taken_is_held_under_its_record_with_its_list(one: Any, send: Any, waiting: Any) -> None:
    sent = [send("a"), send("b"), send("c")]

    taken = one.take(2)

    assert one.holds() == {
        taken.calls[0].record: b"default\n" + sent[0],
        taken.calls[1].record: b"default\n" + sent[1],
    }
    assert waiting() == ["c"]


def test_records_are_never_used_twice(one: Any, send: Any) -> None:
    fill(send, "a", 9)

    records = [call.record for _ in range(4) for call in one.take(2).calls]
    one.adopt(*records)
    records += [call.record for call in one.take(2).calls]

    assert len(set(records)) == len(one.holds()) == 9


def test_an_empty_list_gives_nothing(one: Any) -> None:
    assert one.take() == (False, None, [])
    assert one.holds() == {}


@pytest.mark.parametrize(
    ("there", "room", "taken", "more"),
    [(0, 3, 0, False), (2, 3, 2, False), (3, 3, 3, False), (4, 3, 3, True), (3, 1, 1, True), (2, 0, 0, True)],
)
def test_no_more_is_taken_than_there_is_room_for(
    one: Any, send: Any, there: int, room: int, taken: int, more: bool
) -> None:
    """What is left is for the next take."""
    fill(send, "a", there)

    found = one.take(room)

    assert (len(found.calls), found.more) == (taken, more)
    assert len(one.holds()) == taken


def test_of_a_short_list_each_worker_takes_its_part(one: Any, other: Any, send: Any) -> None:
    """Else the first one would have all of it, and run one after the other what both could run at once."""
    for worker in (one, other):
        worker.adopt()
    fill(send, "a", 11)

    taken = [len(worker.take(10).calls) for worker in (one, other, one, other, one)]

    assert taken == [6, 3, 1, 1, 0]


def test_a_long_list_gives_each_worker_what_it_has_room_for(one: Any, other: Any, send: Any) -> None:
    for worker in (one, other):
        worker.adopt()
    fill(send, "a", 30)

    assert [len(worker.take(10).calls) for worker in (one, other)] == [10, 10]


def test_as_many_as_a_worker_asks_for_at_most_are_taken_at_once(one: Any, send: Any, redis: "Redis[bytes]") -> None:
    message = send("a")
    redis.lpush(f"{one.prefix}default", *[message] * 600)

    assert len(one.take(500).calls) == len(one.holds()) == 500
    assert redis.llen(f"{one.prefix}default") == 101


@pytest.mark.parametrize("message", NO_CALLS, ids=range(len(NO_CALLS)))
def test_bad_bytes_are_taken_and_held_as_they_are(one: Any, send: Any, redis: "Redis[bytes]", message: bytes) -> None:
    send("before")
    redis.lpush(f"{one.prefix}default", message)
    send("after")

    taken = one.take()

    assert [call.id for call in taken.calls[::2]] == ["before", "after"]
    assert taken.calls[1].message == message
    assert one.holds()[taken.calls[1].record] == b"default\n" + message


# Who takes


def test_another_connection_takes_nothing(one: Any, send: Any, waiting: Any) -> None:
    send("a")
    one.adopt()

    assert one.take(connection=one.connection - 1) == (False, None, [])
    assert (waiting(), one.holds()) == (["a"], {})
    assert one.take().ids == ["a"]


def test_a_worker_whose_record_was_swept_takes_on(one: Any, other: Any, send: Any) -> None:
    """It only slept: its hash is gone, and with it the number of its connection."""
    one.dies()
    other.lease()
    send("a")

    assert one.take().ids == ["a"]


def test_two_workers_never_take_the_same_call(make_worker: Any, send: Any, waiting: Any) -> None:
    ids = fill(send, "a", 300)
    workers = [make_worker(f"0000000{number}") for number in range(4)]

    def work(worker: Any) -> list[str]:
        found: list[str] = []
        while taken := worker.take(7).ids:
            found += taken
        return found

    with ThreadPoolExecutor(4) as threads:
        found = [task_id for taken in threads.map(work, workers) for task_id in taken]

    assert sorted(found) == sorted(ids)
    assert sum(len(worker.holds()) for worker in workers) == 300
    assert waiting() == []


# Several lists


def test_the_most_urgent_list_is_emptied_first(one: Any, send: Any) -> None:
    send("c", priority=3)
    send("d", priority=3)
    send("a")
    send("b")

    assert one.take(3, (URGENT, LATER), queues=1).ids == ["a", "b", "c"]
    assert one.take(3, (URGENT, LATER), queues=1).ids == ["d"]


def test_a_call_is_held_with_the_list_of_its_priority(one: Any, send: Any) -> None:
    sent = send("a", priority=3)

    (call,) = one.take(3, (URGENT, LATER), queues=1).calls

    assert call.list == LATER
    assert one.holds() == {call.record: LATER.encode() + b"\n" + sent}


def test_an_urgent_call_of_any_queue_goes_before_the_rest(one: Any, send: Any) -> None:
    send("low", queue="a", priority=3)
    send("urgent", queue="b")

    lists = ("a", "b", "a\x06\x163", "b\x06\x163")
    assert one.take(1, lists, queues=2).ids == ["urgent"]
    assert one.take(1, lists, queues=2).ids == ["low"]


@pytest.mark.parametrize(
    ("there", "room", "expected"),
    [
        ((100, 100), 10, (5, 5)),
        ((100, 2), 10, (8, 2)),
        ((1, 100), 10, (1, 9)),
        ((0, 100), 10, (0, 10)),
        ((100, 100, 100), 10, (4, 4, 2)),
        ((100, 1, 100), 9, (5, 1, 3)),
        ((100, 100), 1, (1, 0)),
        ((2, 3), 10, (2, 3)),
    ],
)
def test_a_full_queue_leaves_the_others_their_share(
    one: Any, send: Any, redis: "Redis[bytes]", there: tuple[int, ...], room: int, expected: tuple[int, ...]
) -> None:
    message, names = send("a", queue="filler"), "abc"[: len(there)]
    for name, count in zip(names, there, strict=True):
        if count:
            redis.lpush(one.prefix + name, *[message] * count)

    found = one.take(room, tuple(names))

    lists = [call.list for call in found.calls]
    assert tuple(lists.count(name) for name in names) == expected
    assert found.more is (sum(there) > room)


def test_a_key_that_is_no_list_does_not_stop_the_others(one: Any, send: Any, redis: "Redis[bytes]") -> None:
    redis.set(f"{one.prefix}a", "text")
    redis.hset(f"{one.prefix}c", "field", "value")
    send("b", queue="b")
    send("d", queue="d")

    found = one.take(8, ("a", "b", "c", "d"))

    assert (found.ids, found.more) == (["b", "d"], False)
    assert redis.get(f"{one.prefix}a") == b"text"


@pytest.mark.parametrize("queue", ["app:default", "a:b", "häuser", "a b", "core-held"])
def test_a_queue_may_have_any_name(one: Any, send: Any, waiting: Any, queue: str) -> None:
    sent = send("a", queue=queue)

    (call,) = one.take(lists=(queue,)).calls
    assert one.holds() == {call.record: queue.encode() + b"\n" + sent}

    one.adopt()
    assert waiting(queue) == ["a"]


# What has woken a worker

NEXT = "core-next-default"


def test_what_has_woken_a_worker_is_the_first_that_anybody_takes(one: Any, other: Any, send: Any, redis: Any) -> None:
    for task_id in "abcd":
        send(task_id)
    for _ in range(2):  # as two connections do that wait
        redis.lmove(f"{one.prefix}default", f"{one.prefix}{NEXT}", "RIGHT", "LEFT")

    taken = other.take(3)

    assert (taken.ids, taken.more) == (["a", "b", "c"], True)
    assert {record.partition(b"\n")[0] for record in other.holds().values()} == {b"default"}
    assert one.take().ids == ["d"]


@pytest.mark.parametrize("who", ["is full", "has another connection", "ends"])
def test_what_has_woken_a_worker_that_cannot_take_it_is_in_its_list_again(
    one: Any, send: Any, redis: Any, waiting: Any, who: str
) -> None:
    for task_id in "abc":
        send(task_id)
    for _ in range(2):
        redis.lmove(f"{one.prefix}default", f"{one.prefix}{NEXT}", "RIGHT", "LEFT")

    if who == "is full":
        assert one.take(1, ("other", "default")).ids == ["a"]
    elif who == "has another connection":
        one.adopt()
        assert one.take(connection=1).ids == []
    else:
        one.adopt("default", seconds=0)

    assert redis.exists(f"{one.prefix}{NEXT}") == 0
    assert waiting("default") == (["b", "c"] if who == "is full" else ["a", "b", "c"])


# Cancelled calls


def test_a_cancelled_call_is_marked_and_no_other(one: Any, send: Any, redis: "Redis[bytes]") -> None:
    fill(send, "a", 5)
    for task_id in ("a1", "a4", "a7"):
        redis.set(f"{one.prefix}core-cancelled-{task_id}", "1")

    assert [call.id for call in one.take().calls if call.cancelled] == ["a1", "a4"]


def test_where_marks_cannot_be_seen_none_is_looked_for(one: Any, send: Any, admin: Any, redis: "Redis[bytes]") -> None:
    send("a")
    redis.set(f"{one.prefix}core-cancelled-a", "1")
    redis.set(f"{one.prefix}a", "1")
    admin.config_resetstat()

    assert [call.cancelled for call in one.take(cancellations=False).calls] == [False]
    asked = admin.info("commandstats")
    assert "cmdstat_mget" not in asked
    assert asked["cmdstat_exists"]["calls"] == 1  # for what was set down


@pytest.mark.parametrize("name", ["id", "eta", "task", '"id": "b"'])
def test_a_task_may_be_named_like_a_header(one: Any, send: Any, redis: "Redis[bytes]", name: str) -> None:
    send("a", name=name)
    send("b", name=name, countdown=60)
    redis.set(f"{one.prefix}core-cancelled-a", "1")

    assert [(call.id, call.cancelled) for call in one.take().calls] == [("a", True)]


def test_arguments_that_look_like_headers_are_none(one: Any, send: Any, redis: "Redis[bytes]") -> None:
    text = '"id": "x", "eta": "2030-01-01T00:00:00Z"'
    send("a", name="t.work", args=(text,), shadow=text)
    redis.set(f"{one.prefix}core-cancelled-a", "1")

    assert [call.cancelled for call in one.take().calls] == [True]


# All of it together


def test_a_call_is_in_exactly_one_place_whatever_happens(
    make_worker: Any, send: Any, waiting: Any, redis: "Redis[bytes]", prefix: str
) -> None:
    chance = random.Random(8)
    workers = [make_worker(f"0000000{number}") for number in range(3)]
    sent, done, held = set(), set(), {worker.name: {} for worker in workers}
    lists = (URGENT, LATER)

    def everywhere() -> list[str]:
        places = [call.partition(b"\n")[2] for worker in workers for call in redis.hvals(worker.key) if b"\n" in call]
        places += [raw.partition(b"\n")[2] for raw in redis.hvals(f"{prefix}core-delayed-calls")]
        ids = [str(raw).partition('"id": "')[2].partition('"')[0] for raw in places]
        ids += [name.decode() for name in redis.hkeys(f"{prefix}core-dead-calls")]
        return sorted([*ids, *(task_id for name in lists for task_id in waiting(name))])

    for step in range(150):
        worker = chance.choice(workers)
        mine = held[worker.name]
        action = chance.choice(["send", "send", "take", "take", "finish", "dies", "sweeps", "adopts"])
        if action == "send":
            task_id = f"c{step}"
            send(task_id, priority=chance.choice([0, 3]), countdown=chance.choice([None, None, 30]))
            sent.add(task_id)
        elif action == "take":
            mine |= {call.record: call for call in worker.take(chance.randint(0, 4), lists, queues=1).calls}
        elif action == "finish" and mine:
            some = chance.sample(list(mine.values()), chance.randint(1, len(mine)))
            verdicts = [chance.choice(["done", "back", "lost", "dead", "later"]) for _ in some]
            answers = worker.finish(*(worker.end(call, word) for call, word in zip(some, verdicts, strict=True)))
            done |= {call.id for call, answer in zip(some, answers, strict=True) if answer == "done"}
            for call in some:
                del mine[call.record]
        elif action == "dies":
            worker.dies()
            held[worker.name] = {}
        elif action == "sweeps":
            worker.lease()
        elif action == "adopts":
            kept = chance.sample(list(mine), len(mine) // 2)
            worker.adopt(*kept)
            held[worker.name] = {record: mine[record] for record in kept}
        assert everywhere() == sorted(sent - done), action


def test_a_take_of_a_hundred_calls_costs_ten_commands_at_most(
    one: Any, send: Any, redis: "Redis[bytes]", commands: Callable[..., int]
) -> None:
    fill(send, "a", 100)
    redis.set(f"{one.prefix}core-cancelled-a5", "1")
    one.take(0)

    assert commands(lambda: one.take(100)) <= 10
    assert len(one.holds()) == 100


def test_a_lone_call_that_has_woken_a_worker_costs_eight_commands_however_many_priorities_there_are(
    one: Any, send: Any, redis: Any, commands: Callable[..., int]
) -> None:
    lists = ("default", *(f"default\x06\x16{step}" for step in (3, 6, 9)))
    one.take(0)
    send("a")
    redis.lmove(f"{one.prefix}default", f"{one.prefix}{NEXT}", "RIGHT", "LEFT")

    assert commands(lambda: one.take(10, lists)) <= 8
    assert len(one.holds()) == 1
