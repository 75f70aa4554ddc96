"""What the workers say of themselves when they are asked, by Celery's own `inspect`."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from core import embedded
from core.broker_error import broker_error
from core.tasks import celery_app, celery_config


@dataclass(frozen=True)
class Worker:
    """A worker that has answered; of one with several processes, one of these."""

    name: str
    pool: str
    #: Calls at once.
    concurrency: int
    running: int
    #: Calls that it has taken and not begun.
    reserved: int
    queues: list[str]
    #: When it was started (ISO 8601, UTC).
    since: str
    pid: int


def workers(timeout: float = 1.0) -> list[Worker]:
    """The workers that answer, by name. None can be asked where the broker, as SQS, has no messages to all.

    Args:
        timeout: Seconds in which an answer counts. Nobody knows how many there will be, so it takes as long.

    Raises:
        BrokerUnreachable: The broker does not answer.
    """
    if not can_ask(celery_app.producer().connection):
        return []
    stats = _ask("stats", timeout)
    names = sorted(name for name, said in stats.items() if "pool" in said)
    if not names:
        return []
    running, reserved, queues = (_ask(what, timeout, names) for what in ("active", "reserved", "active_queues"))
    return [
        Worker(
            name=name,
            pool=celery_config.pool_name(stats[name]["pool"]["implementation"].partition(":")[0]),
            concurrency=stats[name]["pool"]["max-concurrency"],
            running=len(running.get(name, ())),
            reserved=len(reserved.get(name, ())),
            queues=[queue["name"] for queue in queues.get(name, ())],
            since=(datetime.now(UTC) - timedelta(seconds=stats[name]["uptime"])).isoformat(timespec="seconds"),
            pid=stats[name]["pid"],
        )
        for name in names
    ]


def can_ask(connection: Any) -> bool:
    """Whether all workers can be asked by way of this connection."""
    return "fanout" in connection.transport.implements.exchange_type


def _ask(what: str, timeout: float, names: list[str] | None = None) -> dict[str, Any]:
    """What each worker answers; those that were named are waited for no longer than until all have answered."""
    from kombu.exceptions import OperationalError

    producer = celery_app.producer()
    connection = producer.connection
    inspect = celery_app.get_app().control.inspect(
        destination=names, timeout=timeout, connection=connection, limit=len(names) if names else None
    )
    try:
        return getattr(inspect, what)() or {}
    except (OperationalError, *connection.connection_errors, *connection.channel_errors) as error:
        raise broker_error(error, embedded.broker_url()) from error
