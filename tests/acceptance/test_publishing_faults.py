"""A broker that refuses, freezes or cannot be reached: the caller learns it in time, and nothing is half-queued."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis
from support import Project, redis_server, valkey_binary, wait_until

#: Reports on standard output what became of each call, and how often the loop turned meanwhile.
SCRIPT = """
import asyncio, json, os, signal, sys, time
from core.tasks import PublishError
from src.apps.probe.tasks import echo

async def outcome(number):
    began = time.monotonic()
    try:
        return {"id": (await echo.delay(number)).id, "sent": True, "seconds": time.monotonic() - began}
    except Exception as error:
        return {"kind": type(error).__name__, "said": str(error), "sent": False, "seconds": time.monotonic() - began,
                "id": getattr(error, "task_id", None), "maybe": getattr(error, "maybe_sent", None)}

async def calls(count):
    ticks, longest, last = 0, 0.0, time.monotonic()

    async def tick():
        nonlocal ticks, longest, last
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            ticks, longest, last = ticks + 1, max(longest, now - last), now

    ticker = asyncio.create_task(tick())
    seen = await asyncio.gather(*(outcome(number) for number in range(count)))
    ticker.cancel()
    return {"calls": seen, "ticks": ticks, "longest": longest}
"""


def outcomes(project: Project, code: str, url: str, **environment: str) -> Any:
    """Run SCRIPT and *code* after it against this broker, and read what it printed."""
    done = project.python(SCRIPT + code, REDIS_URL=url, **{"TASK_PUBLISH_TIMEOUT": "1", **environment})
    assert done.returncode == 0, done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "never retrieved" not in done.stderr
    return json.loads(done.stdout)


def queued(url: str) -> set[str]:
    """The ids of the calls in every list of this server."""
    with Redis.from_url(url) as client:
        lists = [key for key in client.scan_iter() if client.type(key) == b"list"]
        return {json.loads(message)["headers"]["id"] for key in lists for message in client.lrange(key, 0, -1)}


@contextmanager
def frozen(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A server that accepts connections, and answers nothing until the end of the block."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def with_password(url: str, password: str = "s3cret") -> str:
    return url.replace("//", f"//:{password}@")


def where(url: str) -> str:
    return url.removeprefix("redis://").partition("/")[0]


ONE = "print(json.dumps(asyncio.run(calls(1))))"


def test_a_broker_that_refuses_is_named_without_its_password(fresh: Project) -> None:
    with redis_server() as (url, process):
        process.kill()
        process.wait()
        (call,) = outcomes(fresh, ONE, with_password(url))["calls"]

    assert (call["kind"], call["maybe"]) == ("PublishError", False)
    assert "was not queued" in call["said"]
    assert where(url) in call["said"]
    assert "REDIS_URL" in call["said"]


def test_a_broker_that_freezes_is_given_up_at_the_deadline_while_the_loop_goes_on(fresh: Project) -> None:
    with redis_server() as (url, process), frozen(process):
        seen = outcomes(fresh, ONE, with_password(url))

    (call,) = seen["calls"]
    assert call["kind"] == "PublishError"
    assert where(url) in call["said"]
    assert 0.9 <= call["seconds"] < 2
    assert seen["ticks"] > 20
    assert seen["longest"] < 1


def test_a_broker_that_cannot_be_reached_is_given_up_at_the_deadline(fresh: Project) -> None:
    """A listener whose queue of connections is full: a connection attempt gets no answer at all."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        url = f"redis://127.0.0.1:{full.getsockname()[1]}/0"
        seen = outcomes(fresh, ONE, with_password(url))
        for filler in fillers:
            filler.close()

    (call,) = seen["calls"]
    assert (call["kind"], call["maybe"]) == ("PublishError", False)
    assert where(url) in call["said"]
    assert call["seconds"] < 2
    assert seen["longest"] < 1


def test_a_host_that_does_not_exist_is_an_error_that_names_it(fresh: Project) -> None:
    (call,) = outcomes(fresh, ONE, "redis://:s3cret@no-such-host.invalid:6379/0")["calls"]

    assert (call["kind"], call["maybe"]) == ("PublishError", False)
    assert "no-such-host.invalid:6379" in call["said"]


def test_a_broker_that_freezes_between_two_calls_may_have_taken_the_second(fresh: Project) -> None:
    """The connection is open, so the message goes out, and only the answer is missing."""
    with redis_server() as (url, process):
        seen = outcomes(
            fresh,
            f"""
async def main():
    first = await outcome(1)
    os.kill({process.pid}, signal.SIGSTOP)
    try:
        second = await outcome(2)
    finally:
        os.kill({process.pid}, signal.SIGCONT)
    return [first, second, await outcome(3)]

print(json.dumps(asyncio.run(main())))
""",
            url,
        )
        wait_until(lambda: seen[1]["id"] in queued(url), 10, "the call that may have been sent has arrived")

    first, second, third = seen
    assert (first["sent"], second["sent"], third["sent"]) == (True, False, True)
    assert second["maybe"] is True
    assert f"may have been queued as {second['id']}" in second["said"]
    assert second["seconds"] < 2


@pytest.mark.parametrize("connected", [False, True], ids=["never connected", "connected before"])
def test_of_500_calls_on_a_frozen_broker_none_arrives_that_was_reported_as_not_sent(
    fresh: Project, connected: bool
) -> None:
    """Each raises in time, the loop stays free, and what is found in the queue afterwards was said to be possible."""
    with redis_server() as (url, process):
        seen = outcomes(
            fresh,
            f"""
async def main():
    before = await calls({16 if connected else 0})
    os.kill({process.pid}, signal.SIGSTOP)
    try:
        during = await calls(500)
    finally:
        os.kill({process.pid}, signal.SIGCONT)
    await asyncio.sleep(0.5)  # what still wanted to be sent would be now
    after = await outcome("after")
    return [before, during, after]

print(json.dumps(asyncio.run(main())))
""",
            url,
            TASK_PUBLISH_TIMEOUT="2",  # the first ones import Celery, which takes its time on a busy machine
        )
        before, during, after = seen
        assert after["sent"]
        wait_until(lambda: after["id"] in queued(url), 10, "the call after the freeze has arrived")
        arrived = queued(url)

    assert all(call["sent"] for call in before["calls"])
    calls = during["calls"]
    assert len(calls) == 500
    assert {call["kind"] for call in calls} == {"PublishError"}
    assert max(call["seconds"] for call in calls) < 3
    assert during["longest"] < 1.5  # one that is held up would show the whole deadline
    possible = {call["id"] for call in calls if call["maybe"]}
    assert arrived - {call["id"] for call in before["calls"]} - {after["id"]} <= possible
    assert len(possible) == (200 if connected else 0), "one round trip was under way, and the others waited for it"


def test_a_call_whose_caller_gave_up_before_its_turn_is_never_sent(fresh: Project) -> None:
    with redis_server() as (url, process):
        seen = outcomes(
            fresh,
            f"""
async def main():
    first = await outcome("connects")
    os.kill({process.pid}, signal.SIGSTOP)
    try:
        hold = [asyncio.create_task(outcome(number)) for number in range(30)]
        await asyncio.sleep(0.2)
        given_up = [asyncio.create_task(echo.delay("given up", task_id=f"given-up-{{n}}")) for n in range(50)]
        await asyncio.sleep(0.2)
        for call in given_up:
            call.cancel()
        ended = await asyncio.gather(*given_up, return_exceptions=True)
    finally:
        os.kill({process.pid}, signal.SIGCONT)
    held = await asyncio.gather(*hold)
    after = await outcome("after")
    return {{"ended": [type(error).__name__ for error in ended], "held": held, "after": after}}

print(json.dumps(asyncio.run(main())))
""",
            url,
            TASK_PUBLISH_TIMEOUT="5",
        )
        wait_until(lambda: seen["after"]["id"] in queued(url), 10, "the call after the freeze has arrived")
        arrived = queued(url)

    assert seen["ended"] == ["CancelledError"] * 50
    assert all(call["sent"] for call in seen["held"]), "those that went on waiting were sent"
    assert not [id for id in arrived if id.startswith("given-up")]


def test_a_wrong_password_is_an_error_at_once_that_does_not_repeat_it(fresh: Project) -> None:
    with redis_server("--requirepass", "right") as (url, _):
        (call,) = outcomes(fresh, ONE, with_password(url))["calls"]

    assert "password" in call["said"]
    assert where(url) in call["said"]
    assert call["seconds"] < 1
    assert not call["maybe"]


def test_a_redis_that_is_full_refuses_the_call_with_its_own_words(fresh: Project) -> None:
    with redis_server("--maxmemory", "1", "--maxmemory-policy", "noeviction") as (url, _):
        (call,) = outcomes(fresh, ONE, url)["calls"]

    assert (call["kind"], call["maybe"]) == ("PublishError", False)
    assert "refuses: " in call["said"]
    assert "maxmemory" in call["said"]


def test_a_broker_that_comes_back_takes_the_next_call(fresh: Project) -> None:
    """The connection of before is dead, and nobody has to restart the web process."""
    with redis_server() as (url, process):
        port = where(url).rpartition(":")[2]
        seen = outcomes(
            fresh,
            f"""
import subprocess
from redis import Redis
from redis.exceptions import ConnectionError

async def main():
    first = await outcome(1)
    os.kill({process.pid}, signal.SIGKILL)
    second = await outcome(2)
    server = subprocess.Popen([{valkey_binary()!r}, "--port", "{port}", "--bind", "127.0.0.1", "--save", ""],
                              stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                Redis(port={port}).ping()
                break
            except ConnectionError:
                await asyncio.sleep(0.02)
        return [first, second, await outcome(3)]
    finally:
        server.kill()
        server.wait()

print(json.dumps(asyncio.run(main())))
""",
            url,
        )

    assert [call["sent"] for call in seen] == [True, False, True]
    assert seen[1]["kind"] == "PublishError"


def test_a_plain_script_gets_the_same_error(fresh: Project) -> None:
    with redis_server() as (url, process):
        process.kill()
        process.wait()
        done = fresh.python(
            """
from core.tasks import PublishError
from src.apps.probe.tasks import echo
try:
    echo.delay_sync(1)
except PublishError as error:
    print(error.maybe_sent, error)
""",
            REDIS_URL=with_password(url),
        )

    assert done.stdout.startswith("False src.apps.probe.tasks.echo was not queued:"), done.stderr
    assert "s3cret" not in done.stdout + done.stderr
