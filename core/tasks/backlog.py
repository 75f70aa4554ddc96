"""What waits in the broker's Redis at this moment: in the queues, for its time, and on the dead list."""

import json
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from core import embedded
from core.redis_url import RedisURL
from core.tasks import celery_app
from core.tasks.dead import KINDS, Kind


@dataclass(frozen=True)
class Backlog:
    """What waits."""

    #: Calls in each queue that no worker has taken.
    waiting: dict[str, int]
    #: For how many seconds the oldest of them waits: since it was sent, or since its time has come. A queue is missing
    #: where that one does not say when it was sent, as those of plain Celery do not.
    oldest: dict[str, float]
    #: Calls that wait for their time: countdowns, retries.
    delayed: int
    #: Calls on the dead list.
    dead: dict[Kind, int]


def read() -> Backlog | None:
    """What waits now; None where the broker is no Redis.

    Raises:
        OSError: Redis does not answer; the Redis client has errors of its own for that, too.
    """
    url = embedded.broker_url()
    if not isinstance(url, RedisURL):
        return None
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options, queues = celery_app.get_app().conf.broker_transport_options, celery_app.queues()
    prefix = options.get("global_keyprefix", "")
    lists = {queue: lists_of(queue, options, prefix) for queue in queues}
    with url.client(retry=Retry(NoBackoff(), 0)) as client, client.pipeline(transaction=False) as pipe:
        for keys in lists.values():
            for key in keys:
                pipe.llen(key).lindex(key, -1)
        for key in ("core-delayed", *KINDS.values()):
            pipe.zcard(prefix + key)
        answers = iter(pipe.execute())
    waiting, oldest, now = dict[str, int](), dict[str, float](), time.time()
    for queue, keys in lists.items():
        pairs = [(next(answers), next(answers)) for _ in keys]
        waiting[queue] = sum(count for count, _ in pairs)
        ages = [seconds for _, last in pairs if last is not None and (seconds := age(last, now)) is not None]
        if ages or not waiting[queue]:
            oldest[queue] = max(ages, default=0.0)
    return Backlog(waiting, oldest, next(answers), dict(zip(KINDS, answers, strict=True)))


def lists_of(queue: str, options: dict[str, Any], prefix: str) -> list[str]:
    """The keys of a queue: one list for each priority, and the call of each that a worker is being woken with."""
    separator, steps = options.get("sep", "\x06\x16"), options.get("priority_steps", (0, 3, 6, 9))
    names = [f"{queue}{separator}{step}" if step else queue for step in steps]
    return [prefix + before + name for name in names for before in ("", "core-next-")]


def age(raw: bytes, now: float) -> float | None:
    """For how many seconds a call waits: since it was sent, or its time has come; None where it does not say so."""
    try:
        message = json.loads(raw)
        since = float(message["properties"]["timestamp"])
        if eta := message["headers"].get("eta"):
            since = max(since, datetime.fromisoformat(eta).timestamp())
    except (ValueError, TypeError, LookupError, AttributeError):
        return None  # anybody may have written it
    return max(now - since, 0.0)
