"""huey with `RedisHuey`: two processes, and threads.

Its documentation: processes for work that needs the CPU, threads for work that waits. `blocking` (the default) waits in
BRPOP. `notify_result` lets whoever waits for a result block instead of poll; it costs each call a round trip, so it is
on where latency is measured, and off elsewhere. The limit of connections is raised for 100 threads. It acknowledges
nothing: what a worker has taken is gone with it.
"""

import os
import time
from typing import Any

from bench.peers import body
from huey import RedisHuey
from redis import ConnectionPool

huey = RedisHuey(
    "bench",
    connection_pool=ConnectionPool.from_url(os.environ["BENCH_URL"], max_connections=300),
    notify_result=os.environ["BENCH_VARIANT"] == "notify",
)


@huey.task()
def noop(number: int) -> int:
    body.mark(number)
    return number


@huey.task()
def nap(number: int) -> int:
    time.sleep(0.1)
    body.mark(number)
    return number


@huey.task()
def burn(number: int) -> int:
    return body.burn(number)


TASKS = {"noop": noop, "nap": nap, "burn": burn}


def queue(name: str, number: int) -> Any:
    return TASKS[name](number)


def queue_later(name: str, number: int, seconds: float) -> None:
    TASKS[name].schedule((number,), delay=seconds)


def result(call: Any) -> Any:
    return call.get(blocking=True, timeout=30)
