"""How a worker receives a call that is to run at once, where nobody wants to see its steps.

Celery's strategy also reckons with an eta, rate limits, events and older messages, for every call anew. It still
receives those that have any of that.
"""

import logging
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.worker import state, strategy
from celery.worker.request import create_request_cls

from core.tasks.transport.request import is_watched


def receive(task: Any, app: Any, consumer: Any) -> Callable[..., Any]:
    """Celery's strategy for a task, with a short way for most of its calls."""
    stock: Callable[..., Any] = strategy.default(task, app, consumer)
    if logging.getLogger(strategy.__name__).isEnabledFor(logging.INFO):
        return stock  # it has a line for each call
    events, buckets, revoked = consumer.event_dispatcher, consumer.task_buckets, consumer.controller.state.revoked
    hostname, errors, handle = consumer.hostname, consumer.connection_errors, consumer.on_task_request
    utc = app.uses_utc_timezone()
    ready = state.task_ready if app.conf.worker_deduplicate_successful_tasks else _ready
    request_class = create_request_cls(task.Request, task, consumer.pool, hostname, events, task_ready=ready, app=app)

    def received(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> Any:
        headers = message.headers
        if body is not None or is_watched(events) or headers.get("eta") or buckets[task.name]:
            return stock(message, body, ack, reject, callbacks)
        if "args" in message.payload:  # an older message with newer headers
            return stock(message, body, ack, reject, callbacks)
        request = request_class(
            message, on_ack=ack, on_reject=reject, app=app, hostname=hostname, eventer=events, task=task,
            connection_errors=errors, body=message.body, headers=headers, utc=utc,
        )  # fmt: skip
        if (request.expires or request.id in revoked) and request.revoked():
            return None
        signals.task_received.send(sender=consumer, request=request)
        state.task_reserved(request)
        for callback in callbacks:
            callback(request)
        return handle(request)

    return received


def _ready(request: Any, successful: bool = False) -> None:
    """A call has ended. Which ones succeeded is for the look for duplicates alone, which is off."""
    state.task_ready(request)
