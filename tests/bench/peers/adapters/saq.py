"""saq with Redis: two processes, 20 coroutines each, 200 each for calls that wait.

More at once is slower with no-op calls: LREM walks the list of active jobs. On uvloop. Whoever waits for a result uses
`job.refresh(until_complete=)`, which listens; `queue.apply()` polls each 0.5 s. Each coroutine needs a connection while
it waits for a job, and redis-py allows 100 unless it is told otherwise. `refresh` reads the job before it listens, and
waits in vain for one that ends in between: so it waits for a second, and looks again.
"""

import asyncio
import os
import time
from contextlib import suppress
from typing import Any

import uvloop
from bench.peers import body
from redis.asyncio import Redis
from saq.queue.redis import RedisQueue

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
jobs = RedisQueue(Redis.from_url(os.environ["BENCH_URL"], max_connections=1000))


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
    for _ in range(30):
        with suppress(TimeoutError):
            await job.refresh(until_complete=1)
            break
    return job.result
