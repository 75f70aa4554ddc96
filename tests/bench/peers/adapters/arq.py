"""arq: two workers of 100 coroutines, 300 each for calls that wait.

It has no option for processes, so two workers are started. Workers poll, each 0.5 s by default: `poll_delay` is 10 ms
here; whoever waits for a result polls too, here each 5 ms. On uvloop. The log lines of jobs are off.
"""

import asyncio
import os
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from bench.peers import body

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
server = RedisSettings.from_dsn(os.environ["BENCH_URL"])
server.conn_timeout = 10
quiet = {"version": 1, "disable_existing_loggers": False}
pool: ArqRedis


async def noop(_: Any, number: int) -> int:
    body.mark(number)
    return number


async def nap(_: Any, number: int) -> int:
    await asyncio.sleep(0.1)
    body.mark(number)
    return number


async def burn(_: Any, number: int) -> int:
    return body.burn(number)


class Worker:
    functions = (noop, nap, burn)
    redis_settings = server
    max_jobs = 300 if os.environ["BENCH_VARIANT"] == "io" else 100
    poll_delay = 0.01


async def open() -> None:
    global pool
    pool = await create_pool(server)


async def queue(name: str, number: int) -> Any:
    return await pool.enqueue_job(name, number)


async def queue_later(name: str, number: int, seconds: float) -> None:
    await pool.enqueue_job(name, number, _defer_by=seconds)


async def result(job: Any) -> Any:
    return await job.result(timeout=30, poll_delay=0.005)
