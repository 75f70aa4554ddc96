"""A user's suite under pytest-asyncio: the same cases in this process, and with a worker."""

import os
from datetime import date, datetime
from typing import Any

import pytest

from core.tasks import ArgumentsError, TaskError, TaskFailed, current, task
from src.apps.probe.tasks import Order, OwnError, add, context, elsewhere, fails_sync, keyword_only, risky, typed

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["inline_tasks", "worker_tasks"])
def mode(request: pytest.FixtureRequest) -> Any:
    request.getfixturevalue(request.param)
    return request.param


async def test_values_come_back_as_themselves(mode: str) -> None:
    order = Order(number=1, placed=datetime(2026, 1, 2))

    seen = await (await typed.delay(model=order, day=date(2026, 1, 2))).get(timeout=30)

    assert (seen.model, seen.day) == (order, date(2026, 1, 2))


async def test_a_call_knows_itself(mode: str) -> None:
    result = await context.options(task_id=f"known-{mode}").delay()

    told = await result.get(timeout=30)
    assert (told["id"], told["inner"], told["attempt"]) == (result.id, result.id, 1)
    assert await (await elsewhere.delay()).get(timeout=30) == "other"


@pytest.mark.parametrize("fails", [1, 9])
async def test_attempts(mode: str, fails: int, tmp_path: Any) -> None:
    result = await risky.delay(str(tmp_path / "marks"), fails)

    if fails == 1:
        assert await result.get(timeout=30) == 2
    else:
        with pytest.raises(TaskError, match="attempt 3 failed"):
            await result.get(timeout=30)
    assert (tmp_path / "marks").read_text().count("attempt") == min(fails + 1, 3)


async def test_errors(mode: str) -> None:
    with pytest.raises(OwnError) as own:
        await (await fails_sync.delay("no")).get(timeout=30)
    assert own.value.args == ("no", 7)
    assert own.value.__notes__[0].startswith("Traceback in the worker:\nTraceback")
    with pytest.raises(TaskFailed, match="KeywordOnly: code 7"):
        await (await keyword_only.delay()).get(timeout=30)
    with pytest.raises(ArgumentsError):
        await add.delay("x")  # type: ignore[arg-type]


async def test_a_chain_needs_a_worker(worker_tasks: None) -> None:
    from celery import chain

    from core.tasks import TaskResult

    last = chain(add.s(1, 2), add.s(3)).apply_async()

    assert await TaskResult.from_id(last.id).get(timeout=30) == 6


@task
async def of_this_file() -> int:
    return current().attempt


async def test_a_task_that_no_worker_knows_is_no_endless_wait(worker_tasks: None) -> None:
    with pytest.raises(TaskFailed, match="no worker knows its task"):
        await (await of_this_file.delay()).get(timeout=30)


async def test_a_worker_is_another_process(worker_tasks: None) -> None:
    from src.apps.probe.tasks import where

    assert (await (await where.delay()).get(timeout=30))["pid"] != os.getpid()
