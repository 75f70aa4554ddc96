"""A user's suite of unittest's classes."""

import unittest
from typing import Any

import pytest

from src.apps.probe.tasks import add


@pytest.mark.usefixtures("inline_tasks")
class Inline(unittest.IsolatedAsyncioTestCase):
    async def test_inline(self) -> None:
        assert await (await add.delay(1, 2)).get() == 3


class Captured(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def _outbox(self, captured_tasks: Any) -> None:
        self.outbox = captured_tasks

    async def test_captured(self) -> None:
        await add.delay(1, 2)
        self.outbox.assert_queued(add, 1, 2)


@pytest.mark.usefixtures("worker_tasks")
class WithAWorker(unittest.IsolatedAsyncioTestCase):
    async def test_with_a_worker(self) -> None:
        assert await (await add.delay(1, 2)).get(timeout=30) == 3
