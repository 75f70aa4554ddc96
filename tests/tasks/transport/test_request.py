"""A call in the consumer: what its message has a say in, and what it has not."""

from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.worker import request as stock
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


def received(messages: Any, timeout: float | None = None, kind: type[stock.Request] = Request, **sent: Any) -> Any:
    """What a worker makes of a call that plain Celery sends."""
    configure(Unreachable)

    @task(name="t.limited", timeout=timeout)
    async def limited() -> None: ...

    celery_task = celery_app.celery_task(limited)
    with Celery("caller", broker="memory://", set_as_current=False) as caller:
        caller.send_task("t.limited", queue="t", connection=messages.channel.connection.client, **sent)
    message = messages.get(timeout=5)
    message.ack()
    return kind(message, app=celery_task.app, task=celery_task)


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
    assert tuple(received(messages, timeout, **sent).time_limits) == expected


@pytest.mark.parametrize(
    "sent", [{}, {"trace": "abc", "shadow": "other"}, {"headers": {"a": "b"}, "trace": "abc"}, {"headers": None}]
)
def test_the_headers_of_a_message_are_those_that_celery_finds(messages: Any, sent: dict[str, Any]) -> None:
    """Where there are none at all it has None."""
    ours, theirs = (Context(received(messages, kind=kind, headers=dict(sent)).request_dict).headers
                    for kind in (Request, stock.Request))  # fmt: skip

    assert (ours or {}) == (theirs or {})
