"""The asyncio pool: what Celery asks of a pool, with calls that wait on the loop and calls that block a thread."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from celery import Celery
from celery.utils.threads import LocalStack
from support import wait_until

from core.config import Settings, configure
from core.errors import SyncInLoop
from core.tasks import bridge
from core.tasks.pool import TaskPool

mine: ContextVar[str] = ContextVar("mine", default="nobody's")
OPTIONS = {"timeout": None, "soft_timeout": None}


app = Celery("pool", set_as_current=False)


@app.task(name="blocking")
def blocking() -> None: ...


@app.task(name="waiting", is_coroutine=True)
def waiting() -> None: ...


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    configure(settings_class=Settings)
    made = TaskPool(2, app=app, **OPTIONS)
    made.start()
    yield made
    if made.active:
        made.stop()
    bridge.close()


class Calls:
    """Calls given to a pool, and what was seen of them."""

    def __init__(self, pool: TaskPool) -> None:
        self.pool = pool
        self.begun: list[int] = []
        self.ended: dict[int, Any] = {}
        self.release = asyncio.Event()

    def add(self, number: int, target: Callable[..., Any], task: str = "waiting", **options: Any) -> None:
        """As a worker does: the target is Celery's tracer there."""
        self.pool.apply_async(
            lambda *_: target(), (task, str(number)), callback=partial(self.ended.__setitem__, number),
            accept_callback=lambda *_: self.begun.append(number), **options,
        )  # fmt: skip

    def waits(self) -> str:
        """A tracer whose body waits on the loop until it is released."""

        async def body() -> str:
            await self.release.wait()
            return "released"

        def begin(done: Callable[[Any, BaseException | None], None]) -> None:
            task = asyncio.get_running_loop().create_task(body())
            task.add_done_callback(lambda _: done(*bridge.outcome(task)))

        return str(bridge.wait(begin))

    def let_go(self) -> None:
        bridge.loop().call_soon_threadsafe(self.release.set)


@pytest.fixture
def calls(pool: TaskPool) -> Calls:
    return Calls(pool)


def test_calls_that_wait_share_the_loop_and_no_more_of_them_run_than_the_limit(calls: Calls) -> None:
    for number in range(3):
        calls.add(number, calls.waits)
    wait_until(lambda: calls.begun == [0, 1], 5, "two of them wait side by side")
    assert calls.pool.info["running"] == 2
    assert calls.pool.info["waiting"] == 1

    calls.let_go()

    wait_until(lambda: calls.ended == dict.fromkeys(range(3), "released"), 5, "all have ended")


def test_calls_that_end_as_they_are_launched_do_so_however_many_they_are(calls: Calls) -> None:
    """As those do whose arguments cannot be read. Each of them makes room for the next one."""
    for number in range(3000):
        calls.add(number, lambda number=number: number)  # type: ignore[misc]

    wait_until(lambda: len(calls.ended) == 3000, 20, "all have ended")
    assert calls.begun == list(range(3000))
    assert calls.pool.info["running"] == calls.pool.info["waiting"] == 0


def test_many_calls_do_not_hold_up_the_loop_while_they_are_launched(calls: Calls) -> None:
    """Else none ends before the last one has begun, however little it has to do."""
    calls.pool.grow(200)
    seen: dict[int, int] = {}

    def begins(number: int) -> None:
        time.sleep(0.002)  # what a slow machine takes to launch one
        calls.waits()
        seen[number] = len(calls.begun)

    for number in range(100):
        calls.add(number, partial(begins, number))
    calls.let_go()

    wait_until(lambda: len(calls.ended) == 100, 20, "all have ended")
    assert seen[0] < 50


def test_a_call_sees_no_context_of_the_one_that_made_room_for_it(calls: Calls) -> None:
    def waits() -> str:
        mine.set("another call's")
        return calls.waits()

    for number in range(2):
        calls.add(number, waits)
    for number in range(2, 12):
        calls.add(number, mine.get)
    wait_until(lambda: len(calls.begun) == 2, 5, "there is no more room")

    calls.let_go()

    wait_until(lambda: len(calls.ended) == 12, 5, "all have ended")
    assert {calls.ended[number] for number in range(2, 12)} == {"nobody's"}


def test_a_pool_that_grows_begins_what_waited_and_one_that_shrinks_stops_nothing(calls: Calls) -> None:
    for number in range(4):
        calls.add(number, calls.waits)
    wait_until(lambda: len(calls.begun) == 2, 5, "two run")

    calls.pool.grow(2)
    wait_until(lambda: len(calls.begun) == 4, 5, "four run")
    calls.pool.shrink(3)

    assert calls.pool.num_processes == 1
    assert calls.ended == {}
    calls.let_go()
    wait_until(lambda: len(calls.ended) == 4, 5, "all have ended")


def test_a_plain_function_blocks_a_thread_and_not_the_loop(calls: Calls) -> None:
    blocked = threading.Event()
    calls.add(0, lambda: blocked.wait(20), task="blocking")
    calls.add(1, calls.waits)
    wait_until(lambda: len(calls.begun) == 2, 5, "both run")

    calls.let_go()
    wait_until(lambda: calls.ended == {1: "released"}, 5, "the loop went on")

    blocked.set()
    wait_until(lambda: calls.ended.get(0) is True, 5, "the plain function has ended")


def test_blocking_work_of_a_tracer_is_done_aside(calls: Calls) -> None:
    """As the sending of a retry: in a thread, which sees what the tracer does, while the loop goes on."""
    blocked, stack = threading.Event(), LocalStack()
    stack.__ident_func__ = bridge.ident

    def sends() -> tuple[bool, Any]:
        stack.push("the request")

        def work() -> tuple[bool, Any]:
            blocked.wait(20)
            return threading.current_thread().name.startswith("core-tasks-loop"), stack.top

        return bridge.aside(work)

    calls.add(1, sends)
    calls.add(2, calls.waits)
    calls.let_go()
    wait_until(lambda: calls.ended.get(2) == "released", 5, "the loop went on")

    blocked.set()

    wait_until(lambda: calls.ended.get(1) == (False, "the request"), 5, "it was done in a thread")


def test_what_a_tracer_raises_reaches_nobody_else(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    def ends() -> None:
        raise RuntimeError("a broken tracer")

    calls.add(0, ends)
    calls.add(1, calls.waits)
    calls.let_go()

    wait_until(lambda: calls.ended == {1: "released"}, 5, "the other one works")
    wait_until(lambda: not calls.pool.info["running"], 5, "nothing is left of the first")
    assert "a broken tracer" in caplog.text


def test_an_error_of_what_is_waited_for_is_raised_in_the_tracer(calls: Calls) -> None:
    def fails() -> str:
        try:
            bridge.wait(lambda done: asyncio.get_running_loop().call_soon(done, None, KeyError("mine")))
        except KeyError as error:
            return f"caught {error}"
        return "nothing"

    calls.add(0, fails)

    wait_until(lambda: calls.ended == {0: "caught 'mine'"}, 5, "it was caught")


def test_a_terminated_call_has_no_outcome(calls: Calls) -> None:
    """Celery has given it one, or wants none. Its tracer runs its `finally` parts."""
    cleaned = []

    def waits() -> None:
        try:
            calls.waits()
        finally:
            cleaned.append("up")

    calls.add(0, waits)
    wait_until(lambda: calls.begun == [0], 5, "it runs")
    for call in list(calls.pool.calls):
        call.terminate()
    calls.let_go()

    wait_until(lambda: cleaned == ["up"], 5, "it was left")
    wait_until(lambda: not calls.pool.info["running"], 5, "it has ended")
    assert calls.ended == {}


def test_a_stop_waits_for_what_runs_and_begins_nothing_more(calls: Calls) -> None:
    for number in range(3):
        calls.add(number, calls.waits)
    wait_until(lambda: calls.begun == [0, 1], 5, "two run")

    stopping = threading.Thread(target=calls.pool.stop)
    stopping.start()
    wait_until(lambda: calls.pool.info["waiting"] == 0, 5, "the third is given up")
    assert stopping.is_alive()
    calls.let_go()
    stopping.join(5)

    assert not stopping.is_alive()
    assert calls.ended == dict.fromkeys(range(2), "released")
    assert calls.begun == [0, 1]


async def test_a_task_that_is_applied_on_a_loop_is_refused_instead_of_stopping_it() -> None:
    with pytest.raises(SyncInLoop, match=r"apply\(\) would block the running event loop"):
        bridge.wait(lambda done: None)
