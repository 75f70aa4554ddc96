"""saq with Redis: two processes, 20 coroutines each, 200 each for calls that wait.

More at once is slower with no-op calls: LREM walks the list of active jobs. On uvloop. Whoever waits for a result uses
`job.refresh(until_complete=)`, which listens; `queue.apply()` polls each 0.5 s. Jobs last 10 s in a worker by default.
"""

import asyncio
import os
import time
from typing import Any

import uvloop
from bench.peers import body
from saq import Queue

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
jobs = Queue.from_url(os.environ["BENCH_URL"])


async def noop(_: Any, *, number: int) -> int:
    body.mark(number)
    return number


async def nap(_: Any, *, number: int) -> int:
    await asyncio.sleep(0.1)
    body.mark(number)
    return number


async def burn(_: Any, *, number: int) -> int:
    return body.burn(number)


settings = {
    "queue": jobs,
    "functions": [noop, nap, burn],
    "concurrency": 200 if os.environ["BENCH_VARIANT"] == "io" else 20,
}


async def open() -> None:
    await jobs.connect()


async def queue(name: str, number: int) -> Any:
    return await jobs.enqueue(name, number=number)


async def queue_later(name: str, number: int, seconds: float) -> None:
    await jobs.enqueue(name, number=number, scheduled=round(time.time() + seconds))


async def result(job: Any) -> Any:
    await job.refresh(until_complete=30)
    return job.result
