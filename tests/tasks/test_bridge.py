"""Where threads and the event loop meet: one loop a process, and blocking work that can be withdrawn."""

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import eventually, wait_until

from core.errors import SyncInLoop
from core.tasks import bridge


@pytest.fixture(autouse=True)
def _ends_its_loop() -> Iterator[None]:
    yield
    bridge.close()


async def where() -> tuple[int, int]:
    return id(asyncio.get_running_loop()), threading.get_ident()


def test_all_coroutines_of_a_process_run_on_one_loop_in_one_thread() -> None:
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(bridge.run(where()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(seen) == 8
    assert len({*seen, bridge.run(where())}) == 1
    assert seen[0][1] != threading.get_ident()


def test_what_a_coroutine_returns_or_raises_reaches_the_thread() -> None:
    async def fails() -> None:
        raise KeyError("mine")

    async def answers() -> int:
        return 7

    assert bridge.run(answers()) == 7
    with pytest.raises(KeyError, match="mine"):
        bridge.run(fails())


async def test_a_blocking_call_under_a_running_loop_is_refused_with_what_to_await() -> None:
    """The coroutine is closed, so that Python does not warn of one that was never awaited."""
    with pytest.raises(SyncInLoop, match=r"get_sync\(\) would block the running event loop\. Use `await get\(\)` here"):
        bridge.run(where(), "get_sync()", "get()")


def test_a_closed_loop_is_followed_by_a_new_one() -> None:
    bridge.run(where())
    ended = bridge.loop()
    bridge.close()

    assert ended.is_closed()
    assert bridge.loop() is not ended
    bridge.run(where())


def test_closing_the_loop_lets_what_runs_clean_up() -> None:
    ended: list[str] = []
    started = threading.Event()

    async def body() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append("cleaned up")

    bridge.submit(body())
    assert started.wait(20)
    bridge.close()

    assert ended == ["cleaned up"]


def test_closing_the_loop_ends_async_generators() -> None:
    ended: list[str] = []

    async def numbers() -> Any:
        try:
            yield 1
        finally:
            ended.append("closed")

    kept = numbers()

    async def begin() -> int:
        return int(await anext(kept))

    assert bridge.run(begin()) == 1
    bridge.close()

    assert ended == ["closed"]


def test_an_exit_on_the_loop_does_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    def exits() -> None:
        raise SystemExit(3)

    async def start() -> None:
        asyncio.get_running_loop().call_soon(exits)

    before = bridge.loop()
    with caplog.at_level(logging.ERROR, "core.tasks"):
        bridge.run(start())
        assert bridge.run(where())[0] == id(before)

    wait_until(lambda: "the loop goes on" in caplog.text, 20, "the exit is logged")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # Python 3.12 and later
def test_a_forked_child_has_a_loop_of_its_own() -> None:
    """`os.fork` copies the loop and not the thread that turns it."""
    bridge.run(where())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = b"own" if bridge.run(where())[0] and bridge.loop().is_running() else b"none"
        except BaseException as error:
            answer = repr(error).encode()
        os.write(writing, answer)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        assert told.read() == b"own"
    os.waitpid(child, 0)
    assert bridge.run(where())


# Blocking work


async def test_blocking_work_leaves_the_loop_free() -> None:
    release = threading.Event()

    def work(handoff: bridge.Handoff) -> int:
        assert handoff.begin()
        assert release.wait(20)
        return 7

    waiting = asyncio.create_task(bridge.in_thread(work, 20))
    for _ in range(10):
        await asyncio.sleep(0)
    release.set()

    assert await waiting == 7


async def test_what_blocking_work_raises_reaches_the_caller() -> None:
    def work(handoff: bridge.Handoff) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await bridge.in_thread(work, 20)


async def test_work_that_had_begun_at_its_deadline_may_have_happened() -> None:
    release = threading.Event()

    def work(handoff: bridge.Handoff) -> None:
        handoff.begin()
        release.wait(20)

    with pytest.raises(bridge.NotInTime) as caught:
        await bridge.in_thread(work, 0.05)
    release.set()

    assert caught.value.begun


async def test_work_whose_turn_never_came_never_happens() -> None:
    """More work than threads: what waits for a thread past its deadline is withdrawn."""
    release = threading.Event()
    happened: list[str] = []

    def blocks(handoff: bridge.Handoff) -> None:
        handoff.begin()
        release.wait(20)

    def late(handoff: bridge.Handoff) -> None:
        if handoff.begin():
            happened.append("late")

    busy = [asyncio.create_task(bridge.in_thread(blocks, 20)) for _ in range(bridge.THREADS)]
    await asyncio.sleep(0)
    with pytest.raises(bridge.NotInTime) as caught:
        await bridge.in_thread(late, 0.05)
    given_up = asyncio.create_task(bridge.in_thread(late, 20))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    release.set()
    await asyncio.gather(*busy)
    await bridge.in_thread(lambda handoff: None, 20)

    assert not caught.value.begun
    assert happened == []


async def test_work_that_fails_after_its_caller_left_is_not_reported_as_lost() -> None:
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
    release, ended = threading.Event(), threading.Event()

    def work(handoff: bridge.Handoff) -> None:
        handoff.begin()
        release.wait(20)
        ended.set()
        raise KeyError("nobody waits")

    with pytest.raises(bridge.NotInTime):
        await bridge.in_thread(work, 0.05)
    release.set()

    async def over() -> bool:
        return ended.is_set()

    await eventually(over, 20, "the work ended")
    await asyncio.sleep(0)
    assert problems == []


def test_a_handoff_is_begun_or_withdrawn_and_never_both() -> None:
    begun, withdrawn = bridge.Handoff(), bridge.Handoff()

    assert begun.begin()
    assert begun.begin()
    assert not begun.withdraw()
    assert withdrawn.withdraw()
    assert not withdrawn.begin()
