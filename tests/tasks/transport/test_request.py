"""A call in the consumer: what its message has a say in, and what it has not."""

from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.simple import SimpleQueue
from pydantic import SecretStr

from core.config import Settings, configure
from core.tasks import celery_app, task
from core.tasks.transport.request import Request


@pytest.fixture(scope="module")
def messages() -> Any:
    """A queue in memory, with messages as Celery makes them."""
    with Connection("memory://") as connection:
        yield SimpleQueue(connection, Queue("t", Exchange(""), routing_key="t"))


class Unreachable(Settings):
    """No development server is started."""

    redis_url: SecretStr | None = SecretStr("redis://127.0.0.1:1")


def limits(messages: Any, timeout: float | None, **sent: Any) -> Any:
    configure(Unreachable)

    @task(name="t.limited", timeout=timeout)
    async def limited() -> None: ...

    celery_task = celery_app.celery_task(limited)
    with Celery("caller", broker="memory://", set_as_current=False) as caller:
        caller.send_task("t.limited", queue="t", connection=messages.channel.connection.client, **sent)
    message = messages.get(timeout=5)
    message.ack()
    return Request(message, app=celery_task.app, task=celery_task, body=message.payload, decoded=True).time_limits


@pytest.mark.parametrize(
    ("timeout", "sent", "expected"),
    [
        (5, {}, (None, None)),
        (5, {"time_limit": 3600}, (15, None)),
        (5, {"time_limit": 3600, "soft_time_limit": 60}, (15, 60)),
        (5, {"time_limit": 3}, (3, None)),
        (None, {"time_limit": 3600}, (3600, None)),
    ],
)
def test_a_message_may_shorten_the_time_of_its_call_and_not_prolong_it(
    messages: Any, timeout: float | None, sent: dict[str, Any], expected: Any
) -> None:
    assert tuple(limits(messages, timeout, **sent)) == expected
