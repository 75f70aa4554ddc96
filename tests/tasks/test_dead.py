"""The dead list, on a real server, filled as a worker's scripts fill it."""

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from redis import Redis
from support import redis_server

from core.errors import CoreError
from core.redis_url import RedisURL
from core.tasks.dead import BATCH, PRELUDE, DeadCall, DeadList, Outcome, Results

DAY = 86400
EVERY_BYTE = bytes(range(256))
SetAside = Callable[..., None]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as (url, _):
        yield url


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    with Redis.from_url(url) as client:
        client.flushall()
        yield client


@pytest.fixture
def dead(redis: Redis) -> DeadList:
    return DeadList(redis)


@pytest.fixture
def set_aside(redis: Redis) -> SetAside:
    """Puts a call on the list as a script of the transport does; *first* is Lua that runs before."""

    def put(
        call_id: str = "a", kind: str = "core-dead", message: bytes = b"{}", prefix: str = "", first: str = "",
        **entry: str | None,
    ) -> None:  # fmt: skip
        entry = {"id": call_id, "task": "t.f", "queue": "default", "reason": "so", "list": "default", **entry}
        script = f"""{PRELUDE} {first}
            local entry = {{message = ARGV[3]}}
            for i = 4, #ARGV, 2 do entry[ARGV[i]] = ARGV[i + 1] end
            set_aside(ARGV[1], ARGV[2], entry)"""
        words = [word for pair in entry.items() if pair[1] is not None for word in pair]
        redis.eval(script, 0, prefix, kind, message, *words)

    return put


def ids(calls: Iterator[DeadCall]) -> list[str]:
    return [call.id for call in calls]


# What is on the list


def test_a_call_is_listed_with_what_is_known_of_it(dead: DeadList, set_aside: SetAside) -> None:
    set_aside("a", task="t.f", queue="low", reason="it lost its worker 3 times")

    (call,) = dead.entries()

    assert (call.id, call.task, call.queue, call.reason) == ("a", "t.f", "low", "it lost its worker 3 times")
    assert (call.kind, call.message) == ("set-aside", None)
    assert dead.count() == 1


@pytest.mark.parametrize("nothing", [None, ""])
def test_what_is_not_known_is_none(dead: DeadList, set_aside: SetAside, nothing: str | None) -> None:
    set_aside("unreadable-1", task=nothing, queue=nothing)

    (call,) = dead.entries()

    assert (call.task, call.queue) == (None, None)


def test_the_stored_form_is_the_one_that_other_releases_read(redis: Redis, set_aside: SetAside) -> None:
    set_aside("a", "core-failed", message=b"[1]", task=None, list="default\x06\x163")

    entry = json.loads(redis.hget("core-dead-calls", "a") or "")

    at = entry.pop("at")
    assert entry == {
        "id": "a", "task": None, "queue": "default", "reason": "so", "list": "default\x06\x163", "message": "[1]",
    }  # fmt: skip
    assert redis.zrange("core-failed", 0, -1, withscores=True) == [(b"a", pytest.approx(at, abs=0.001))]


def test_an_entry_has_the_time_of_the_server_in_utc(redis: Redis, dead: DeadList, set_aside: SetAside) -> None:
    before = redis.time()[0]
    set_aside("a")

    (call,) = dead.entries()

    at = datetime.fromisoformat(call.at)
    assert call.at.endswith("+00:00")
    assert before <= at.timestamp() <= redis.time()[0]


def test_the_youngest_is_first_whatever_its_kind(dead: DeadList, set_aside: SetAside) -> None:
    for number in range(6):
        set_aside(f"{number}", ["core-dead", "core-failed"][number % 2])

    assert ids(dead.entries()) == ["5", "4", "3", "2", "1", "0"]
    assert ids(dead.entries(limit=2)) == ["5", "4"]


def test_a_long_list_is_read_to_its_end(dead: DeadList, set_aside: SetAside) -> None:
    expected = [f"{number}" for number in range(2 * BATCH + 1)]
    for call_id in expected:
        set_aside(call_id)

    assert ids(dead.entries()) == dead.ids() == expected[::-1]
    assert dead.purge(dead.ids()) == len(expected)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({"task": "t.f"}, ["c", "a"]),
        ({"queue": "low"}, ["c", "b"]),
        ({"task": "t.f", "queue": "low"}, ["c"]),
        ({"kind": "failed"}, ["c"]),
        ({"kind": "set-aside"}, ["b", "a"]),
        ({"kind": "set-aside", "task": "t.f"}, ["a"]),
        ({"task": "t.nobody"}, []),
        ({"older_than": DAY}, []),
    ],
)
def test_filters_leave_what_they_name(
    dead: DeadList, set_aside: SetAside, which: dict[str, Any], expected: list[str]
) -> None:
    set_aside("a", task="t.f")
    set_aside("b", task="t.g", queue="low")
    set_aside("c", "core-failed", task="t.f", queue="low")

    assert ids(dead.entries(**which)) == dead.ids(**which) == expected


def test_what_leaves_the_list_while_it_is_read_is_passed_over(dead: DeadList, set_aside: SetAside) -> None:
    for number in range(BATCH + 2):
        set_aside(f"{number}")
    reader = dead.entries()
    next(reader)

    dead.purge(["0"])

    assert ids(reader)[-1] == "1"


def test_a_call_that_comes_again_is_there_once_for_its_last_reason(dead: DeadList, set_aside: SetAside) -> None:
    set_aside("a", "core-failed", reason="first")
    set_aside("a", "core-dead", reason="second")
    assert [(call.kind, call.reason) for call in dead.entries()] == [("set-aside", "second")]

    set_aside("a", "core-failed", reason="third")

    assert [(call.kind, call.reason) for call in dead.entries()] == [("failed", "third")]
    assert dead.count() == 1


def test_two_prefixes_are_two_lists(redis: Redis, set_aside: SetAside) -> None:
    set_aside("a", prefix="one:")
    one, two = DeadList(redis, "one:"), DeadList(redis, "two:")

    assert (ids(one.entries()), ids(two.entries()), one.count(), two.count()) == (["a"], [], 1, 0)
    assert two.retry("a") == Outcome.NOT_LISTED
    assert one.retry("a") == Outcome.PUT_BACK
    assert redis.keys() == [b"one:default"]


# What goes by itself


def test_of_failed_calls_the_youngest_are_kept(redis: Redis, dead: DeadList, set_aside: SetAside) -> None:
    for number in range(6):
        set_aside(f"{number}", "core-failed", first="failed_kept = 3")

    assert ids(dead.entries()) == ["5", "4", "3"]
    assert dead.count() == 3


def test_failed_calls_go_when_they_are_too_old(redis: Redis, dead: DeadList, set_aside: SetAside) -> None:
    set_aside("old", "core-failed")
    set_aside("younger", "core-failed")
    now = redis.time()[0]
    redis.zadd("core-failed", {"old": now - 7 * DAY - 5, "younger": now - 7 * DAY + 60})

    set_aside("new", "core-failed")

    assert ids(dead.entries()) == ["new", "younger"]
    assert dead.count() == 2


def test_what_a_worker_set_aside_never_goes_by_itself(redis: Redis, dead: DeadList, set_aside: SetAside) -> None:
    set_aside("old")
    redis.zadd("core-dead", {"old": 1.0})

    for number in range(4):
        set_aside(f"{number}", first="failed_kept = 1")
        set_aside(f"failed {number}", "core-failed", first="failed_kept = 1")

    assert ids(dead.entries()) == ["failed 3", "3", "2", "1", "0", "old"]


# Retry


def test_a_retried_call_is_behind_those_that_wait_and_the_same_byte_for_byte(
    redis: Redis, dead: DeadList, set_aside: SetAside
) -> None:
    key = "default\x06\x163"
    redis.lpush(key, "waiting")
    set_aside("a", message=EVERY_BYTE, list=key)

    assert dead.retry("a") == Outcome.PUT_BACK

    assert [redis.rpop(key), redis.rpop(key)] == [b"waiting", EVERY_BYTE]
    assert redis.keys() == []


@pytest.mark.parametrize("kind", ["core-dead", "core-failed"])
def test_a_retried_call_starts_afresh_unless_it_was_cancelled(
    redis: Redis, dead: DeadList, set_aside: SetAside, kind: str
) -> None:
    set_aside("a", kind)
    for key in ("core-losses-a", "core-losses-b", "core-unknown-a", "core-cancelled-a"):
        redis.set(key, 2)

    dead.retry("a")

    assert set(redis.keys()) == {b"default", b"core-losses-b", b"core-cancelled-a"}


def test_a_call_that_is_not_there_is_not_put_back(redis: Redis, dead: DeadList, set_aside: SetAside) -> None:
    set_aside("a")

    assert [dead.retry("b"), dead.retry("a"), dead.retry("a")] == [
        "is not on the dead list",
        "put back",
        Outcome.NOT_LISTED,
    ]
    assert redis.llen("default") == 1


def test_a_call_without_its_message_stays(redis: Redis, stored: Redis, results: Results, set_aside: SetAside) -> None:
    set_aside("a", message=b"")
    stored.set("result-a", "FAILURE")
    dead = DeadList(redis, results=results)

    assert dead.retry("a") == Outcome.NOT_KEPT

    assert ids(dead.entries()) == ["a"]
    assert redis.llen("default") == 0
    assert stored.get("result-a") == b"FAILURE"


def test_however_many_retry_at_once_a_call_is_put_back_once(redis: Redis, url: str, set_aside: SetAside) -> None:
    expected = [f"{number}" for number in range(60)]
    for call_id in expected:
        set_aside(call_id, message=call_id.encode())

    def retry_all(_: int) -> list[str]:
        with Redis.from_url(url) as client:
            return [call_id for call_id in expected if DeadList(client).retry(call_id) == Outcome.PUT_BACK]

    with ThreadPoolExecutor(8) as threads:
        done = [call_id for put_back in threads.map(retry_all, range(8)) for call_id in put_back]

    assert sorted(done) == sorted(expected)
    assert sorted(redis.lrange("default", 0, -1)) == sorted(call_id.encode() for call_id in expected)


# Retry and the stored result


@pytest.fixture
def results_url(url: str) -> str:
    """Results have a database of their own."""
    return url.removesuffix("/0") + "/1"


@pytest.fixture
def stored(redis: Redis, results_url: str) -> Iterator[Redis]:
    """The database of the results, empty."""
    with Redis.from_url(results_url) as client:
        yield client


@pytest.fixture
def results(results_url: str) -> Iterator[Results]:
    made = Results(RedisURL.parse(results_url), lambda task_id: f"result-{task_id}")
    yield made
    made.close()


def test_the_result_of_a_retried_call_is_forgotten(
    redis: Redis, stored: Redis, results: Results, set_aside: SetAside
) -> None:
    set_aside("a", "core-failed")
    stored.mset({"result-a": "FAILURE", "result-b": "FAILURE", "core-cancelled-a": "1"})

    assert DeadList(redis, results=results).retry("a") == Outcome.PUT_BACK

    assert set(stored.keys()) == {b"result-b", b"core-cancelled-a"}


def test_a_slower_retry_does_not_take_away_the_result_of_a_faster_one(
    redis: Redis, stored: Redis, results_url: str, set_aside: SetAside
) -> None:
    """The faster one is put in where the slower one is about to take the result away: the worst of moments."""
    set_aside("a", "core-failed")
    stored.set("result-a", "FAILURE")
    asked: list[str] = []

    def key(task_id: str) -> str:
        asked.append(task_id)
        if len(asked) == 2:
            assert DeadList(redis).retry("a") == Outcome.PUT_BACK
            stored.set("result-a", "SUCCESS")
        return f"result-{task_id}"

    slower = Results(RedisURL.parse(results_url), key)
    outcome = DeadList(redis, results=slower).retry("a")
    slower.close()

    assert outcome == Outcome.NOT_LISTED
    assert stored.get("result-a") == b"SUCCESS"
    assert redis.llen("default") == 1


# Purge


def test_purging_drops_what_is_named_and_counts_it(redis: Redis, dead: DeadList, set_aside: SetAside) -> None:
    set_aside("a")
    set_aside("b", "core-failed")
    set_aside("c")

    assert dead.purge(["a", "b", "nobody", "a"]) == 2
    assert ids(dead.entries()) == ["c"]
    assert dead.purge(["c"]) == 1
    assert redis.keys() == []


def test_purging_by_age_spares_a_call_that_has_come_back_meanwhile(
    redis: Redis, dead: DeadList, set_aside: SetAside
) -> None:
    for call_id in ("a", "b"):
        set_aside(call_id)
        redis.zadd("core-dead", {call_id: redis.time()[0] - 100})
    set_aside("c")
    old = dead.ids(older_than=50)
    set_aside("b", "core-failed")

    assert old == ["b", "a"]
    assert dead.purge(old, older_than=50) == 1
    assert ids(dead.entries()) == ["b", "c"]


# One call in full


def message(body: Any, headers: Any = None, **properties: Any) -> bytes:
    """A message as kombu writes it."""
    encoded = base64.b64encode(json.dumps(body).encode()).decode()
    properties = {"body_encoding": "base64", **properties}
    return json.dumps({"body": encoded, "headers": headers or {}, "properties": properties}).encode()


def test_a_call_is_shown_with_headers_and_arguments(dead: DeadList, set_aside: SetAside) -> None:
    set_aside("a", message=message([["x"], {"n": 1}, {"chord": None}], {"task": "t.f", "retries": 2}))

    call = dead.find("a")

    assert call.details() == {
        **call.summary(), "kind": "set-aside", "headers": {"task": "t.f", "retries": 2}, "args": ["x"],
        "kwargs": {"n": 1}, "message": call.message,
    }  # fmt: skip


@pytest.mark.parametrize(
    "garbage",
    [
        b"", b"\xff\xfe", b"null", b"[]", b"7", b'"text"', b"{", b"{}", EVERY_BYTE, b"[" * 100_000, b"9" * 10_000,
        message({"a": 1}), message([]), message([1, 2, 3]), message("ab"), message(None), message([[1]]),
        b'{"body": "!", "properties": {"body_encoding": "base64"}}',
        b'{"body": "/w==", "properties": {"body_encoding": "base64"}, "headers": []}',
        b'{"body": 5, "properties": 6, "headers": 7}',
        b'{"body": "[[NaN], {}]", "properties": {}, "headers": null}',
    ],
    ids=lambda raw: repr(raw[:40]),
)  # fmt: skip
def test_what_cannot_be_read_is_shown_as_far_as_it_can(dead: DeadList, set_aside: SetAside, garbage: bytes) -> None:
    set_aside("a", message=garbage)

    details = dead.find("a").details()

    assert details["message"] == (garbage.decode(errors="replace") or None)
    assert json.loads(json.dumps(details, allow_nan=False)) == details


def test_a_call_that_is_not_there_is_an_error_of_one_line(dead: DeadList) -> None:
    with pytest.raises(CoreError, match=r"^nobody is not on the dead list\. `core dead list` says what is\.$"):
        dead.find("nobody")


def test_an_id_that_is_no_utf_8_is_an_id(redis: Redis, dead: DeadList, results: Results) -> None:
    script = PRELUDE + "set_aside('', 'core-dead', {id = ARGV[1], list = 'default', message = 'm'})"
    redis.eval(script, 0, b"\xff\xfe")

    (call_id,) = dead.ids()

    assert dead.find(call_id).id == call_id
    assert DeadList(redis, results=results).retry(call_id) == Outcome.PUT_BACK
    assert dead.count() == 0
