"""rq: `rq worker-pool -n 2`, with its worker that forks for each job, and with `SimpleWorker`, which does not.

`enqueue_many` is its call for bulk. Whoever waits blocks in `latest_result(timeout=)`. The pool's workers
have the scheduler that delayed calls need.
"""

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from bench.peers import body
from redis import Redis
from rq import Queue

jobs = Queue(connection=Redis.from_url(os.environ["BENCH_URL"]))


def noop(number: int) -> int:
    body.mark(number)
    return number


def nap(number: int) -> int:
    time.sleep(0.1)
    body.mark(number)
    return number


def burn(number: int) -> int:
    return body.burn(number)


TASKS = {"noop": noop, "nap": nap, "burn": burn}


def queue(name: str, number: int) -> Any:
    return jobs.enqueue(TASKS[name], number)


def queue_many(name: str, numbers: Sequence[int]) -> None:
    jobs.enqueue_many([Queue.prepare_data(TASKS[name], (number,)) for number in numbers])


def queue_later(name: str, number: int, seconds: float) -> None:
    jobs.enqueue_in(timedelta(seconds=seconds), TASKS[name], number)


def result(job: Any) -> Any:
    return job.latest_result(timeout=30).return_value
