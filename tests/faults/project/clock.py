"""A scheduler through a night on a clock of its own: prints when each entry was sent, as JSON.

    clock.py ours 2026-10-24T21:55

It begins at that time, looks once a minute for seven hours, and prints the times by entry; all times are UTC. The
entries are those of FAULTS_SCHEDULE, their zone is TASK_TIMEZONE, and Redis is as real as ever.
"""

import json
import os
import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import redis
from celery import Celery

now = datetime.fromisoformat(sys.argv[2]).replace(tzinfo=UTC)
Celery.now = lambda app: now.astimezone(app.timezone)


def ours() -> Any:
    from core.tasks import beat, worker

    return beat.Scheduler(worker.prepared_app())


def stock() -> Any:
    from redbeat.schedulers import RedBeatScheduler, acquire_distributed_beat_lock
    from stock import app

    made = RedBeatScheduler(app)
    acquire_distributed_beat_lock(SimpleNamespace(scheduler=made))
    return made


scheduler = ours() if sys.argv[1] == "ours" else stock()
client = redis.Redis.from_url(os.environ["REDIS_URL"])
found: dict[str, list[str]] = defaultdict(list)
for _ in range(7 * 60 + 1):
    scheduler.tick()
    while text := client.rpop("default"):
        name = json.loads(text)["headers"]["task"].removeprefix("faults.")
        found[name].append(now.isoformat())
    now += timedelta(minutes=1)
scheduler.close()
print(json.dumps(found))
