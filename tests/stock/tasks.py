"""Celery's own tasks, and ours beside them, for tests of what a pool has to be able to do.

It is copied into a project. What happens in the worker is written down as lines of JSON in the file `MARKS`.
"""

import asyncio
import contextlib
import json
import os
import time
from typing import Any

from celery import Task, current_task, shared_task, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from core.tasks import OutsideTask, TaskError, current, task

KINDS: dict[str, type[BaseException]] = {
    "CancelledError": asyncio.CancelledError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": SystemExit,
    "ValueError": ValueError,
}


def here() -> str | None:
    """The id of the call that runs here, as Celery knows it."""
    return current_task.request.id if current_task else None


def me() -> str | None:
    """The id of the call that runs here, as we know it where it is a call of ours."""
    try:
        return current().id
    except OutsideTask:
        return here()


def mark(what: str, id: str | None, **more: Any) -> None:
    """Write down that something happened to a call."""
    with open(os.environ["MARKS"], "a") as marks:
        marks.write(json.dumps({"what": what, "id": id, "here": here(), "pid": os.getpid(), **more}) + "\n")


SIGNALS = (
    "task_received", "task_prerun", "task_postrun", "task_success", "task_failure", "task_retry", "task_revoked",
    "task_internal_error", "task_rejected",
)  # fmt: skip


def _connect(name: str) -> None:
    def receive(sender: Any = None, task_id: str | None = None, request: Any = None, **more: Any) -> None:
        id = task_id or getattr(request, "id", None) or here()
        mark(name, id, sender=getattr(sender, "name", None), state=more.get("state"), ended=more.get("terminated"))

    getattr(signals, name).connect(receive, weak=False)


for _name in SIGNALS:
    _connect(_name)


class Hooks(Task):
    """A task that writes down which of its methods are called, and what they are told."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        mark("before_start", task_id, own=self.request.id)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        mark("on_success", task_id, own=self.request.id)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        mark("on_failure", task_id, own=self.request.id)

    def on_retry(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        mark("on_retry", task_id, own=self.request.id)

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        mark("after_return", task_id, own=self.request.id, state=status)


@shared_task(base=Hooks, bind=True, max_retries=1)
def plain(self: Any, fails: int = 0) -> list[Any]:
    """Fail with ValueError on the first attempts."""
    if self.request.retries < fails:
        raise self.retry(exc=ValueError(f"attempt {self.request.retries + 1}"), countdown=0.05)
    time.sleep(0.02)
    return [self.request.id, here(), self.request.retries]


@shared_task(base=Hooks, autoretry_for=(KeyError,), retry_kwargs={"countdown": 0.05, "max_retries": 2})
def retried_by_celery(fails: int) -> int:
    if current_task.request.retries < fails:
        raise KeyError("again")
    return int(current_task.request.retries)


@shared_task
def plain_add(a: int, b: int = 0) -> int:
    return a + b


@shared_task
def plain_total(numbers: list[int]) -> int:
    return sum(numbers)


@shared_task
def plain_raises(kind: str) -> None:
    mark("ran", me())
    raise KINDS[kind]("from the body")


@shared_task(bind=True)
def rejects(self: Any, file: str, requeue: bool) -> int:
    """Reject the first delivery, and tell the number of the one that was not."""
    with open(file, "a") as deliveries:
        deliveries.write("x")
    count = os.path.getsize(file)
    if count == 1:
        raise Reject("again", requeue=requeue)
    return count


@shared_task
def ignores() -> None:
    mark("ran", me())
    raise Ignore("no outcome")


@shared_task
def plain_nap(seconds: float) -> float:
    mark("begun", me())
    time.sleep(seconds)
    mark("slept", me())
    return seconds


@shared_task(acks_late=False)
def acks_early(seconds: float) -> float:
    mark("begun", me())
    time.sleep(seconds)
    return seconds


@shared_task
def errback(request: Any, exc: Any, traceback: Any) -> None:
    mark("errback", request.id, error=str(exc))


@shared_task
def callback(value: Any, of: str) -> Any:
    mark("callback", of, value=value)
    return value


@shared_task(rate_limit="10/s")
def ten_a_second() -> None: ...


@shared_task(bind=True)
def replaced(self: Any, value: int) -> Any:
    raise self.replace(plain_add.s(value, 100))


@task
async def add(a: int, b: int = 0) -> int:
    return a + b


@task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@task(max_retries=1, retry_delay=0.05)
async def ours(fails: int = 0) -> list[Any]:
    """Fail with TaskError on the first attempts; tell the call's id, as everything that the body starts knows it."""

    async def child() -> str | None:
        await asyncio.sleep(0.01)
        return here()

    await asyncio.sleep(0.03)
    if current().attempt <= fails:
        raise TaskError(f"attempt {current().attempt}")
    beside = await asyncio.gather(asyncio.create_task(child()), child())
    return [current().id, here(), *beside]


@task
async def nap(seconds: float) -> float:
    """Sleep, with a `finally` that needs the loop."""
    mark("begun", me())
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        mark("cancelled", me())
        raise
    finally:
        await asyncio.sleep(0.05)
        mark("cleaned up", me())
    return seconds


@task
def nap_sync(seconds: float) -> str:
    mark("begun", me())
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        mark("soft limit", me())
        return "caught"
    return "slept"


@task
async def swallows(seconds: float) -> str:
    """Go on for so long, however often it is cancelled."""
    mark("begun", me())
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left)
    mark("went on", me())
    return "went on"


@task
async def limited(seconds: float = 0) -> int:
    await asyncio.sleep(seconds)
    return 1


@task
async def fails(text: str) -> None:
    raise ValueError(text)
