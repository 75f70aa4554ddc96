"""A suite with `core_tasks = captured`: tests that ask for nothing have it, one that asks has what it asks for."""

import unittest
from typing import Any

import pytest

from core.tasks import ResultTimeout, TaskStatus
from src.apps.probe.tasks import add


def test_what_asks_for_nothing() -> None:
    with pytest.raises(ResultTimeout):
        add.delay_sync(1, 2).get_sync(timeout=3600)


class OfUnittest(unittest.IsolatedAsyncioTestCase):
    async def test_what_asks_for_nothing(self) -> None:
        assert await (await add.delay(1, 2)).status() == TaskStatus.PENDING


def test_what_asks_for_another(inline_tasks: Any) -> None:
    assert add.delay_sync(1, 2).get_sync() == 3
