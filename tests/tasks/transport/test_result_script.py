"""`store.lua`, by way of the scripts that begin with it: a call has one outcome, whoever comes with another."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from redis.client import PubSub
from redis.exceptions import ConnectionError
from support import wait_until

from core.tasks.transport import backend

FINAL, PASSING = ("SUCCESS", "FAILURE", "REVOKED"), ("STARTED", "RETRY")
Texts = dict[str, str]
Write = Callable[[str, int], bool | None]


@pytest.fixture
def text(app: Celery) -> Texts:
    """Results of the call `a` as Celery's backend writes them, one for each state."""

    def made(state: str) -> str:
        value: Any = {"said": state} if state in ("SUCCESS", "STARTED", "PENDING", "PROGRESS") else ValueError(state)
        meta = app.backend._get_result_meta(app.backend.encode_result(value, state), state, None, None)
        return str(app.backend.encode({**meta, "task_id": "a"}))

    return {state: made(state) for state in (*FINAL, *PASSING, "PENDING", "PROGRESS")}


@pytest.fixture
def key(app: Celery, redis: "Redis[bytes]") -> str:
    """Where the result of the call `a` is."""
    return str(app.backend.get_key_for_task("a").decode())


@pytest.fixture
def heard(redis: "Redis[bytes]", key: str) -> Iterator[PubSub]:
    """Whoever waits for that result."""
    with redis.pubsub() as pubsub:
        pubsub.subscribe(key)
        assert pubsub.get_message(timeout=5)
        yield pubsub


def next_message(heard: PubSub, redis: "Redis[bytes]", key: str) -> bytes:
    """What was announced since, up to a mark of our own."""
    redis.publish(key, b"|")
    said = b""
    while not said.endswith(b"|"):
        message = heard.get_message(timeout=5)
        assert message
        said += message["data"]
    return said[:-1]


@pytest.fixture(params=["finish", "result", "result, of no record"])
def held(request: pytest.FixtureRequest, make_worker: Any, send: Any, key: str) -> Write:
    """Stores a result for a worker that holds the call; whether it was stored, where that is said."""
    worker = make_worker("0000000a")
    send("a")
    (call,) = worker.take().calls

    def write(text: str, ttl: int) -> bool | None:
        if request.param == "finish":
            worker.client.hset(worker.key, call.record, b"default\n" + call.message)  # once more
            worker.finish(worker.end(call, "done", (key, ttl, text)))
            return None
        return worker.store((key, ttl, text), "" if "no" in request.param else call.record)

    return write


@pytest.fixture(params=["finish", "result"])
def lost(request: pytest.FixtureRequest, one: Any, other: Any, send: Any, key: str) -> Write:
    """Stores a result for a worker whose call was given to another meanwhile."""
    send("b")
    (call,) = one.take().calls
    one.dies()
    other.lease()

    def write(text: str, ttl: int) -> bool | None:
        if request.param == "finish":
            assert one.finish(one.end(call, "failed", (key, ttl, text))) == ["gone"]
            return None
        return one.store((key, ttl, text), call.record)

    return write


@pytest.fixture
def after(redis: "Redis[bytes]", key: str, heard: PubSub, text: Texts) -> Callable[[str, str, Write], str]:
    """What is stored, and announced with it, when one state was there and another one comes."""

    def outcome(old: str, new: str, write: Write) -> str:
        before = text[old].replace('"task_id"', '"before": 1, "task_id"')
        redis.set(key, before, ex=3600)
        answer = write(text[new], 60)
        now, said, ttl = redis.get(key), next_message(heard, redis, key), redis.ttl(key)
        if now == before.encode() and said == b"" and 0 < ttl <= 3600:
            return "stays" if answer is not True else "stays, and is said to be stored"
        return "is replaced" if now == said == text[new].encode() and answer is not False else f"{now!r}, said {said!r}"

    return outcome


# What is stored


def test_the_first_state_is_stored_and_announced(
    held: Write, heard: PubSub, redis: "Redis[bytes]", key: str, text: Texts
) -> None:
    for state in text:
        redis.delete(key)

        assert held(text[state], 60) in (True, None)

        assert redis.get(key) == next_message(heard, redis, key) == text[state].encode()
        assert 50 < redis.ttl(key) <= 60


def test_celery_reads_what_is_stored(held: Write, app: Celery, text: Texts) -> None:
    held(text["SUCCESS"], 60)

    assert app.backend.get_task_meta("a")["result"] == {"said": "SUCCESS"}


def test_zero_seconds_are_for_ever(held: Write, redis: "Redis[bytes]", key: str, text: Texts) -> None:
    held(text["STARTED"], 60)
    held(text["SUCCESS"], 0)
    held(text["FAILURE"], 0)

    assert redis.get(key) == text["SUCCESS"].encode()
    assert redis.ttl(key) == -1


@pytest.mark.parametrize("old", [*PASSING, "PENDING"])
def test_what_is_not_final_is_replaced_by_anybody(held: Write, lost: Write, after: Any, old: str) -> None:
    for new in (*FINAL, *PASSING):
        for write in (held, lost):
            assert after(old, new, write) == "is replaced", new


@pytest.mark.parametrize("new", FINAL)
def test_a_failure_is_replaced_by_who_holds_the_call(held: Write, after: Any, new: str) -> None:
    assert after("FAILURE", new, held) == "is replaced"


def test_progress_replaces_what_is_not_final_and_is_replaced_by_what_comes(held: Write, after: Any) -> None:
    for other in (*FINAL, "RETRY", "PENDING", "PROGRESS"):
        assert after("PROGRESS", other, held) == "is replaced", other
    for other in (*PASSING, "PENDING"):
        assert after(other, "PROGRESS", held) == "is replaced", other


# What stays


@pytest.mark.parametrize("old", FINAL)
def test_progress_that_comes_late_replaces_no_final_state(held: Write, lost: Write, after: Any, old: str) -> None:
    assert {after(old, "PROGRESS", write) for write in (held, lost)} == {"stays"}


def test_a_call_that_says_how_far_it_is_has_started(held: Write, after: Any) -> None:
    """That it has is stored a moment later than it was, which progress may be faster than."""
    assert after("PROGRESS", "STARTED", held) == "stays"


@pytest.mark.parametrize("old", ["SUCCESS", "REVOKED"])
def test_success_and_cancellation_stay_even_for_the_holder(held: Write, after: Any, old: str) -> None:
    for new in (*FINAL, *PASSING):
        assert after(old, new, held) == "stays", new


@pytest.mark.parametrize("old", FINAL)
def test_a_final_state_stays_for_who_lost_the_call(lost: Write, after: Any, old: str) -> None:
    for new in (*FINAL, *PASSING):
        assert after(old, new, lost) == "stays", new


def test_a_failure_does_not_become_unfinished_again(held: Write, after: Any) -> None:
    assert {new: after("FAILURE", new, held) for new in PASSING} == dict.fromkeys(PASSING, "stays")


@pytest.mark.parametrize("old", FINAL)
def test_news_that_leave_alone_replace_no_final_state(one: Any, after: Any, key: str, old: str) -> None:
    """Whoever says that a call has begun may say it long after another worker has ended it."""
    for new in PASSING:
        assert after(old, new, lambda said, ttl: one.finish(["", "done", key, ttl, said, ""])) == "stays", new


def test_results_may_be_in_a_database_without_the_calls(
    app: Celery, server: str, after: Any, key: str, prefix: str
) -> None:
    """There nobody can say who holds what, and whoever has a result counts as the holder."""
    user = server.replace("//", "//prefixed:any@") if prefix else server
    apart = backend.Backend(app=app, url=user)

    def write(said: str, ttl: int) -> None:
        apart.put(key, ttl, said, "host-1-00000001/1.1:1")

    with closing(apart.client):
        assert after("FAILURE", "SUCCESS", write) == "is replaced"
        assert after("SUCCESS", "FAILURE", write) == "stays"


def test_a_value_that_was_never_celerys_is_replaced(held: Write, redis: "Redis[bytes]", key: str, text: Texts) -> None:
    redis.set(key, b'\xff{"status": "SUCCESS"}')

    held(text["SUCCESS"], 60)

    assert redis.get(key) == text["SUCCESS"].encode()


# News that a call has begun


class News:
    """What was written, by whom it was asked for."""

    def __init__(self) -> None:
        self.starts, self.written, self.last = backend._Starts(), list[str](), 0.0

    def begins(self, tag: str, *, fails: type[Exception] | None = None) -> None:
        """A call has begun; where its news *fails*, Redis is away."""

        def write() -> None:
            if fails:
                raise fails
            self.last = time.monotonic()
            self.written.append(tag)

        self.starts.add(tag, write)

    def waits_for(self, tag: str) -> None:
        wait_until(lambda: tag in self.written, 5, f"{tag} is stored as started")


def test_a_call_that_goes_on_is_stored_as_started_a_moment_later() -> None:
    news, begun = News(), time.monotonic()

    news.begins("a")
    news.waits_for("a")

    assert news.last - begun >= backend.STARTED_AFTER


def test_a_call_that_is_short_is_not() -> None:
    news = News()
    news.begins("short")
    news.begins("long")
    news.starts.drop("short")
    news.begins("longer")
    news.waits_for("longer")

    assert news.written == ["long", "longer"]


def test_an_ended_call_that_nobody_knows_is_no_error() -> None:
    News().starts.drop("a")


@pytest.mark.parametrize("error", [ConnectionError, OSError])
def test_news_that_cannot_be_written_are_forgotten(error: type[Exception]) -> None:
    news = News()

    news.begins("a", fails=error)
    news.begins("b")
    news.waits_for("b")
    news.begins("c")  # after a pause, in which its thread has gone to sleep
    news.waits_for("c")

    assert news.written == ["b", "c"]


def test_a_result_waits_for_the_news_that_are_just_being_written() -> None:
    """Else `started` could arrive after it."""
    news, writing, go_on, ended = News(), threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        writing.set()
        go_on.wait(5)
        news.written.append("a")

    news.starts.add("a", write)
    assert writing.wait(5)
    ending = threading.Thread(target=lambda: (news.starts.drop("a"), ended.set()))
    ending.start()

    assert not ended.wait(0.05)
    go_on.set()
    assert ended.wait(5)
    assert news.written == ["a"]
    ending.join(5)


FORK = """
import os, threading
from core.tasks.transport import backend

mine = backend._starts()
assert backend._starts() is mine
if os.fork():
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
written = threading.Event()
backend._starts().add("a", written.set)
os._exit(0 if backend._starts() is not mine and written.wait(5) else 1)
"""


def test_a_forked_child_has_news_of_its_own() -> None:
    """It inherits the record, but not the thread."""
    assert subprocess.run([sys.executable, "-c", FORK], timeout=30).returncode == 0
