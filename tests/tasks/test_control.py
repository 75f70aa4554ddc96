"""Remote control while calls begin and end."""

from typing import Any

import pytest
from celery.worker import state
from celery.worker.control import Panel

from core.config import Settings, configure
from core.tasks import control


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
