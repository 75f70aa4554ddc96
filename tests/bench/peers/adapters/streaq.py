"""streaq: two processes, 32 coroutines each, 300 each for calls that wait.

On uvloop, as its documentation shows (`anyio_kwargs`). `enqueue_many` is its call for bulk. `silent` switches off the
log lines of a task.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from bench.peers import body
from streaq import Worker

worker: Worker[Any] = Worker(
    redis_url=os.environ["BENCH_URL"],
    concurrency=300 if os.environ["BENCH_VARIANT"] == "io" else 32,
    anyio_kwargs={"use_uvloop": True},
)
_open = AsyncExitStack()


@worker.task(silent=True)
async def noop(number: int) -> int:
    body.mark(number)
    return number


@worker.task(silent=True)
async def nap(number: int) -> int:
    await asyncio.sleep(0.1)
    body.mark(number)
    return number


@worker.task(silent=True)
async def burn(number: int) -> int:
    return body.burn(number)


TASKS = {"noop": noop, "nap": nap, "burn": burn}


async def open() -> None:
    await _open.enter_async_context(worker)


async def queue(name: str, number: int) -> Any:
    return await TASKS[name].enqueue(number)


async def queue_many(name: str, numbers: Sequence[int]) -> None:
    await worker.enqueue_many([TASKS[name].enqueue(number) for number in numbers])


async def queue_later(name: str, number: int, seconds: float) -> None:
    await TASKS[name].enqueue(number).start(delay=timedelta(seconds=seconds))


async def result(call: Any) -> Any:
    return (await call.result(30)).result
