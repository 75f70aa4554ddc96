"""The caller's side: a call leaves this process for the broker."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from core import config, embedded
from core.broker_error import broker_error, never_sent
from core.errors import BrokerUnreachable, ConfigurationError, PublishError, TasksDisabled
from core.tasks import bridge, celery_app
from core.tasks.context import current_or_none


@dataclass(frozen=True)
class Call:
    """One call, complete: checked, encoded, and with an id before anything is sent."""

    task: celery_app.Declared
    id: str
    args: list[Any]
    kwargs: dict[str, Any]
    #: Celery's options for this call: countdown, eta, expires, queue, priority.
    options: dict[str, Any] = field(default_factory=dict)


async def send(call: Call) -> None:
    """Put a call into its queue. The event loop stays free meanwhile.

    Raises:
        TasksDisabled: `task_enabled` is False.
        UnknownQueue: No task and no setting names the queue.
        PublishError: No broker took it within `task_publish_timeout`. Its `maybe_sent` says whether the
            message may have arrived all the same.
    """
    settings = config.get_settings()
    if not settings.task_enabled:
        raise TasksDisabled(f"{call.task.name} was not queued")
    seconds = settings.task_publish_timeout
    running = current_or_none()
    lineage = {"parent_id": running.id, "root_id": running.root_id} if running else {}

    def publish(handoff: bridge.Handoff) -> None:
        if queue := call.options.get("queue"):
            celery_app.check_queue(queue)
        producer = celery_app.producer()
        celery_task = celery_app.celery_task(call.task)
        if not handoff.begin():
            return  # nobody waits for it any more: it must not be sent
        try:
            celery_task.apply_async(
                call.args,
                call.kwargs,
                task_id=call.id,
                producer=producer,
                event_dispatcher=celery_app.event_dispatcher(),
                retry=False,
                **lineage,
                **call.options,
            )
        except Exception:
            celery_app.drop_producer()
            raise

    try:
        await bridge.in_thread(publish, seconds)
    except bridge.NotInTime as late:
        advice = "" if late.begun else " Start it, or set REDIS_URL to one that is running."
        reason = f"no broker answered at {_where()} within {seconds:g} s.{advice}"
        raise PublishError(call.task.name, call.id, reason, maybe_sent=late.begun) from None
    except (BrokerUnreachable, ConfigurationError) as error:
        if isinstance(error, ConfigurationError) and error.__cause__ is None:
            raise  # the project's own mistake, which has nothing to do with this call
        raise PublishError(call.task.name, call.id, str(error), maybe_sent=False) from error
    except _broker_errors() as error:
        known = broker_error(error, await asyncio.to_thread(embedded.broker_url))
        raise PublishError(call.task.name, call.id, str(known), maybe_sent=not never_sent(error)) from error


def _where() -> str:
    """Where the broker is, for a message, without asking whether it is there."""
    url = config.get_settings().broker_url
    return str(url) if url else "the development server"


def _broker_errors() -> tuple[type[Exception], ...]:
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    return OperationalError, RedisError, OSError
