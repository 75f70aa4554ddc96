"""What is in the queues: calls that wait for a worker or for their time, and calls that workers hold."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import config, embedded
from core.broker_error import broker_error
from core.redis_url import RedisURL
from core.tasks import backlog, bridge, celery_app, inspection
from core.tasks.poller import results

HERE = Path(__file__).parent
_COUNT = (HERE / "queues.lua").read_text(encoding="utf-8")
_PURGE = (HERE / "transport/calls.lua").read_text(encoding="utf-8") + (HERE / "queues_purge.lua").read_text("utf-8")
#: Calls that one script drops at most: a server does nothing else meanwhile.
BATCH = 500


@dataclass(frozen=True)
class Queue:
    """One queue. What its broker does not tell is None."""

    name: str
    #: Calls that wait for a worker, of all priorities.
    waiting: int | None
    #: For how many seconds the oldest of them waits. None where none does, or it does not say when it was sent, as
    #: calls of plain Celery do not.
    oldest: float | None
    #: Calls that wait for their time: a countdown, or their next attempt.
    delayed: int | None
    #: Calls that workers have taken and not finished.
    held: int | None
    #: The workers that serve it and answer.
    workers: list[str]


def overview(timeout: float = 1.0) -> list[Queue]:
    """Every queue that the project names, that a worker serves, or that a call came from.

    Args:
        timeout: Seconds in which workers have to answer.

    Raises:
        BrokerUnreachable: The broker does not answer.
    """
    celery_app.import_tasks()
    asked = inspection.workers(timeout)
    served = [name for worker in asked for name in worker.queues]
    names = list(dict.fromkeys([*celery_app.queues(), *served]))
    waiting: dict[str, int | None]
    oldest: dict[str, float | None] = {}
    held: Counter[str] | None = None
    delayed: Counter[str] | None = None
    if isinstance(embedded.broker_url(), RedisURL):
        with _Redis.opened() as redis:
            # In the order in which a call moves, so that none is missed; one that moves meanwhile may count twice.
            delayed, waiting, held = redis.delayed(), {name: redis.waiting(name) for name in names}, redis.held()
            waiting |= {name: redis.waiting(name) for name in sorted({*delayed, *held} - {*names})}
            oldest = {name: redis.oldest(name) for name in waiting}
        if not config.get_settings().uses_core_transport:
            delayed = None  # Celery's workers hold them
    else:
        waiting = dict(_waiting_elsewhere(celery_app.producer().connection, names))
    return [
        Queue(
            name,
            count,
            oldest.get(name),
            delayed[name] if delayed is not None else None,
            held[name] if held is not None else None,
            [worker.name for worker in asked if name in worker.queues],
        )
        for name, count in waiting.items()
    ]


def waiting(names: Sequence[str] = ()) -> dict[str, int | None]:
    """How many calls wait in queues for a worker; None where the broker does not tell.

    Args:
        names: The queues; none is every queue of the project.

    Raises:
        UnknownQueue: No task and no setting names one of them.
        BrokerUnreachable: The broker does not answer.
    """
    celery_app.import_tasks()
    for name in names:
        celery_app.check_queue(name)
    wanted = list(dict.fromkeys(names or celery_app.queues()))
    if not isinstance(embedded.broker_url(), RedisURL):
        return dict(_waiting_elsewhere(celery_app.producer().connection, wanted))
    with _Redis.opened() as redis:
        return {name: redis.waiting(name) for name in wanted}


def are_empty(names: Sequence[str]) -> bool:
    """Whether no call waits in these queues for a worker, nor is one about to that a worker was lost with.

    Raises:
        BrokerUnreachable: The broker does not answer.
    """
    if not isinstance(embedded.broker_url(), RedisURL):
        return not any(count for _, count in _waiting_elsewhere(celery_app.producer().connection, names))
    with _Redis.opened() as redis:
        return not any(redis.waiting(name) for name in names) and not redis.has_lost()


def purge(name: str) -> int:
    """Drop the calls that wait in a queue for a worker; how many they were. What runs, or waits for its time, stays.

    In Redis a call can be read, and is cancelled as well; elsewhere nobody is told.

    Raises:
        BrokerUnreachable: The broker does not answer.
    """
    if not isinstance(embedded.broker_url(), RedisURL):
        return _purge_elsewhere(celery_app.producer().connection, name)
    with _Redis.opened() as redis:
        return redis.purge(name)


class _Redis:
    """The queues in a broker's Redis."""

    def __init__(self, client: Any, options: dict[str, Any]) -> None:
        self._client = client
        self._prefix = str(options.get("global_keyprefix", ""))
        self._options, self._sep = options, options.get("sep", "\x06\x16")

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator["_Redis"]:
        from redis.exceptions import RedisError

        url = embedded.broker_url()
        assert isinstance(url, RedisURL)
        try:
            with url.client() as client:
                yield cls(client, celery_app.get_app().conf.broker_transport_options)
        except RedisError as error:
            raise broker_error(error, url) from error

    def _lists(self, name: str) -> list[str]:
        return backlog.lists_of(name, self._options, self._prefix)

    def waiting(self, name: str) -> int:
        with self._client.pipeline(transaction=False) as pipe:
            for key in self._lists(name):
                pipe.llen(key)
            return sum(map(int, pipe.execute()))

    def oldest(self, name: str) -> float | None:
        now = time.time()
        last = [self._client.lindex(key, -1) for key in self._lists(name)]
        return max((age for raw in last if raw and (age := backlog.age(raw, now)) is not None), default=None)

    def delayed(self) -> Counter[str]:
        return self._counted("core-delayed-calls")

    def held(self) -> Counter[str]:
        workers = self._client.zrange(f"{self._prefix}core-workers", 0, -1)
        return sum((self._counted(f"core-held-{worker.decode()}") for worker in workers), self._counted("unacked"))

    def has_lost(self) -> bool:
        """Whether workers hold calls whose lease has ended; the next one that looks gives those back."""
        now, microseconds = self._client.time()
        lost = self._client.zrange(f"{self._prefix}core-workers", "-inf", now + microseconds / 1e6, byscore=True)
        return any(self._counted(f"core-held-{worker.decode()}") for worker in lost)

    def _counted(self, key: str) -> Counter[str]:
        counts: Counter[str] = Counter()
        at: bytes | int = 0
        while True:
            at, found = self._client.eval(_COUNT, 1, self._prefix + key, at)
            for name, count in json.loads(found).items():
                counts[name.partition(self._sep)[0]] += count
            if int(at) == 0:
                return counts

    def purge(self, name: str) -> int:
        dropped = 0
        for key in self._lists(name):
            # No more than are there now: callers may be faster.
            for _ in range(0, self._client.llen(key), BATCH):
                count, *ids = self._client.eval(_PURGE, 1, key, self._prefix, BATCH)
                dropped += count
                bridge.run(_cancel([task_id.decode(errors="replace") for task_id in ids]))
        return dropped


async def _cancel(ids: Sequence[str]) -> None:
    """Tell whoever waits for these calls that they will not run."""
    stored = await results()
    await asyncio.gather(*(stored.cancel(task_id, store=True) for task_id in ids))


def _waiting_elsewhere(connection: Any, names: Sequence[str]) -> Iterator[tuple[str, int | None]]:
    for name in names:
        try:
            with connection.channel() as channel:
                yield name, _declared(name, channel).queue_declare(passive=True).message_count
        except connection.channel_errors:
            yield name, None  # nobody has made it yet


def _purge_elsewhere(connection: Any, name: str) -> int:
    try:
        with connection.channel() as channel:
            return int(_declared(name, channel).purge() or 0)
    except connection.channel_errors:
        return 0  # nobody has made it yet


def _declared(name: str, channel: Any) -> Any:
    from kombu.entity import Queue as Declared

    return Declared(name, channel=channel)  # type: ignore[no-untyped-call]
