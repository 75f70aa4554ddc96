"""Remote control while calls begin and end."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state
from celery.worker.control import Panel

from core.config import Settings, configure
from core.tasks import control, runner, task
from core.tasks.context import CurrentTask


class Call:
    """One that Celery's sets can refer to."""


@pytest.mark.parametrize("kind", ["active", "reserved", "scheduled"])
def test_the_calls_of_a_worker_may_change_while_they_are_listed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread does that. A cancellation that raised here was lost, and its call ran on."""
    configure(Settings)
    monkeypatch.setattr(Panel, "data", dict(Panel.data))
    first, *others = [Call() for _ in range(100)]
    changing: Any = getattr(state, f"{kind}_requests")
    control.add_commands()
    changing.update(others)

    for _ in changing:
        changing.add(first)

    assert set(changing) == {first, *others}
    changing.clear()


async def test_a_cancellation_reaches_a_body_whose_call_celery_knows_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two deliveries of one call, as after a lost acknowledgement, Celery forgets both when the first one ends."""
    configure(Settings)
    monkeypatch.setattr(Panel, "data", dict(Panel.data))
    control.add_commands()
    begun = asyncio.Event()

    @task
    async def waits() -> None:
        begun.set()
        await asyncio.sleep(60)

    here = CurrentTask("its-id", waits.name, 1, "default", {}, None, None, "its-id")
    second = asyncio.create_task(runner.attempt(waits.body(), here, [], {}))
    await asyncio.wait_for(begun.wait(), 5)

    worker = SimpleNamespace(app=Celery(backend="cache+memory://", set_as_current=False))
    assert Panel.data["cancel_call"](worker, task_id="its-id") == {"ok": "cancelling its-id"}

    assert (await asyncio.wait_for(second, 5)).cancelled
    state.revoked.discard("its-id")
