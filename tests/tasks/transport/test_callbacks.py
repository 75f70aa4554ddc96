"""Which tasks a message names to follow its call, in whatever shape."""

from types import SimpleNamespace
from typing import Any

import pytest

from core.config import Settings, configure
from core.tasks.transport.callbacks import unknown

APP = SimpleNamespace(tasks={"known": 1, "celery.chord": 1, "celery.group": 1})


def of(task: str, **more: Any) -> dict[str, Any]:
    """A signature as JSON has it."""
    return {"task": task, "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False, **more}


@pytest.fixture(autouse=True)
def _settings() -> None:
    class Some(Settings):
        redis_url: Any = "redis://127.0.0.1:1"
        task_foreign_callbacks: Any = ("shop.order", "billing.*")

    configure(Some)


@pytest.mark.parametrize(
    "embedded",
    [
        {},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
        {"callbacks": [of("known")], "errbacks": [of("shop.order")], "chain": [of("billing.a.b")]},
        {"chord": of("celery.chord", kwargs={"header": [of("known")], "body": of("known")})},
        {"callbacks": [of("known", kwargs={"tasks": [of("data")], "body": {"task": "data"}})]},
        {"callbacks": "x", "errbacks": 5, "chain": [None, 1, "x"], "chord": {"no": "task"}},
        {"callbacks": [of("known", kwargs=None, options=5)]},
    ],
)
def test_these_may_follow(embedded: dict[str, Any]) -> None:
    assert unknown(embedded, APP) is None


@pytest.mark.parametrize(
    "embedded",
    [
        {"callbacks": [of("known"), of("no")]},
        {"errbacks": of("no")},
        {"chain": [of("known", options={"link": [of("no")]})]},
        {"chain": [of("known", options={"link_error": [of("no")], "chord": of("known")})]},
        {"chord": of("celery.chord", kwargs={"header": [of("known")], "body": of("no")})},
        {"callbacks": [of("celery.group", kwargs={"tasks": [of("known"), [of("no")]]})]},
        {"callbacks": [of("billings")], "chain": [of("no")]},
    ],
)
def test_these_may_not(embedded: dict[str, Any]) -> None:
    assert unknown(embedded, APP) in ("no", "billings")
