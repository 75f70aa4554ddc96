"""The control: the same tasks on plain Celery, configured as carefully as Celery can be for Redis.

The times are scaled down like those of the project beside it: one lease here is the visibility timeout there.
"""

import json
import os
import time
from typing import Any

from celery import Celery, Task
from celery.schedules import crontab
from fall import fall
from record import record

LEASE = float(os.environ["TASK_LEASE"])
RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}


class PatientTask(Task):
    abstract = True
    default_retry_delay = LEASE / 4  # before a call whose process died is tried again: 180 s otherwise


app = Celery("stock", task_cls=PatientTask)
app.conf.update(
    broker_url=os.environ["REDIS_URL"],
    result_backend=os.environ.get("TASK_RESULT_BACKEND_URL", os.environ["REDIS_URL"]),
    task_default_queue="default",
    task_acks_late=True,
    task_acks_on_failure_or_timeout=True,
    task_reject_on_worker_lost=False,
    task_retry_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={
        "visibility_timeout": LEASE,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 25,
    },
    broker_channel_error_retry=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_pool_acquire_timeout=5,
    task_publish_retry_policy=RETRY,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    worker_soft_shutdown_timeout=float(os.environ["TASK_SHUTDOWN_TIMEOUT"]),
    task_track_started=True,
    result_backend_always_retry=True,
    result_backend_max_retries=5,
    result_backend_transport_options={"retry_policy": RETRY},
    redis_socket_timeout=5,
    redis_socket_connect_timeout=3,
    redis_socket_keepalive=True,
    redis_backend_health_check_interval=25,
    redbeat_redis_url=os.environ["REDIS_URL"],
    redbeat_redis_options={"retry_period": 30, "socket_timeout": 5, "socket_connect_timeout": 3},
    redbeat_key_prefix="stock:beat:",
    timezone=os.environ.get("TASK_TIMEZONE", "UTC"),
)
app.conf.update(json.loads(os.environ.get("CELERY", "{}")))  # as core.tasks reads it


@app.task(name="faults.mark")
def mark(key: str) -> str:
    record("begun", key)
    record("ended", key)
    return key


@app.task(name="faults.nap")
def nap(key: str, seconds: float) -> str:
    record("begun", key)
    time.sleep(seconds)
    record("ended", key)
    return key


@app.task(name="faults.block")
def block(key: str, seconds: float) -> str:
    return nap(key, seconds)


@app.task(name="faults.brief", time_limit=1)
def brief(key: str) -> None:
    nap(key, 60)


@app.task(name="faults.poison", max_retries=3)
def poison(key: str, how: str) -> None:
    record("begun", key)
    fall(how)


@app.task(name="faults.echo")
def echo(key: str, value: object) -> object:
    record("begun", key)
    record("ended", key)
    return value


if "FAULTS_OLD_CODE" not in os.environ:

    @app.task(name="faults.fresh")
    def fresh(key: str) -> str:
        record("begun", key)
        record("ended", key)
        return key


def planned(name: str, when: float | str) -> dict[str, Any]:
    """An entry of beat's schedule, whose message expires when the next one is due."""

    @app.task(name=f"faults.{name}", bind=True)
    def run(self: Task) -> None:
        mark(f"{name}/{self.request.id}")

    if isinstance(when, str):
        minute, hour, day_of_month, month_of_year, day_of_week = when.split()
        return {"task": run.name, "schedule": crontab(minute, hour, day_of_week, day_of_month, month_of_year)}
    return {"task": run.name, "schedule": when, "options": {"expires": max(when, 10)}}


app.conf.beat_schedule = {
    f"faults.{name}": planned(name, when) for name, when in json.loads(os.environ.get("FAULTS_SCHEDULE", "{}")).items()
}
