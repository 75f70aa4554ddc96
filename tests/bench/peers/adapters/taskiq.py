"""taskiq with taskiq-redis: `ListQueueBroker` and `RedisStreamBroker`, both with `RedisAsyncResultBackend`.

Two worker processes of 100 coroutines are its defaults; it runs on uvloop where that is installed. For calls that wait,
`--max-async-tasks` is raised. Only the stream acknowledges. It is trimmed only where `maxlen` says so, and left as it
comes. Who waits for a result polls, each 0.2 s unless `check_interval` says otherwise: here 5 ms. Delayed calls need a
process of their own, `taskiq scheduler`, with `ListRedisScheduleSource`, which the documentation recommends; it looks
for new ones once a minute, here each second.
"""

import asyncio
import datetime
import os
import time
from typing import Any

from bench.peers import body
from taskiq import TaskiqScheduler
from taskiq_redis import ListQueueBroker, ListRedisScheduleSource, RedisAsyncResultBackend, RedisStreamBroker

url = os.environ["BENCH_URL"]
kinds = {"list": ListQueueBroker, "stream": RedisStreamBroker}
broker = kinds[os.environ["BENCH_VARIANT"]](url).with_result_backend(RedisAsyncResultBackend(url, prefix_str="result"))
source = ListRedisScheduleSource(url)
scheduler = TaskiqScheduler(broker, [source])


@broker.task("noop")
async def noop(number: int) -> int:
    body.mark(number)
    return number


@broker.task("nap")
async def nap(number: int) -> int:
    await asyncio.sleep(0.1)
    body.mark(number)
    return number


@broker.task("burn")
async def burn(number: int) -> int:
    return body.burn(number)


TASKS = {"noop": noop, "nap": nap, "burn": burn}


async def open() -> None:
    await broker.startup()


async def queue(name: str, number: int) -> Any:
    return await TASKS[name].kiq(number)


async def queue_later(name: str, number: int, seconds: float) -> None:
    due = datetime.datetime.fromtimestamp(time.time() + seconds, datetime.UTC)
    await TASKS[name].schedule_by_time(source, due, number)


async def result(call: Any) -> Any:
    return (await call.wait_result(check_interval=0.005, timeout=30)).return_value
