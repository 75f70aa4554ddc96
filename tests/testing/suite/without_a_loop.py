"""A user's suite of plain functions."""

from typing import Any

import pytest
from pydantic import SecretStr

from core.config import get_settings, overridden
from core.tasks import PublishError
from core.tasks.celery_app import renewed
from src.apps.probe.tasks import add, add_sync


@pytest.mark.parametrize("mode", ["inline_tasks", "worker_tasks"])
@pytest.mark.parametrize("time", [1, 2])
def test_each_after_the_other(mode: str, time: int, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(mode)

    assert add.delay_sync(1, 2).get_sync(timeout=30) == 3
    assert add_sync.delay_sync(1, 2).get_sync(timeout=30) == 3


def test_captured(captured_tasks: Any) -> None:
    add.delay_sync(1, 2)
    captured_tasks.assert_queued(add, 1, 2)


def test_nothing_stays() -> None:
    assert get_settings().redis_url is None


def test_what_asks_for_nothing_is_sent_where_the_settings_say() -> None:
    """This thread's calls leave over one loop, which had a connection to the worker's server a moment ago."""
    with overridden(redis_url=SecretStr("redis://127.0.0.1:1/0")), renewed(), pytest.raises(PublishError):
        add.delay_sync(1, 2)
