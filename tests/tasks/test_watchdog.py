"""The watchdog of an event loop: it names what blocks the loop, once each time, and nothing else."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import repeat

import pytest
from support import wait_until

from core.tasks import bridge, watchdog
from core.tasks.context import CurrentTask, enter

SLOW = 0.1


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    watchdog.watch(bridge.loop(), SLOW)
    wait_until(lambda: watchdog.lag()["longest"], 5, "the loop has shown that it turns")
    yield
    bridge.close()


async def blocks(seconds: float, secret: str = "") -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - what is under test


def blocked(caplog: pytest.LogCaptureFixture, of: str = "the event loop has not turned for") -> list[str]:
    """What the log says so far of this kind, but for what a busy machine does."""
    said = [record.getMessage() for record in caplog.records]
    return [each for each in said if of in each and "another thread or a busy machine" not in each]


def went_on(caplog: pytest.LogCaptureFixture, times: int) -> None:
    wait_until(lambda: len(blocked(caplog, "the loop went on after")) == times, 5, f"the loop went on {times} times")


def test_each_time_is_two_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1, 11):
        bridge.run(blocks(SLOW * 4))
        went_on(caplog, number)

    said = blocked(caplog)

    assert len(said) == 10
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert all(f'File "{__file__}", line ' in each and "in blocks\n    time.sleep(seconds)" in each for each in said)


def call(id: str) -> CurrentTask:
    return CurrentTask(id, "emails.send", 1, "default", {}, datetime.now(UTC), None, id)


async def body(id: str) -> None:
    enter(call(id))
    async with asyncio.TaskGroup() as group:
        group.create_task(blocks(SLOW * 4, "the argument"))


async def calls_back(id: str) -> None:
    enter(call(id))
    asyncio.get_running_loop().call_later(0.01, time.sleep, SLOW * 4)


def test_two_that_follow_each_other_at_once_are_both_named(caplog: pytest.LogCaptureFixture) -> None:
    async def both() -> None:
        await asyncio.gather(body("one"), body("two"))

    bridge.run(both())
    went_on(caplog, 1)

    assert ["emails.send[one] sits here" in said for said in blocked(caplog)] == [True, False]
    assert ["emails.send[two] sits here" in said for said in blocked(caplog)] == [False, True]


def test_what_blocks_for_less_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    bridge.close()
    watchdog.watch(bridge.loop(), 1.0)
    while watchdog.lag().get("longest", 0) < 0.3:
        bridge.run(blocks(0.6))

    assert blocked(caplog) == []
    assert watchdog.lag()["longest"] < 1
    assert watchdog.blocked() == (0.0, None)


@pytest.mark.parametrize("of", [body, calls_back])
def test_what_a_body_has_started_is_named_after_its_call(caplog: pytest.LogCaptureFixture, of: object) -> None:
    running = bridge.submit(of("id-7"))  # type: ignore[operator]
    wait_until(lambda: watchdog.blocked()[1] == "id-7", 5, "it is known which call blocks the loop")
    went_on(caplog, 1)

    assert running.done()
    assert ": emails.send[id-7] sits here:\n" in blocked(caplog)[0]
    assert "the argument" not in caplog.text


def test_what_is_no_call_is_named_by_its_function(caplog: pytest.LogCaptureFixture) -> None:
    bridge.run(blocks(SLOW * 4))
    went_on(caplog, 1)

    [said] = blocked(caplog)

    assert said.splitlines()[0].endswith(f" s: {__name__}.blocks sits here:")
    assert said.splitlines()[1].startswith(f'  File "{__file__}"')  # nothing of asyncio or of ours before it


def test_code_that_lets_no_thread_run_is_named_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    """A regular expression can do that as well."""

    async def keeps_the_interpreter() -> None:
        sum(repeat(1, 80_000_000))

    until = time.monotonic() + 20
    while not (said := blocked(caplog)):  # a busy machine may let the loop go on before the watchdog has its turn
        assert time.monotonic() < until, "it is named"
        bridge.run(keeps_the_interpreter())

    assert ".keeps_the_interpreter sits here:\n" in said[0]


STOPPED = """
from core.tasks import bridge, watchdog

watchdog.watch(bridge.loop(), 0.2)
while not watchdog.lag()["longest"]:
    pass
input("watched\\n")
print(watchdog.lag()["longest"])
"""


def test_time_for_which_the_process_was_stopped_does_not_count() -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", STOPPED]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watched\n"
        process.send_signal(signal.SIGSTOP)
        ended = time.monotonic() + 1.2
        wait_until(lambda: time.monotonic() > ended, 3, "a while has passed")  # the thing under test is time itself
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate("\n", timeout=20)

    assert float(said) < 0.8  # the log went there, too


def test_it_ends_with_its_loop() -> None:
    bridge.close()

    wait_until(
        lambda: not any(thread.name == "core-tasks-watchdog" for thread in threading.enumerate()), 5, "its thread ended"
    )


def test_a_forked_child_watches_nothing() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, repr((watchdog.lag(), watchdog.blocked(), threading.active_count())).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        assert told.read() == b"({}, (0.0, None), 1)"
    os.waitpid(child, 0)
    assert watchdog.lag()
