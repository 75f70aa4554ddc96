"""Tasks that say how far they are."""

import asyncio
import time
from pathlib import Path

from core.tasks import current, task

_background: set[asyncio.Task[None]] = set()


def wait_for(file: str) -> None:
    """Wait until a test has made a file."""
    while not Path(file).exists():
        time.sleep(0.01)


def make(file: str) -> None:
    Path(file).touch()


def remove(file: str) -> None:
    Path(file).unlink()


@task
async def steps(count: int, seconds: float = 0.0) -> float:
    """Say each step, and return how long all of them took."""
    began = time.monotonic()
    for step in range(1, count + 1):
        await asyncio.sleep(seconds)
        await current().progress(step, count, f"step {step}")
    return time.monotonic() - began


@task
def steps_sync(count: int, seconds: float = 0.0) -> str:
    for step in range(1, count + 1):
        time.sleep(seconds)
        current().progress_sync(step, count)
    return current().id


@task
async def stops_half_way(go_on: str) -> str:
    await current().progress(1, 2, "half")
    await asyncio.to_thread(wait_for, go_on)
    return "done"


@task
async def fails_half_way() -> None:
    await current().progress(1, 2, "half")
    raise ValueError("no second half")


@task(ignore_result=True)
async def steps_that_nobody_sees(file: str) -> None:
    await current().progress(1, 2)
    make(file)


@task
async def counts_down() -> str:
    try:
        await current().progress(-1)
    except ValueError as error:
        return str(error)
    return "accepted"


@task
async def goes_on_saying(file: str) -> str:
    """Leave an asyncio task behind that says more when the call has ended."""
    await current().progress(1, 2)

    async def later() -> None:
        await asyncio.to_thread(wait_for, file)
        await current().progress(2, 2)
        remove(file)

    _background.add(asyncio.create_task(later()))
    return "done"
