"""`@worker_lifespan`: what may be declared, and how a process enters and leaves it."""

import asyncio
import contextlib
import functools
import importlib
import logging
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import wait_until

from core.tasks import TaskDefinitionError, bridge, resources, task, worker_lifespan

HERE = re.escape(Path(__file__).name)


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A process that has declared nothing, and what was told of lifespans that were lost."""
    lost: list[str] = []
    monkeypatch.setattr(resources, "_process", resources._Process())
    resources._process.lost = lost.append
    yield lost
    resources.leave(5)
    bridge.close()


def noting(marks: list[str], name: str, *, start: Any = None, end: Any = None) -> None:
    """Declare a lifespan that notes its halves, or raises in one of them."""

    async def lifespan() -> AsyncIterator[None]:
        if start:
            raise start
        marks.append(f"{name} begins")
        yield
        marks.append(f"{name} ends")
        if end:
            raise end

    lifespan.__qualname__ = name
    worker_lifespan(lifespan)


def refused(declare: Callable[[], object]) -> str:
    with pytest.raises(TaskDefinitionError) as caught:
        declare()
    assert isinstance(caught.value, TypeError)
    assert re.search(rf"{HERE}:\d+: ", str(caught.value))
    return str(caught.value).partition(": ")[2]


def test_lifespans_are_entered_in_order_and_left_in_reverse() -> None:
    marks: list[str] = []
    for name in ("database", "http", "cache"):
        noting(marks, name)

    resources.enter()
    assert marks == ["database begins", "http begins", "cache begins"]
    resources.enter()  # a process enters once
    resources.leave(5)
    resources.leave(5)

    assert marks[3:] == ["cache ends", "http ends", "database ends"]


def test_both_halves_run_in_one_task_on_the_loop_that_runs_bodies() -> None:
    where: list[object] = []

    @worker_lifespan
    async def scoped() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group, asyncio.timeout(60):  # these belong to the task that entered them
            running = group.create_task(asyncio.sleep(60))
            where.extend([asyncio.current_task(), asyncio.get_running_loop()])
            yield
            where.append(asyncio.current_task())
            running.cancel()

    resources.enter()
    resources.leave(5)

    assert where[0] is where[2]
    assert where[1] is bridge.loop()


def test_a_decorated_function_stays_what_it_is() -> None:
    async def plain() -> AsyncIterator[None]:
        yield

    assert worker_lifespan(plain) is plain


async def coroutine() -> None: ...


def generator() -> Iterator[None]:
    yield


@task
async def a_task() -> None: ...


@pytest.mark.parametrize("wrong", [coroutine, generator, a_task, lambda: None, int, 3, "emails", None])
def test_only_an_async_generator_function_is_taken(wrong: Any) -> None:
    with pytest.raises(TaskDefinitionError) as caught:
        worker_lifespan(wrong)

    assert re.search(r"\.py:\d+: @worker_lifespan goes on an `async def` that has one `yield`\.$", str(caught.value))


def test_a_decorator_that_is_too_much_is_named() -> None:
    @contextlib.asynccontextmanager
    async def wrapped() -> AsyncIterator[None]:
        yield

    assert refused(lambda: worker_lifespan(wrapped)).endswith("Take the decorator below it away.")  # type: ignore[type-var]


def test_a_wrapper_that_is_an_async_generator_function_is_taken() -> None:
    def timed(function: Callable[[], AsyncIterator[None]]) -> Callable[[], AsyncIterator[None]]:
        @functools.wraps(function)
        async def wrapper() -> AsyncIterator[None]:
            async with contextlib.asynccontextmanager(function)():
                yield

        return wrapper

    @worker_lifespan
    @timed
    async def wrapped() -> AsyncIterator[None]:
        yield

    resources.enter()


def test_parameters_are_refused_by_name() -> None:
    async def needs(app: object, *, debug: bool = False) -> AsyncIterator[None]:
        yield

    assert "nobody fills the parameters of a lifespan: app, debug." in refused(lambda: worker_lifespan(needs))  # type: ignore[type-var]


def test_two_lifespans_of_one_name_in_one_module_are_refused() -> None:
    async def first() -> AsyncIterator[None]:
        yield

    async def second() -> AsyncIterator[None]:
        yield

    second.__qualname__ = first.__qualname__
    worker_lifespan(first)

    said = refused(lambda: worker_lifespan(second))
    assert re.search(rf"{HERE}:\d+\) has this name, so only one of them could run", said)


def test_a_reload_replaces_a_lifespan_and_another_module_may_use_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from core.tasks import worker_lifespan\nmarks = []\n\n"
        "@worker_lifespan\nasync def clients():\n    marks.append('first')\n    yield\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lifespans_a", "lifespans_b"):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    one, two = importlib.import_module("lifespans_a"), importlib.import_module("lifespans_b")
    (tmp_path / "lifespans_a.py").write_text("\n" + text.replace("first", "edited"))
    importlib.reload(one)

    resources.enter()

    assert (one.marks, two.marks) == (["edited"], ["first"])


def test_what_fails_at_its_start_is_named_with_its_file_and_the_others_are_left() -> None:
    marks: list[str] = []
    noting(marks, "outer")
    noting(marks, "broken", start=KeyError("no DATABASE_URL"))
    noting(marks, "never")

    with pytest.raises(resources.LifespanFailed) as caught:
        resources.enter()
    resources.leave(5)

    line, _, trace = str(caught.value).partition("\n")
    assert re.fullmatch(rf"the lifespan broken \(.*{HERE}:\d+\) failed at its start: KeyError: 'no DATABASE_URL'", line)
    assert trace.startswith("Traceback")
    assert marks == ["outer begins", "outer ends"]


@pytest.mark.parametrize("raised", [SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_no_error_of_a_lifespan_ends_the_loop(raised: BaseException) -> None:
    noting([], "exits", start=raised)

    with pytest.raises(resources.LifespanFailed, match=f"failed at its start: {type(raised).__name__}"):
        resources.enter()

    assert bridge.run(asyncio.sleep(0, "still there")) == "still there"


def test_a_lifespan_without_a_yield_on_its_way_is_told_so() -> None:
    @worker_lifespan
    async def early() -> AsyncIterator[None]:
        for _ in ():
            yield

    with pytest.raises(
        resources.LifespanFailed, match=r"early \(.*\) failed at its start: it ended before its `yield`$"
    ):
        resources.enter()


def test_a_lifespan_that_yields_twice_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    @worker_lifespan
    async def twice() -> AsyncIterator[None]:
        yield
        yield

    resources.enter()
    resources.leave(5)

    assert [r.getMessage().partition(") ")[2] for r in caplog.records] == ["failed at its end: it has yielded twice"]


def test_what_fails_at_its_end_is_logged_and_the_others_are_left_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    marks: list[str] = []
    noting(marks, "outer")
    noting(marks, "broken", end=OSError("connection lost"))

    resources.enter()
    resources.leave(5)

    assert marks[2:] == ["broken ends", "outer ends"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert ") failed at its end: OSError: connection lost\nTraceback" in record.getMessage()


def test_the_end_is_bounded_and_the_log_names_who_did_not_end(caplog: pytest.LogCaptureFixture) -> None:
    cleaned: list[str] = []

    @worker_lifespan
    async def outer() -> AsyncIterator[None]:
        yield
        cleaned.append("outer")

    @worker_lifespan
    async def hanging() -> AsyncIterator[None]:
        try:
            yield
            await asyncio.sleep(60)
        finally:
            cleaned.append("hanging")

    resources.enter()
    resources.leave(0.1)
    bridge.close()

    (record,) = caplog.records
    assert re.search(r"hanging \(.*\) did not end within 0\.1 s$", record.getMessage())
    assert sorted(cleaned) == ["hanging", "outer"]


def test_who_leaves_while_another_thread_does_waits_with_it() -> None:
    marks: list[str] = []
    release = asyncio.Event()

    @worker_lifespan
    async def slow() -> AsyncIterator[None]:
        yield
        marks.append("ending")
        await release.wait()
        marks.append("ended")

    resources.enter()
    first = threading.Thread(target=resources.leave, args=(10,))
    first.start()
    wait_until(lambda: marks, 5, "it ends")
    resources.leave(0.05)
    assert marks == ["ending"]
    bridge.loop().call_soon_threadsafe(release.set)
    first.join(5)

    assert marks == ["ending", "ended"]


def test_a_lifespan_that_ends_while_the_worker_runs_is_told_of(process: list[str]) -> None:
    @worker_lifespan
    async def fragile() -> AsyncIterator[None]:
        async def background() -> None:
            raise ConnectionError("the broker went away")

        async with asyncio.TaskGroup() as group:
            group.create_task(background())
            yield

    resources.enter()
    wait_until(lambda: process, 5, "it was told of")

    assert re.search(r"fragile \(.*\) ended while the worker runs: ExceptionGroup: unhandled errors", process[0])
    assert "ConnectionError: the broker went away" in process[0]


def test_a_long_error_fits_into_what_a_pool_process_may_pass_on() -> None:
    noting([], "verbose", start=ValueError("ü" * 10_000))

    with pytest.raises(resources.LifespanFailed) as caught:
        resources.enter()

    assert len(str(caught.value).encode()) < 4000


def test_a_slow_start_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "SLOW_START", 0.02)

    @worker_lifespan
    async def loading() -> AsyncIterator[None]:
        await asyncio.sleep(0.1)
        yield

    resources.enter()

    (record,) = caplog.records
    assert re.search(r"loading \(.*\) has not reached its `yield` for 0\.02 s$", record.getMessage())
