"""dramatiq with `RedisBroker` and its recommended `RedisBackend` for results.

Processes are the number of cores and threads 8, as its command starts by default; for calls that wait, `--threads` is
raised. An idle worker polls with a back-off that ends at `dramatiq_worker_timeout`, a second by default: here 10 ms.
It has no call that publishes in bulk (`group` enqueues one message after the other).
"""

import os
import time
from typing import Any

import dramatiq
from bench.peers import body
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

url = os.environ["BENCH_URL"]
broker = RedisBroker(url=url)
broker.add_middleware(Results(backend=RedisBackend(url=url, use_namespace_prefix_keys=True)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def noop(number: int) -> int:
    body.mark(number)
    return number


@dramatiq.actor(store_results=True)
def nap(number: int) -> int:
    time.sleep(0.1)
    body.mark(number)
    return number


@dramatiq.actor(store_results=True)
def burn(number: int) -> int:
    return body.burn(number)


TASKS = {"noop": noop, "nap": nap, "burn": burn}


def queue(name: str, number: int) -> Any:
    return TASKS[name].send(number)


def queue_later(name: str, number: int, seconds: float) -> None:
    TASKS[name].send_with_options(args=(number,), delay=int(seconds * 1000))


def result(message: Any) -> Any:
    return message.get_result(block=True, timeout=30_000)
