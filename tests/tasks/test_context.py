"""`current()`: what a running task knows of itself, and who else sees it."""

import asyncio
import threading
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from core.errors import OutsideTask
from core.tasks import CurrentTask, bridge, current
from core.tasks.context import current_or_none, enter


def running(call: str) -> CurrentTask:
    return CurrentTask(
        id=call, name="f", attempt=1, queue="default", headers={}, deadline=None, parent_id=None, root_id=call
    )


def test_outside_a_task_it_is_an_error_that_says_so() -> None:
    with pytest.raises(OutsideTask, match="no task is running"):
        current()

    assert isinstance(OutsideTask(), RuntimeError)
    assert current_or_none() is None


async def test_every_coroutine_that_a_task_starts_sees_the_same_object() -> None:
    mine = running("1")
    enter(mine)

    async def inner() -> CurrentTask:
        await asyncio.sleep(0)
        return current()

    assert await asyncio.gather(inner(), asyncio.create_task(inner())) == [mine, mine]
    assert await asyncio.to_thread(current) is mine


async def test_two_tasks_on_one_loop_do_not_see_each_other() -> None:
    async def body(call: str) -> list[str]:
        enter(running(call))
        seen = []
        for _ in range(3):
            await asyncio.sleep(0)
            seen.append(current().id)
        return seen

    assert await asyncio.gather(body("1"), body("2")) == [["1"] * 3, ["2"] * 3]


def test_the_bridge_carries_it_from_a_thread_to_the_loop() -> None:
    seen: list[Any] = []

    async def body() -> None:
        seen.append(current_or_none())

    def thread() -> None:
        enter(running("1"))
        bridge.run(body())

    started = threading.Thread(target=thread)
    started.start()
    started.join(20)
    bridge.close()

    assert seen == [running("1")]
    assert current_or_none() is None


def test_a_task_cannot_change_what_it_is() -> None:
    with pytest.raises(FrozenInstanceError):
        running("1").id = "2"  # type: ignore[misc]
