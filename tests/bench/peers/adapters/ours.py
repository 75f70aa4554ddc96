"""`core.tasks` as its users get it: `core runworker` with its default pool, processes and concurrency.

docs/howto/choosing-a-pool.md: asyncio, a process for each core, 100 calls at once; docs/scale.md raises `--concurrency`
for calls that wait. One row prints no log line for each call, as no peer does here; the other does, as it comes.
"""

import asyncio
from typing import Any

from bench.peers import body

from core.tasks import task


@task
async def noop(number: int) -> int:
    body.mark(number)
    return number


@task
async def nap(number: int) -> int:
    await asyncio.sleep(0.1)
    body.mark(number)
    return number


@task
async def burn(number: int) -> int:
    return body.burn(number)


TASKS = {"noop": noop, "nap": nap, "burn": burn}


async def queue(name: str, number: int) -> Any:
    return await TASKS[name].delay(number)


async def queue_many(name: str, numbers: range) -> None:
    await TASKS[name].delay_many([(number,) for number in numbers])


async def queue_later(name: str, number: int, seconds: float) -> None:
    await TASKS[name].options(countdown=seconds).delay(number)


async def result(call: Any) -> Any:
    return await call.get(timeout=30)
