"""Support for tests of projects: the fixtures `inline_tasks`, `captured_tasks` and `worker_tasks`, and `next_runs`.

The fixtures come with pytest's plugin, which is there as soon as this package is installed.
"""

from core.testing.outbox import CapturedCall, Outbox
from core.testing.schedule import next_runs

__all__ = ["CapturedCall", "Outbox", "next_runs"]
