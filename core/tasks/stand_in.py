"""Who stands in for broker, workers and results in this process: nobody, but in a test perhaps `core.testing`.

Whatever would leave the process on the caller's side asks here first, so this is the one place where a test takes over.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class StandIn(Protocol):
    """What a caller needs of the world outside."""

    async def send(self, call: Any) -> str:
        """Take a call; return its id, or that of the call which keeps it from being another one."""
        ...

    async def read(self, task_id: str) -> dict[str, Any] | None:
        """What is stored of a call now, or None."""
        ...

    async def final(self, task_id: str, timeout: float | None) -> dict[str, Any]:
        """Wait until a call has its final state, and return what is stored of it.

        Raises:
            TimeoutError: That took longer than *timeout* seconds.
        """
        ...

    def changes(self, task_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """What is stored of a call, now and after each change, until it has its final state."""
        ...

    async def cancel(self, task_id: str, store: bool) -> str:
        """Cancel a call, and return the state in which it was."""
        ...

    def refusal(self, name: str) -> Exception:
        """Why Celery itself cannot send a call of this task."""
        ...


class _Process:
    found: StandIn | None = None


_process = _Process()


def stand_in() -> StandIn | None:
    """Who stands in here; None, as in production, is nobody."""
    return _process.found


@contextmanager
def standing_in(one: StandIn) -> Iterator[None]:
    """Let *one* stand in for a while, in every thread and loop of this process."""
    before, _process.found = _process.found, one
    try:
        yield
    finally:
        _process.found = before
