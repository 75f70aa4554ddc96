"""What both type checkers accept, and the types that they see. Nothing here is ever run."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette

from core.config import Settings, configure, get_settings
from core.tasks import (
    CurrentTask,
    PeriodicTask,
    Progress,
    Task,
    TaskError,
    TaskResult,
    TaskStatus,
    current,
    lifespan,
    periodic_task,
    task,
    worker_lifespan,
)
from core.tasks.definition import SyncPeriodicTask, SyncTask
from core.testing import CapturedCall, Outbox, next_runs


class Order(BaseModel):
    id: int


class AppSettings(Settings):
    task_enabled: bool = True
    task_default_queue: str = "default"
    own_field: int = 3


@task
async def send_email(to: str, subject: str, body: str = "") -> int:
    return len(to + subject + body)


@task(queue="orders", max_retries=0, retry_delay=0, retry_on=(ValueError, OSError), retry_backoff=True, timeout=None)
async def ship(order: Order, *, express: bool = False) -> Order:
    raise TaskError("later", retry_in=5)


@task(name="one.name", timeout=1.5, ignore_result=True, priority=0, retry_on=KeyError)
def resize(path: Path, *sizes: int) -> list[Path]:
    return [path for _ in sizes]


@task
def plain(number: int) -> str:
    return str(number)


@task(timeout=...)
async def default_timeout(*numbers: int, **named: float) -> None: ...


@worker_lifespan
async def clients() -> AsyncIterator[None]:
    yield


@worker_lifespan
async def connections() -> AsyncGenerator[None, None]:
    yield


assert_type(clients(), AsyncIterator[None])


@periodic_task(cron="0 * * * *")
async def hourly() -> int:
    return 1


@periodic_task(interval=timedelta(minutes=5), args=("x",), kwargs={"n": 1}, enabled=False, queue="low", timeout=10)
async def often(text: str, n: int) -> str:
    return text * n


@periodic_task(interval=0.5, name="tick", max_retries=1, retry_delay=2)
def tick() -> None: ...


async def the_decorators_keep_the_types() -> None:
    assert_type(hourly, PeriodicTask[[], int])
    assert_type(tick, SyncPeriodicTask[[], None])
    some: SyncTask[..., str] = plain
    assert_type(some.name, str)
    for_all: list[Task[..., Any]] = [send_email, ship, resize, plain, hourly, often, tick]
    assert_type(for_all[0].name, str)
    assert_type(send_email.queue, str | None)


async def an_inline_call_is_the_function() -> None:
    assert_type(await send_email("a@b", subject="s"), int)
    assert_type(await ship(Order(id=1), express=True), Order)
    assert_type(resize(Path("a"), 1, 2), list[Path])
    assert_type(plain(1), str)
    assert_type(await hourly(), int)
    assert_type(tick(), None)


async def delay_returns_a_handle_to_the_functions_result() -> None:
    call = await send_email.delay("a@b", "s", body="b")
    assert_type(call, TaskResult[int])
    assert_type(await call.get(timeout=1.5), int)
    assert_type(await call.status(), TaskStatus)
    assert_type(await call.exists(), bool)
    assert_type(await call.cancel(), bool)
    assert_type(call.id, str)
    assert_type(await plain.delay(1), TaskResult[str])
    assert_type(await resize.delay(Path("a"), 1, 2), TaskResult[list[Path]])
    assert_type(await hourly.delay(), TaskResult[int])
    assert_type(await often.delay("x", 1), TaskResult[str])
    assert_type(await tick.delay(), TaskResult[None])
    assert_type(await default_timeout.delay(1, 2, x=0.5), TaskResult[None])


async def delay_takes_every_reserved_option() -> None:
    now = datetime.now(UTC)
    assert_type(await send_email.delay("a@b", "s", countdown=60), TaskResult[int])
    assert_type(await send_email.delay("a@b", "s", eta=now), TaskResult[int])
    assert_type(await send_email.delay("a@b", "s", expires=60.5), TaskResult[int])
    assert_type(await send_email.delay("a@b", "s", expires=now, queue="q"), TaskResult[int])
    assert_type(await send_email.delay("a@b", "s", queue="q"), TaskResult[int])
    assert_type(await send_email.delay("a@b", "s", priority=0), TaskResult[int])
    assert_type(await send_email.delay("a@b", "s", task_id="1"), TaskResult[int])
    assert_type(
        await send_email.delay("a@b", subject="s", countdown=1, expires=9, queue="q", priority=1, task_id="1"),
        TaskResult[int],
    )


async def many_calls_return_handles_in_a_list() -> None:
    calls: list[tuple[str, str]] = [("a@b", "s")]
    assert_type(await send_email.delay_many(calls), list[TaskResult[int]])
    assert_type(await send_email.options(queue="q").delay_many({"to": "a@b"} for _ in range(2)), list[TaskResult[int]])
    assert_type(plain.delay_many_sync([(1,)]), list[TaskResult[str]])
    assert_type(plain.options().delay_many_sync([{"n": 1}]), list[TaskResult[str]])


async def options_keep_the_arguments_typed() -> None:
    now = datetime.now(UTC)
    later = send_email.options(countdown=60, expires=now, queue="q", priority=9, task_id="1")
    assert_type(await later.delay("a@b", "s"), TaskResult[int])
    assert_type(await send_email.options().delay("a@b", subject="s"), TaskResult[int])
    assert_type(await plain.options(eta=now).delay(1), TaskResult[str])
    assert_type(await hourly.options(queue="q").delay(), TaskResult[int])


def code_without_a_loop() -> None:
    assert_type(send_email.delay_sync("a@b", "s", countdown=1), TaskResult[int])
    assert_type(send_email.options(countdown=1).delay_sync("a@b", "s"), TaskResult[int])
    assert_type(plain.delay_sync(1).get_sync(), str)
    assert_type(send_email.delay_sync("a@b", "s").get_sync(timeout=1), int)


async def handles_from_ids() -> None:
    assert_type(TaskResult.from_id("1"), TaskResult[Any])
    wider: TaskResult[object] = await send_email.delay("a@b", "s")
    assert_type(wider.id, str)


async def a_task_passes_for_the_function_it_was() -> None:
    wants: Callable[[int], str] = plain
    assert_type(wants(1), str)
    wants_async: Callable[[str, str], Awaitable[int]] = send_email
    assert_type(await wants_async("a", "b"), int)


def what_a_running_task_knows() -> None:
    assert_type(current(), CurrentTask)
    assert_type(current().attempt, int)
    assert_type(current().deadline, datetime | None)
    assert_type(current().headers, Mapping[str, Any])


async def progress_is_said_and_followed() -> None:
    assert_type(await current().progress(1), None)
    assert_type(await current().progress(0.5, total=10, message="half"), None)
    assert_type(current().progress_sync(1, None, "one"), None)
    call = await send_email.delay("a@b", "s")
    assert_type(call.progress(), AsyncGenerator[Progress, None])
    async for update in call.progress():
        assert_type(update, Progress)
        assert_type(update.percent, float | None)
        assert_type((update.done, update.total, update.message), tuple[float, float | None, str])


async def web_applications_take_the_lifespan() -> None:
    FastAPI(lifespan=lifespan)
    application = Starlette(lifespan=lifespan)
    async with lifespan(application) as opened:
        assert_type(opened, None)
    async with lifespan():
        pass


def settings_keep_their_class() -> None:
    assert_type(configure(settings_class=AppSettings), AppSettings)
    assert_type(configure(AppSettings).own_field, int)
    assert_type(get_settings(), Settings)
    assert_type(AppSettings(), AppSettings)


async def what_tests_of_projects_use(outbox: Outbox) -> None:
    outbox.assert_queued(ship, Order(id=1), express=True, queue="orders", countdown=60, times=1)
    outbox.assert_queued(plain, 1)
    outbox.assert_queued(hourly)
    assert_type(outbox.calls, list[CapturedCall])
    assert_type(outbox.calls[0].args, tuple[Any, ...])
    assert_type(await outbox.run_all(), list[TaskResult[Any]])
    assert_type(next_runs(hourly, datetime.now(UTC), 3), list[datetime])
