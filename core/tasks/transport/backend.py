"""Celery's Redis result backend, without the subscription that it makes for every call it sends."""

from typing import Any

from celery.backends.redis import RedisBackend


class Backend(RedisBackend):  # type: ignore[misc]
    """Where results are stored: the same keys and messages as Celery's own."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing. Whoever waits for a result subscribes then.

        Celery subscribes here on every call and reads nothing: two blocking commands a call, and a
        server buffer that grows for as long as the sending process lives.
        """
