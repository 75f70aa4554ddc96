"""Calls that wait in the outbox: what a test asks of them, and what runs when it says so."""

import asyncio
from datetime import date
from typing import Any

import pytest

from core.errors import ArgumentsError, ResultTimeout, ResultUnavailable, TaskRevoked
from core.tasks import TaskResult, task
from core.testing import Outbox


async def test_nothing_runs_before_it_is_asked_to(captured_tasks: Outbox) -> None:
    ran: list[str] = []

    @task
    async def first(name: str) -> str:
        ran.append(name)
        await second.delay(name)
        return name

    @task
    async def second(name: str) -> None:
        ran.append(f"second {name}")

    captured_tasks.assert_nothing_queued()
    result = await first.delay("a", countdown=60)
    await first.delay("b")
    assert (ran, await result.status(), await result.exists()) == ([], "pending", True)

    handles = await captured_tasks.run_all()

    assert ran == ["a", "b"]
    assert [await handle.get() for handle in handles] == ["a", "b"]
    assert (await result.get(), handles[0]) == ("a", result)
    assert [call.task for call in captured_tasks.calls] == [first, first, second, second]
    assert len(await captured_tasks.run_all()) == 2
    assert ran == ["a", "b", "second a", "second b"]
    assert await captured_tasks.run_all() == []


async def test_a_call_shows_what_it_was_given(captured_tasks: Outbox) -> None:
    @task(queue="mail")
    async def send(day: date, *names: str, copies: int = 1, note: str = "") -> None: ...

    result = await send.delay(date(2026, 1, 2), "a", "b", copies=2, priority=3)  # type: ignore[call-overload]

    (call,) = captured_tasks.calls
    assert (call.task, call.id, call.queue, call.options) == (send, result.id, "mail", {"priority": 3})
    assert (call.args, call.kwargs) == ((date(2026, 1, 2), "a", "b"), {"copies": 2})


async def test_a_call_is_found_however_its_arguments_are_written(captured_tasks: Outbox) -> None:
    @task(queue="mail")
    async def send(to: str, day: date = date(2026, 1, 2), copies: int = 1) -> None: ...

    await send.delay("a", copies=2)

    for args, kwargs in ((("a", date(2026, 1, 2), 2), {}), ((), {"to": "a", "copies": 2}), (("a",), {"copies": 2})):
        captured_tasks.assert_queued(send, *args, **kwargs)  # type: ignore[arg-type]
    captured_tasks.assert_queued(send, queue="mail", times=1)
    with pytest.raises(ArgumentsError, match="to"):
        captured_tasks.assert_queued(send, copies=2)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"args": ("b",)}, r"send\('b'\) was not queued\."),
        ({"countdown": 5}, r"send countdown=5 was not queued\."),
        ({"args": ("a",), "queue": "other"}, r"send\('a'\) queue='other' was not queued\."),
        ({"task_id": "x"}, r"send task_id='x' was not queued\."),
        ({"task_id": "x", "priority": 1, "expires": 9}, r"send task_id='x' expires=9 priority=1 was not queued\."),
        ({"times": 2}, r"send was queued once, not 2 times\."),
        ({"times": 0}, r"send was queued once, not 0 times\."),
    ],
    ids=str,
)
async def test_what_was_queued_instead_is_listed(captured_tasks: Outbox, asked: dict[str, Any], said: str) -> None:
    @task(sensitive=("password",))
    async def send(to: str, password: str = "") -> None: ...

    await send.delay("a", password="hunter2", countdown=60)  # type: ignore[call-overload]
    asked = {"args": (), **asked}
    args = asked.pop("args")
    if "queue" in asked:
        asked["password"] = "hunter2"
        said = said.replace(r"\('a'\)", r"\('a', password='\*+'\)")

    with pytest.raises(AssertionError, match=said) as caught:
        captured_tasks.assert_queued(send, *args, **asked)
    with pytest.raises(AssertionError, match=r"Something was queued\."):
        captured_tasks.assert_nothing_queued()
    listed = f"\n  1. {send.name}('a', password='********') queue='default' countdown=60"
    assert str(caught.value).endswith(f"What was queued:{listed}")


async def test_waiting_for_what_does_not_run_ends_at_once(captured_tasks: Outbox) -> None:
    @task
    async def nothing() -> None: ...

    result = await nothing.delay()

    with pytest.raises(ResultTimeout) as late:
        await result.get(timeout=3600)
    assert late.value.__notes__ == ["captured_tasks: it waits for `await outbox.run_all()`."]
    with pytest.raises(ResultUnavailable, match=r"would wait for ever.*run_all"):
        await result.get()
    with pytest.raises(ResultUnavailable, match="nobody has queued it"):
        await TaskResult.from_id("x").get()
    assert not await TaskResult.from_id("x").exists()


async def test_whoever_waits_for_a_call_that_is_about_to_run_gets_it(captured_tasks: Outbox) -> None:
    @task
    async def echo(word: str) -> str:
        await asyncio.sleep(0)
        return word

    await echo.delay("first")
    result = await echo.delay("second")

    _, word = await asyncio.gather(captured_tasks.run_all(), result.get(timeout=30))
    assert word == "second"


async def test_a_cancelled_call_never_runs(captured_tasks: Outbox) -> None:
    @task
    async def never() -> None:
        raise AssertionError("it ran")

    result = await never.delay()
    assert await result.cancel()
    assert await captured_tasks.run_all() == []
    with pytest.raises(TaskRevoked, match="cancelled"):
        await result.get()
    assert not await result.cancel()


async def test_a_unique_call_is_one_while_it_waits(captured_tasks: Outbox) -> None:
    @task(unique=True)
    async def sync_user(number: int) -> int:
        return number

    first, second, other = [await sync_user.delay(number) for number in (1, 1, 2)]

    assert (first == second, second.deduplicated, first == other) == (True, True, False)
    await captured_tasks.run_all()
    assert not (await sync_user.delay(1)).deduplicated
    captured_tasks.assert_queued(sync_user, 1, times=2)
