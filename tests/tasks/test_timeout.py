"""The time one attempt may take, on a loop and in a plain function."""

import asyncio
import contextlib
import contextvars
import signal
import threading
import time
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from core.errors import TaskTimeout
from core.tasks import timeout
from core.tasks.timeout import GRACE, Limit, Timed, interrupting

SOON = Limit(0.05, "the timeout of its decorator")
LATE = Limit(20, "task_default_timeout")


async def within(limit: Limit | None, body: Coroutine[Any, Any, Any], name: str) -> Any:
    """What a body comes to that has so much time."""
    said: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    Timed(body, limit, name, lambda value, error: said.set_exception(error) if error else said.set_result(value))
    return await said


async def test_a_body_within_its_limit_returns_what_it_returns() -> None:
    async def body() -> int:
        await asyncio.sleep(0)
        return 7

    assert await within(LATE, body(), "f") == 7
    assert await within(None, body(), "f") == 7


async def test_a_body_within_its_limit_raises_what_it_raises() -> None:
    async def body() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await within(LATE, body(), "f")


async def test_a_body_past_its_limit_is_cancelled_and_its_cleanup_runs() -> None:
    cleaned = []

    async def body() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("up")

    with pytest.raises(TaskTimeout) as caught:
        await within(SOON, body(), "send_email")

    assert cleaned == ["up"]
    assert str(caught.value) == "send_email was stopped after 0.05 s (the timeout of its decorator)."


async def test_bodies_with_the_same_limit_have_it_each_from_its_own_beginning() -> None:
    """One timer is set for all of them, also for the next ones when none has been left."""
    loop = asyncio.get_running_loop()

    async def one(wait: float) -> float:
        await asyncio.sleep(wait)
        began = loop.time()
        with pytest.raises(TaskTimeout):
            await within(SOON, asyncio.sleep(60), "f")
        return loop.time() - began

    async def in_time(wait: float) -> float:
        await asyncio.sleep(wait)
        await within(SOON, asyncio.sleep(0.001), "f")
        return SOON.seconds

    for _ in range(2):
        took = await asyncio.gather(one(0), in_time(0), one(0.02), in_time(0.03), one(0.03), one(0.12))
        assert all(SOON.seconds - 0.001 <= seconds < 5 for seconds in took), took


async def test_a_body_that_swallows_the_cancellation_has_failed_all_the_same() -> None:
    async def body() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "returned"

    with pytest.raises(TaskTimeout):
        await within(SOON, body(), "f")


async def test_what_a_body_raises_while_it_is_stopped_is_kept_as_the_cause() -> None:
    async def body() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise KeyError("in the cleanup")

    with pytest.raises(TaskTimeout) as caught:
        await within(SOON, body(), "f")

    assert isinstance(caught.value.__cause__, KeyError)


async def test_a_users_own_timeout_error_stays_what_it_is() -> None:
    async def body() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine") as caught:
        await within(LATE, body(), "f")

    assert type(caught.value) is TimeoutError


async def test_a_body_that_does_not_stop_is_given_up_after_its_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeout, "GRACE", 0.05)
    released, ended = asyncio.Event(), asyncio.Event()

    async def body() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        ended.set()

    with pytest.raises(TaskTimeout, match="did not stop when it was cancelled and may still be running"):
        await within(SOON, body(), "f")

    released.set()
    await ended.wait()


async def test_a_call_that_has_ended_is_freed_though_its_limit_is_far_away() -> None:
    """The timer is set with the first of many calls, and is none of theirs."""

    class Request: ...

    async def attempt() -> "weakref.ref[Request]":
        kept.set(request := Request())
        assert await within(LATE, asyncio.sleep(0, "done"), "f") == "done"
        return weakref.ref(request)

    kept: contextvars.ContextVar[Request] = contextvars.ContextVar("kept")
    request = await asyncio.create_task(attempt())
    await asyncio.sleep(0)

    assert request() is None


def test_a_pool_that_can_kill_waits_for_the_grace_first() -> None:
    assert Limit(300, "task_default_timeout").hard == 300 + GRACE


@pytest.mark.timeout(120, method="thread")  # else pytest-timeout has the timer
def test_a_plain_function_in_a_main_thread_is_interrupted() -> None:
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()

    with pytest.raises(TaskTimeout, match=r"nap was stopped after 0.05 s"), interrupting(SOON, "nap"):
        time.sleep(30)

    assert time.monotonic() - began < 20
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.timeout(120, method="thread")  # else pytest-timeout has the timer
def test_a_plain_function_that_is_in_time_leaves_no_timer_behind() -> None:
    with interrupting(LATE, "nap"):
        pass

    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.timeout(120, method="thread")  # else pytest-timeout has the timer
def test_a_plain_function_without_a_limit_sets_no_timer() -> None:
    with interrupting(None, "nap"):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_plain_function_in_another_thread_has_failed_when_it_ends_too_late() -> None:
    """Nothing can interrupt it there."""
    ended: list[BaseException | str] = []

    def run(limit: Limit) -> None:
        try:
            with interrupting(limit, "nap"):
                time.sleep(0.1)
            ended.append("in time")
        except TaskTimeout as error:
            ended.append(error)

    for limit in (SOON, LATE):
        thread = threading.Thread(target=run, args=(limit,))
        thread.start()
        thread.join(20)

    assert isinstance(ended[0], TaskTimeout)
    assert ended[1] == "in time"
