"""Tasks that the tests and the demo use to look at one behaviour each."""

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

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
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        pass
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
    """Process, thread and loop that the body runs on."""
    return {"pid": os.getpid(), "thread": threading.get_ident(), "loop": id(asyncio.get_running_loop())}


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
