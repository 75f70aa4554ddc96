"""The texts of the scripts, whole and known to the server, and what its refusals mean."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError, DataError, RedisError, TimeoutError

from core.tasks.transport import scripts

once = pytest.mark.parametrize("prefix", [""], indirect=True)


def test_every_script_is_whole_and_every_file_belongs_to_one(admin: "Redis[bytes]") -> None:
    found = {file.stem for file in Path(scripts.__file__).parent.glob("*.lua")}
    used = {part for name, parts in scripts.PRELUDES.items() for part in (name, *parts)}

    assert used - {"dead"} == found
    assert all(admin.script_load(scripts.text(name)) for name in scripts.PRELUDES)


@once
def test_a_script_that_the_server_has_lost_is_loaded_again(one: Any, send: Any, admin: "Redis[bytes]") -> None:
    send("a")
    one.take()
    send("b")

    admin.script_flush()

    assert one.take().ids == ["b"]


# What a server says that does not do what a script asks


@contextmanager
def setting(admin: "Redis[bytes]", name: str, value: str, otherwise: str) -> Iterator[None]:
    """The server with another setting than its usual one."""
    admin.config_set(name, value)
    try:
        yield
    finally:
        admin.config_set(name, otherwise)


def full(admin: "Redis[bytes]") -> AbstractContextManager[None]:
    """Redis has no memory left."""
    return setting(admin, "maxmemory", "1", "0")


@contextmanager
def replica(admin: "Redis[bytes]") -> Iterator[None]:
    """A failover has made another server the master."""
    admin.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        admin.replicaof("NO", "ONE")


@contextmanager
def stale(admin: "Redis[bytes]") -> Iterator[None]:
    """A replica whose master is away, and which says nothing without it."""
    with setting(admin, "replica-serve-stale-data", "no", "yes"), replica(admin):
        yield


def alone(admin: "Redis[bytes]") -> AbstractContextManager[None]:
    """A master that must not write without a replica."""
    return setting(admin, "min-replicas-to-write", "1", "0")


@pytest.mark.parametrize("state", [replica, stale, alone])
@once
def test_what_a_server_refuses_for_a_while_is_asked_again(
    one: Any, send: Any, admin: "Redis[bytes]", state: Callable[..., Any]
) -> None:
    send("a")
    (call,) = one.take().calls
    end = one.end(call, "done", ("result-a", 60, '{"status": "SUCCESS"}'))

    with state(admin), pytest.raises(RedisError) as refusal:
        one.finish(end)

    assert scripts.passes(refusal.value)
    assert list(one.holds()) == [call.record]
    assert one.finish(end) == ["done"]


@once
def test_a_full_server_learns_what_is_finished_and_whose_lease_goes_on(
    one: Any, send: Any, admin: "Redis[bytes]"
) -> None:
    for name in ("a", "b"):
        send(name)
    first, second = one.take().calls

    with full(admin):
        assert one.finish(one.end(first, "done", ("result-a", 60, '{"status": "SUCCESS"}'))) == ["done"]
        assert one.store(("result-b", 60, '{"status": "SUCCESS"}'), second.record)
        one.lease()
        assert one.adopt() == 1

    assert not one.holds()


@pytest.mark.parametrize("error", [ConnectionError("away"), TimeoutError("away"), OSError("away")])
def test_a_server_that_is_away_comes_back(error: Exception) -> None:
    assert scripts.passes(error)


@pytest.mark.parametrize(
    "code",
    ["return redis.call('RPUSH', 'text', 'a')", "return nil + 1", "return redis.call('ZADD', 'z', 'x', 'y')", "(("],
)
def test_words_that_a_server_does_not_understand_are_not_said_again(admin: "Redis[bytes]", code: str) -> None:
    admin.set("text", "a")

    with pytest.raises(RedisError) as refusal:
        admin.eval(code, 0)

    assert not scripts.passes(refusal.value)


def test_words_that_the_client_cannot_say_are_not_said_again(admin: "Redis[bytes]") -> None:
    with pytest.raises(DataError) as refusal:
        admin.eval("return 1", 0, None)

    assert not scripts.passes(refusal.value)


@once
def test_a_full_server_loses_nothing_that_is_taken(one: Any, send: Any, waiting: Any, admin: "Redis[bytes]") -> None:
    for name in "abc":
        send(name)

    with full(admin):
        taken = one.take(2)

    assert (taken.ids, len(one.holds()), waiting()) == (["a", "b"], 2, ["c"])
