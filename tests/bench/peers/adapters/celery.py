"""Celery with Redis as broker and result backend.

Its guide "Optimizing" names the settings. For calls that must not be lost: `task_acks_late` and a prefetch multiplier
of 1 ("Reserve one task at a time"). *fast* is what it says of short tasks: acknowledge early, a large multiplier; and
no gossip, mingle and heartbeat, which nobody needs on one machine. Its pool for calls that wait without a core is
threads (gevent was slower in every workload, and is left out); 100 of them need more than redis-py's 100 connections.
It has no call that publishes in bulk: a `group` of 1,000 takes longer than 1,000 times `delay()`.
"""

import os
import time
from typing import Any

from bench.peers import body
from celery import Celery

url = os.environ["BENCH_URL"]
app = Celery("bench", broker=url, backend=url)
app.conf.redis_max_connections = 300
if os.environ["BENCH_VARIANT"] == "fast":
    app.conf.update(worker_prefetch_multiplier=64)
else:
    app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1)


@app.task(name="noop")
def noop(number: int) -> int:
    body.mark(number)
    return number


@app.task(name="nap")
def nap(number: int) -> int:
    time.sleep(0.1)
    body.mark(number)
    return number


@app.task(name="burn")
def burn(number: int) -> int:
    return body.burn(number)


TASKS = {"noop": noop, "nap": nap, "burn": burn}


def queue(name: str, number: int) -> Any:
    return TASKS[name].delay(number)


def queue_later(name: str, number: int, seconds: float) -> None:
    TASKS[name].apply_async((number,), countdown=seconds)


def result(call: Any) -> Any:
    return call.get(timeout=30)
