"""Lets Celery make the message of a call and keeps it, instead of announcing and sending it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import kombu.transport.redis as stock
from celery import _state
from celery.app.amqp import AMQP as Stock
from celery.app.routes import MapRoute
from celery.backends.base import Backend
from celery.utils.saferepr import saferepr
from kombu.compression import compress
from kombu.messaging import Producer
from kombu.serialization import dumps
from kombu.utils.objects import cached_property

from core import config
from core.redis_url import BrokerURL
from core.tasks import correlation, signing
from core.tasks.arguments import Arguments
from core.tasks.dead import SENSITIVE
from core.tasks.transport.backend import Backend as Ours


def _sent_now() -> dict[str, int]:
    """The property of AMQP that says when a message was sent, for whoever wants to know how old the oldest is."""
    # Its library for RabbitMQ wants another type, and there is nobody who reads it there.
    return {} if isinstance(config.get_settings().broker_url, BrokerURL) else {"timestamp": int(time.time())}


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


class Signing:
    """A producer whose messages are signed."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(
        self, body: Any, *, serializer: Any = None, compression: Any = None, headers: Any = None, **options: Any
    ) -> Any:
        """Send a message with its signature."""
        kind, encoding, body = dumps(body, serializer)  # type: ignore[no-untyped-call]
        headers = dict(headers or {})
        if compression:
            body, headers["compression"] = compress(body, compression)  # type: ignore[no-untyped-call]
        raw = body if isinstance(body, bytes) else body.encode()
        properties = {**options, "content_type": kind, "content_encoding": encoding}
        headers[signing.SIGNATURE] = signing.signature(headers, raw, properties)
        return self._producer.publish(body, headers=headers, **properties)


class AMQP(Stock):  # type: ignore[misc]
    """Celery's making of messages."""

    @cached_property
    def send_task_message(self) -> Any:
        """Send a message, or let a recorder keep it."""
        send = self._create_task_sender()

        def send_task_message(producer: Any, name: str, message: Any, *, queue: Any = None, **options: Any) -> Any:
            if not isinstance(producer, Recorder):
                if context := correlation.values():
                    message.headers.setdefault(correlation.HEADER, context)
                producer = Signing(producer) if signing.is_on() else producer
                return send(producer, name, message, queue=queue, **_sent_now(), **options)
            return producer.record(self.app.conf, message, queue, {**options, **_sent_now()})

        return send_task_message

    def as_task_v2(
        self, task_id: str, name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any
    ) -> Any:
        """A call's message, without what is sensitive among the texts that people read."""
        body = getattr(self.app.tasks.get(name), "body", None)
        if body is None or not body.arguments.sensitive:
            return super().as_task_v2(task_id, name, args, kwargs, *more, **options)
        texts = self.shown(body.arguments, args or (), kwargs or {})
        made = super().as_task_v2(task_id, name, args, kwargs, *more, **{**options, **texts})
        made.headers[SENSITIVE] = True
        return made

    def shown(self, arguments: Arguments, args: Any, kwargs: Any) -> dict[str, str]:
        """A call's arguments as the texts in its message that people read."""
        levels = self.app.conf.task_repr_maxlevels
        open_args, open_kwargs = arguments.shown(args, kwargs)
        return {
            "argsrepr": saferepr(type(args)(open_args), self.argsrepr_maxsize, maxlevels=levels),
            "kwargsrepr": saferepr(open_kwargs, self.kwargsrepr_maxsize, maxlevels=levels),
        }

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
