"""Acknowledging what was taken, over whichever connection there is.

kombu acknowledges a message over the connection that it came by. When that one is lost while a call runs, kombu
gives the message out again, so that the call runs twice; and when Redis is gone as well, it fails with an
AttributeError that ends the worker. Here a call that runs keeps its message, and what could not be said over one
connection is said over the next.
"""

from typing import Any, ClassVar

import kombu.transport.redis as stock
from celery import bootsteps
from kombu.transport import virtual
from redis.exceptions import RedisError

from core.tasks import runner


class QoS(stock.QoS):
    """kombu's record of what was taken and not yet acknowledged."""

    _delivered: Any
    #: Tags whose fate Redis has not heard of, and whether their message goes back into its queue.
    unsaid: ClassVar[dict[str, bool]] = {}
    #: The record of the connection that was opened last.
    latest: ClassVar[Any] = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        QoS.latest = self
        for tag, back in list(self.unsaid.items()):
            self._say(tag, back)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        self._settle(delivery_tag, back=False)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back, or throw it away."""
        self._settle(delivery_tag, back=requeue)

    def restore_unacked(self, client: Any = None) -> None:
        """Give back what was taken and does not run: the connection ends."""
        kept = _running_tags()
        for tag in list(self._delivered):
            if tag not in kept:
                self._say(tag, back=True)
        self._delivered.clear()

    def _settle(self, tag: str, *, back: bool) -> None:
        self._say(tag, back)
        virtual.QoS.ack(self, tag)  # type: ignore[no-untyped-call]

    def _say(self, tag: str, back: bool) -> None:
        """Tell Redis, over this connection or the latest one; keep it for the next one if both are gone."""
        self.unsaid[tag] = back
        for record in (self, self.latest):
            # A closed kombu connection takes its parameters away from the channels that it had.
            if getattr(record.channel.connection, "client", None) is None:
                continue
            try:
                if back:
                    record.restore_by_tag(tag, leftmost=True)
                else:
                    record._remove_from_indices(tag).execute()
            except (RedisError, OSError):
                continue
            self.unsaid.pop(tag, None)
            return


def _running_tags() -> set[str]:
    """The delivery tags of the calls that run in this worker, unless it is giving them up."""
    from celery.worker import state

    if runner.putting_back():
        return set()
    return {request.request_dict["properties"]["delivery_tag"] for request in list(state.active_requests)}


class Adoption(bootsteps.StartStopStep):  # type: ignore[misc]
    """The worker's step that makes every Redis channel of this process use the record above."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        stock.Channel.QoS = QoS
