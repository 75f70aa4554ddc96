"""Lets Celery make the message of a call and keeps it, instead of announcing and sending it."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import kombu.transport.redis as stock
from celery import _state
from celery.app.amqp import AMQP as Stock
from celery.app.routes import MapRoute
from celery.backends.base import Backend
from kombu.messaging import Producer
from kombu.utils.objects import cached_property

from core.tasks.transport.backend import Backend as Ours


class Channel(stock.Channel):
    """kombu's channel without a server: it keeps the last message that it is given, and the list it would go to."""

    seen: tuple[str, dict[str, Any]]
    client = SimpleNamespace(ping=lambda: True)  # pyright: ignore[reportAssignmentType]

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))  # type: ignore[no-untyped-call]
        self.seen = f"{self.global_keyprefix}{key}", message


class Transport(stock.Transport):
    """kombu's transport without a server."""

    Channel = Channel


class Recorder(Producer):
    """A producer that Celery gives a message to."""

    seen: tuple[str, dict[str, Any]] | None = None

    def record(self, conf: Any, message: Any, queue: Any, options: dict[str, Any]) -> None:
        """Keep what is one push to one list; anything else goes Celery's own way.

        Args:
            message: Celery's headers, properties and body, and what it would announce.
            options: What Celery would give to kombu beside the message.
        """
        headers, properties, body, event = message
        if queue is None:
            return
        kept = (queue.expires, (queue.queue_arguments or {}).get("x-expires"))  # such a queue's end is put off
        if event or options.pop("headers", None) or kept != (None, None) or queue.exchange.type != "direct":
            return
        if options.pop("exchange", None) or options.pop("routing_key", None):
            return
        given = {
            "serializer": conf.task_serializer,
            "compression": conf.task_compression,
            "delivery_mode": queue.exchange.delivery_mode or conf.task_default_delivery_mode,
        }
        given |= {name: value for name, value in options.items() if value or name not in given}
        given |= {"exchange": "", "routing_key": queue.name, "headers": headers, **properties}
        self.publish(body, **given)  # type: ignore[no-untyped-call]
        self.seen = self.channel.seen


class AMQP(Stock):  # type: ignore[misc]
    """Celery's making of messages."""

    @cached_property
    def send_task_message(self) -> Any:
        """Send a message, or let a recorder keep it."""
        send = self._create_task_sender()

        def send_task_message(producer: Any, name: str, message: Any, *, queue: Any = None, **options: Any) -> Any:
            if not isinstance(producer, Recorder):
                return send(producer, name, message, queue=queue, **options)
            return producer.record(self.app.conf, message, queue, options)

        return send_task_message

    @contextmanager
    def as_current(self) -> Iterator[None]:
        """Make this application the thread's current one: receivers of signals look for tasks in that."""
        before = _state._tls.current_app
        _state._set_current_app(self.app)
        try:
            yield
        finally:
            _state._set_current_app(before)

    def tell(self, signal: Any, **told: Any) -> None:
        """Send a signal."""
        with self.as_current():
            signal.send(**told)

    def recorded(self, task: Any, args: Any, kwargs: Any, **options: Any) -> tuple[str, dict[str, Any]] | None:
        """The list that a call would be pushed to, and the message: nothing is sent, and no signal.

        None when more than that would happen: the call would run here, or somebody wants to see each call.

        Args:
            options: Those of `apply_async`.
        """
        routes: Any = self.routes
        sees = type(self.app.backend).on_task_call not in (Ours.on_task_call, Backend.on_task_call)
        if self.app.conf.task_always_eager or sees or not all(isinstance(route, MapRoute) for route in routes):
            return None
        with self.app.connection_for_write() as connection:
            if not issubclass(connection.get_transport_cls(), stock.Transport):
                return None
            connection.transport_cls = Transport
            recorder = Recorder(connection, auto_declare=False)  # type: ignore[no-untyped-call]
            task.apply_async(args, kwargs, producer=recorder, add_to_parent=False, **options)
            return recorder.seen
