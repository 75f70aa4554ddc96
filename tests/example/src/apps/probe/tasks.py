"""Tasks that the tests and the demo use to look at one behaviour each."""

import asyncio
import contextlib
import gc
import os
import threading
import time
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from core.tasks import TaskError, TaskTimeout, current, task


class KeywordOnly(Exception):
    """An error that cannot be built again from its arguments."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class OwnError(Exception):
    """An error that can."""


def note(file: str, line: str) -> None:
    """Leave a mark that a test can read from outside."""
    with open(file, "a") as marks:
        marks.write(line + "\n")


@task
async def add(a: int, b: int = 1) -> int:
    return a + b


@task
async def echo(value: Any = None) -> Any:
    return value


@task
def add_sync(a: int, b: int = 1) -> int:
    return a + b


@task
async def nap(seconds: float, file: str | None = None) -> float:
    """Sleep; leave marks about how it began and ended."""
    if file:
        note(file, "begun")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if file:
            note(file, "cancelled")
        raise
    finally:
        if file:
            note(file, "cleaned up")
    return seconds


@task
def nap_sync(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@task(max_retries=2, retry_delay=0.1)
async def risky(file: str, fails: int = 99) -> int:
    """Fail with TaskError for the first attempts; return the number of the attempt that did not."""
    note(file, f"attempt {current().attempt}")
    if current().attempt <= fails:
        raise TaskError(f"attempt {current().attempt} failed")
    return current().attempt


@task(max_retries=3, retry_delay=30)
async def asks_for_its_delay(file: str) -> int:
    note(file, f"{time.time()}")
    if current().attempt == 1:
        raise TaskError("soon", retry_in=0.2)
    return current().attempt


@task(max_retries=3)
async def permanent(file: str | None = None) -> None:
    if file:
        note(file, f"attempt {current().attempt}")
    raise OwnError("permanent", 7)


@task(max_retries=2, retry_delay=0.1, retry_on=(OwnError,))
async def retried_on(file: str) -> None:
    note(file, f"attempt {current().attempt}")
    raise OwnError("again")


@task
async def keyword_only() -> None:
    raise KeywordOnly(code=7)


@task(timeout=0.3)
async def slow(file: str | None = None) -> None:
    try:
        await asyncio.sleep(30)
    finally:
        if file:
            await asyncio.sleep(0.05)
            note(file, "cleaned up")


@task(timeout=0.3)
async def stubborn() -> str:
    """Swallow the cancellation and return all the same."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(30)
    return "returned"


@task(timeout=0.3)
def slow_sync() -> None:
    time.sleep(1.5)


@task(timeout=0.3, max_retries=1, retry_delay=0.1, retry_on=(TaskTimeout,))
async def slow_once() -> int:
    if current().attempt == 1:
        await asyncio.sleep(30)
    return current().attempt


@task
async def own_timeout_error() -> None:
    raise TimeoutError("mine")


@task
async def exits(kind: str) -> None:
    """End with one of the exceptions that must not leave a body."""
    kinds: dict[str, type[BaseException]] = {
        "SystemExit": SystemExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "CancelledError": asyncio.CancelledError,
        "GeneratorExit": GeneratorExit,
    }
    raise kinds[kind]("from the body")


@task
def exits_sync() -> None:
    raise SystemExit("from the body")


@task
async def where() -> dict[str, Any]:
    """Process, thread and loop that the body runs on, and after how many new objects garbage is looked for there."""
    loop = id(asyncio.get_running_loop())
    return {"pid": os.getpid(), "thread": threading.get_ident(), "loop": loop, "young": gc.get_threshold()[0]}


@task
async def context() -> dict[str, Any]:
    here = current()
    inner = await asyncio.create_task(_inner())
    return {
        "id": here.id,
        "inner": inner,
        "name": here.name,
        "attempt": here.attempt,
        "queue": here.queue,
        "parent_id": here.parent_id,
        "root_id": here.root_id,
        "deadline": here.deadline.isoformat() if here.deadline else None,
    }


async def _inner() -> str:
    return current().id


@task
async def calls_context() -> list[Any]:
    """Call another task from a task, and return this call's id and what the other one saw."""
    child = await context.delay()
    return [current().id, await child.get(timeout=20)]


@task(max_retries=3, retry_delay=0.1)
async def waits_for_a_failing_call(file: str, child_file: str) -> None:
    note(file, f"attempt {current().attempt}")
    await (await risky.delay(child_file)).get(timeout=20)


@task(ignore_result=True)
async def ignored(file: str) -> object:
    note(file, "ran")
    return object()


@task
async def returns_a_path() -> Path:
    return Path("/tmp/x")


@task
async def returns_what_json_has_not():
    return {1, 2}


@task(queue="other")
async def elsewhere() -> str:
    return current().queue


_lock: asyncio.Lock | None = None


@task
async def module_lock() -> int:
    """Use one asyncio.Lock for the life of the process, as a module-level client would."""
    global _lock
    _lock = _lock or asyncio.Lock()
    async with _lock:
        await asyncio.sleep(0.01)
    return os.getpid()


class Colour(Enum):
    RED = "red"


class Order(BaseModel):
    number: int
    placed: datetime


@dataclass
class Point:
    x: float
    y: float


@dataclass
class Seen:
    """What a worker made of its arguments: the values, and the types they had."""

    kinds: dict[str, str] = field(default_factory=dict)
    model: Order | None = None
    data: Point | None = None
    moment: datetime | None = None
    day: date | None = None
    span: timedelta | None = None
    key: UUID | None = None
    price: Decimal | None = None
    colour: Colour | None = None
    tags: set[str] | None = None
    path: Path | None = None
    orders: list[Order] | None = None
    places: dict[str, list[Point]] | None = None


@task
async def typed(
    model: Order | None = None,
    data: Point | None = None,
    moment: datetime | None = None,
    day: date | None = None,
    span: timedelta | None = None,
    key: UUID | None = None,
    price: Decimal | None = None,
    colour: Colour | None = None,
    tags: set[str] | None = None,
    path: Path | None = None,
    orders: list[Order] | None = None,
    places: dict[str, list[Point]] | None = None,
) -> Seen:
    """Give back every argument as it arrived."""
    given = {name: value for name, value in locals().items() if value is not None}
    return Seen(kinds={name: type(value).__name__ for name, value in given.items()}, **given)


@task
async def many(*numbers: int, factor: int = 1, **named: int) -> int:
    return factor * (sum(numbers) + sum(named.values()))


@task
async def unannotated(value, other=None):
    return value


@task
def fails_sync(text: str) -> None:
    raise OwnError(text, 7)


@task
async def fails_without_importable_class() -> None:
    class Hidden(Exception):
        pass

    raise Hidden("nobody can import me")


@task
async def fails_with_an_argument_json_has_not() -> None:
    raise OwnError("holds an object", object())


@task(max_retries=0)
async def caused() -> None:
    try:
        raise OwnError("the real reason")
    except OwnError as error:
        raise TaskError("Retry later") from error


@task(max_retries=0)
async def never_retried(file: str) -> None:
    note(file, f"attempt {current().attempt}")
    raise TaskError("no more")


@task(max_retries=1, retry_delay=30)
async def retried_after(file: str, seconds: float) -> int:
    """Fail once and ask for a delay; the marks are the times of the attempts."""
    note(file, f"{time.time()}")
    if current().attempt == 1:
        raise TaskError("not yet", retry_in=seconds)
    return current().attempt


@task(max_retries=2, retry_delay=0.2, retry_backoff=True)
async def backs_off(file: str) -> None:
    note(file, f"{time.time()}")
    raise TaskError("again")


@task(max_retries=1, retry_delay=0.1)
def risky_sync(file: str) -> None:
    note(file, f"attempt {current().attempt}")
    raise TaskError(f"attempt {current().attempt} failed")


class Busy(TaskError):
    """A user's own word for "try again later"."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_in=0.1)


@task(max_retries=1, retry_delay=30)
async def busy(file: str) -> None:
    note(file, f"attempt {current().attempt}")
    raise Busy("too many requests")


@task(max_retries=1, retry_delay=0.1, retry_on=(TaskError,))
async def retries_for_a_failing_call(file: str) -> None:
    note(file, f"attempt {current().attempt}")
    await (await never_retried.delay(file + ".child")).get(timeout=20)


@task(timeout=0.3)
async def outwaits_its_cancellation(seconds: float) -> None:
    """Go on for all the cancellations in the world."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left)


@task(timeout=0.3)
async def blocks_its_loop(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251  on purpose


@task(timeout=0.3)
async def raises_while_it_is_cancelled() -> None:
    try:
        await asyncio.sleep(30)
    finally:
        raise OwnError("while it ended")


@task(timeout=None)
async def without_limit(seconds: float) -> Any:
    await asyncio.sleep(seconds)
    return current().deadline


@task
async def limited_by_default() -> None:
    await asyncio.sleep(30)


@task
def exits_sync_with(kind: str) -> None:
    kinds: dict[str, type[BaseException]] = {
        "SystemExit": SystemExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "CancelledError": asyncio.CancelledError,
        "GeneratorExit": GeneratorExit,
    }
    raise kinds[kind]("from the body")


@task
async def exits_in_an_asyncio_task() -> str:
    """A task of asyncio that the body started raises SystemExit beside it."""

    async def ends() -> None:
        raise SystemExit("from beside the body")

    beside = asyncio.create_task(ends())
    await asyncio.sleep(0.05)
    return "done" if beside.done() else "not done"


@task
def marked_nap_sync(seconds: float, file: str) -> None:
    note(file, "begun")
    try:
        time.sleep(seconds)
        note(file, "slept")
    finally:
        note(file, "cleaned up")


@task
async def swallows_its_cancellation(file: str) -> str:
    note(file, "begun")
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        note(file, "swallowed")
    return "returned"


@task
def context_sync() -> dict[str, Any]:
    here = current()
    return {"id": here.id, "name": here.name, "thread": threading.current_thread().name}


@task
async def calls_two_deep() -> dict[str, Any]:
    """Call a task that calls a task, and return what the last one saw."""
    me, (child, grandchild) = current().id, await (await calls_context.delay()).get(timeout=20)
    return {"me": me, "child": child, "grandchild": grandchild}


@task
def calls_from_sync() -> dict[str, Any]:
    return context.delay_sync().get_sync(timeout=20)


@task
async def headers() -> dict[str, Any]:
    return dict(current().headers)


_background: set[asyncio.Task[None]] = set()


@task
async def leaves_something_running(file: str) -> None:
    """Start an asyncio task that outlives the call and needs the loop to clean up."""

    async def goes_on() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            note(file, "cleaned up")

    _background.add(asyncio.create_task(goes_on()))
    await asyncio.sleep(0)
    note(file, "begun")


@task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@task
async def runs_out_of_memory() -> None:
    raise MemoryError("no room")


# Calls of which one is enough at a time.


@task(unique=True)
async def alone(file: str, seconds: float = 0.0, fails: bool = False) -> float:
    note(file, current().id)
    await asyncio.sleep(seconds)
    if fails:
        raise ValueError("no")
    return seconds


@task(unique=True, unique_key="name", ignore_result=True)
async def alone_by_name(name: str, file: str, seconds: float = 0.0) -> None:
    note(file, current().id)
    await asyncio.sleep(seconds)


@task(unique=True, unique_for=0.5, unique_key=lambda file, *_: Path(file).name)
async def alone_for_a_while(file: str, seconds: float) -> None:
    note(file, current().id)
    await asyncio.sleep(seconds)


@task(unique=True, max_retries=1, retry_delay=0.5)
async def alone_and_retried(file: str) -> int:
    note(file, current().id)
    if current().attempt == 1:
        raise TaskError("again")
    return current().attempt


@task
async def garbage() -> tuple[bool, int]:
    """Whether this process looks for garbage, and how many objects it does not look through for that."""
    return gc.isenabled(), gc.get_freeze_count()
