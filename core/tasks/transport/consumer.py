"""Celery's consumer, taking its calls so that none is lost."""

import json
import logging
import sys
import time
from base64 import b64decode
from contextlib import suppress
from typing import Any

from celery import Task, signals
from celery.app.task import Context
from celery.worker import state
from celery.worker.consumer import Consumer as Stock
from redis.exceptions import NoPermissionError, RedisError

from core import embedded
from core.broker_error import broker_error
from core.errors import TaskFailed
from core.tasks import control, signing
from core.tasks.transport import callbacks, held
from core.tasks.transport.channel import OURS
from core.tasks.transport.held import Held, Holder
from core.tasks.transport.lease import Lease
from core.tasks.transport.message import Unreadable, names, read
from core.tasks.transport.request import Request
from core.tasks.transport.speak import Speaker
from core.tasks.transport.strategy import receive

logger = logging.getLogger("core.tasks")

#: Seconds that a stopping worker tries to tell Redis what it has finished.
LAST_WORDS = 5.0
#: Seconds between two tries of a worker whose user lacks rights.
REFUSED = 2.0


class Consumer(Stock):  # type: ignore[misc]
    """Takes calls for the pool, and knows what becomes of each."""

    app: Any
    pool: Any
    task_consumer: Any
    event_dispatcher: Any
    holder: Holder | None = None
    _lease: Lease | None = None
    _turns = 0
    _connecting = False

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """The connection that calls are taken by: kombu's, with our transport in the place of its own for Redis."""
        return self.ensure_connected(_ours(self.app.connection_for_read(heartbeat=heartbeat)))

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Any:
        """The connection that events are sent by, likewise."""
        return self.ensure_connected(_ours(self.app.connection_for_write(url=url, heartbeat=heartbeat)))

    def ensure_connected(self, conn: Any) -> Any:
        """Wait for a connection, for as long as it takes."""
        self._connecting = True
        try:
            return super().ensure_connected(conn)
        finally:
            self._connecting = False

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """There is no connection, or Redis refuses something."""
        if not self._is_refused(exc):
            super().on_connection_error_before_connected(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """The connection is lost, or Redis refuses something."""
        self._is_refused(exc)
        super().on_connection_error_after_connected(exc)

    def _is_refused(self, error: Exception) -> bool:
        if not isinstance(error, NoPermissionError):
            return False
        logger.error("%s", broker_error(error, embedded.broker_url()))
        time.sleep(REFUSED)  # it stays so until somebody changes it
        return True

    def on_close(self) -> None:
        """The connection ends. In a warm stop the pool keeps what it was given: its results are waited for."""
        if state.should_stop is None or state.should_terminate is not None:
            super().on_close()
            return
        pool, self.pool = self.pool, None  # else Celery throws away what a process has got and not begun yet
        try:
            super().on_close()
        finally:
            self.pool = pool

    def update_strategies(self) -> None:
        """Say how a call of each task is received: as a request of ours, whatever class the task is made from."""
        for task in self.app.tasks.values():
            if task.Request == Task.Request:
                task.Request = Request
                if task.Strategy == Task.Strategy:
                    task.Strategy = receive
        super().update_strategies()

    def create_task_handler(self, *args: Any, **options: Any) -> Any:
        """The consumer is about to consume: say what is still held, and take calls from here on."""
        handler = super().create_task_handler(*args, **options)
        if self.event_dispatcher:
            # It sends what it has gathered when this loop turns, never in the thread that runs a call.
            self.event_dispatcher.buffer_limit = sys.maxsize
        channel = self.task_consumer.channel
        if self.hub is not None and hasattr(channel, "hold"):
            if self.holder is None:
                self._begin(channel)
            assert self.holder is not None
            if back := self.holder.adopt():
                logger.info("%d calls that had not begun were put back", back)
            channel.hold(self.holder, self.hub)
            self.hub.on_tick.add(self._turn)
        return handler

    def _begin(self, channel: Any) -> None:
        holder = Holder(self.app, self._tell)
        holder.start(channel._get_pool())
        if loop := getattr(self.pool, "loop", None):
            holder.speaker = Speaker(holder, loop, lambda: holder.wake())
        self._lease = Lease(holder, self._turned, lambda: list(state.active_requests),
                            lambda: self.pool.info.get("processes", ()), self._tell_of,
                            control.cancel_running)  # fmt: skip
        self._lease.start()
        self.holder = holder
        held.hold(holder)
        signals.worker_shutdown.connect(self._end, weak=False)

    def _turn(self) -> None:
        self._turns += 1

    def _turned(self) -> int | None:
        stopping = state.should_stop is not None or state.should_terminate is not None
        return None if self._connecting or stopping else self._turns

    def _end(self, **_: Any) -> None:
        self.give_back(LAST_WORDS)

    def give_back(self, timeout: float) -> bool:
        """Tell Redis what has ended and give back everything else. False when Redis does not answer.

        Args:
            timeout: Seconds to try.
        """
        if self.holder is None:
            return True
        if self._lease is not None:
            self._lease.end()
        return self.holder.close(timeout)

    # What cannot run

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task that this worker does not know: others may."""
        self._put_aside(message, "later", "no worker knows its task")
        signals.task_unknown.send(
            sender=self, message=message, exc=exc, name=message.headers.get("task"), id=message.headers.get("id")
        )

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """A message that is no call."""
        self._put_aside(message, "dead", "the message names no task")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A call that cannot be one, or is followed by one that this worker does not know."""
        if isinstance(exc, callbacks.Unknown):
            self._put_aside(message, "later", str(exc))
            return
        self._put_aside(message, "dead", f"it cannot be read: {exc}")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """A body that cannot be read."""
        self._put_aside(message, "dead", f"its body cannot be read: {type(exc).__name__}: {exc}")

    def _put_aside(self, message: Any, verdict: str, reason: str) -> None:
        if self.holder is not None and message.delivery_tag in self.holder.calls:
            self.holder.settle(message.delivery_tag, verdict, reason)
        else:
            message.reject_log_error(logger, self.connection_errors)

    # Who is told

    def _tell_of(self, raw: bytes) -> None:
        payload = json.loads(raw)
        queue = payload["properties"]["delivery_info"].get("routing_key", "")
        call = Held("", queue, names(raw), payload)
        try:
            call.signed = signing.is_signed(read(raw))
        except Unreadable:
            call.signed = False
        self.holder.set_aside(call, held.LOST)  # type: ignore[union-attr]

    def _tell(self, call: Held, reason: str) -> None:
        """A call that is set aside has failed, for whoever waits for it and for what was to follow."""
        if not call.headers.get("id"):
            return
        task = self.app.tasks.get(call.headers.get("task"))
        ignored = call.headers.get("ignore_result") or (task is not None and task.ignore_result)
        error = TaskFailed("SetAside", reason)
        context = _context(call)
        if call.signed is False or (call.signed is None and callbacks.unknown(context, self.app)):
            context = None  # it does not say who is to be called
        self.app.backend.mark_as_failure(call.headers["id"], error, request=context, store_result=not ignored)
        if self.event_dispatcher and self.hub is not None:
            self.hub.call_soon(self._announce, call.headers["id"], repr(error))

    def _announce(self, task_id: str, error: str) -> None:
        with suppress(RedisError, OSError, AttributeError):  # only Flower misses it
            self.event_dispatcher.send("task-failed", uuid=task_id, exception=error, traceback="")


def _ours(connection: Any) -> Any:
    """A connection of Celery's, with our transport in the place of kombu's own."""
    connection.transport_cls = OURS.get(connection.get_transport_cls(), connection.transport_cls)
    return connection


def _context(call: Held) -> Any:
    """What Celery needs to know of a call to fail its chain or chord."""
    embedded: dict[str, Any] = {}
    try:
        args, kwargs, embed = json.loads(b64decode(call.message["body"]))
        embedded = {"args": args, "kwargs": kwargs, **(embed or {})}
    except Exception:
        pass  # then nothing that was to follow can be read
    return Context({**call.headers, **embedded})
