"""The dead list: calls that no worker runs any more, kept for whoever looks after them.

Workers put calls on it with the Lua functions of `PRELUDE`. What was set aside, because it cannot be read, has a task
that nobody knows, or lost its worker again and again, stays until it is retried or purged. What failed for good stays
for 7 days, and of that 10,000 calls at most.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from redis.exceptions import RedisError

from core import embedded
from core.broker_error import broker_error
from core.errors import ConfigurationError, CoreError
from core.redis_url import RedisURL


def _lua(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


#: Lua: `set_aside(prefix, kind, entry)` puts a call on the list. Scripts that use it are prefixed with this text.
PRELUDE = _lua("dead.lua")
_RETRY = PRELUDE + _lua("dead_retry.lua")
_PURGE = PRELUDE + _lua("dead_purge.lua")
# A result is taken away only if nothing newer has taken its place.
_FORGET = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"

#: The header that says that a call's arguments are not for people to read.
SENSITIVE = "core-sensitive"
T = TypeVar("T")
Kind = Literal["set-aside", "failed"]
#: Where the times of each kind of call are.
KINDS: dict[Kind, str] = {"set-aside": "core-dead", "failed": "core-failed"}
#: Entries that are read at once. Each comes with its whole message.
BATCH = 100


@dataclass(frozen=True)
class DeadCall:
    """One call on the list. What cannot be known of a message that nobody can read is None."""

    id: str
    task: str | None
    queue: str | None
    reason: str
    #: When it came onto the list (ISO 8601, UTC).
    at: str
    kind: Kind
    #: Everything that was in the queue; None where it was not kept, and in what `DeadList.entries` gives.
    message: str | None = field(default=None, repr=False)

    def summary(self) -> dict[str, str | None]:
        """What a list says of it."""
        return {"id": self.id, "task": self.task, "queue": self.queue, "reason": self.reason, "at": self.at}

    def details(self) -> dict[str, Any]:
        """All there is to say of it. What cannot be read of its message, headers or arguments, is None, and so is what
        is not to be shown of them: the headers have the others as text.
        """
        headers, args, kwargs = _contents(self.message)
        read = {"headers": headers, "args": args, "kwargs": kwargs, "message": self.message}
        if headers and headers.get(SENSITIVE):
            read |= {"args": None, "kwargs": None, "message": None}
        return {**self.summary(), "kind": self.kind, **read}


class Outcome(StrEnum):
    """What became of a retry."""

    PUT_BACK = "put back"
    NOT_LISTED = "is not on the dead list"
    #: `task_store_arguments` was False for the worker that had the call.
    NOT_KEPT = "cannot be put back: its arguments were not kept (task_store_arguments). Call the task again"


class Results:
    """Where the results of calls are stored."""

    def __init__(self, url: RedisURL, key: Callable[[str], str | bytes]) -> None:
        self._url, self._make_key, self._client = url, key, url.client()

    def read(self, task_id: str) -> bytes | None:
        """What is stored of a call now."""
        with _told(self._url):
            stored: bytes | None = self._client.get(self._key(task_id))
        return stored

    def forget(self, task_id: str, stored: bytes) -> bool:
        """Take away what is stored of a call if that is still *stored*; whether it was."""
        with _told(self._url):
            return bool(self._client.eval(_FORGET, 1, self._key(task_id), stored))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _key(self, task_id: str) -> str | bytes:
        # Celery makes keys of text only. A call whose id is none has no result.
        return self._make_key(_key(task_id).decode(errors="replace"))


class DeadList:
    """The dead list in one database. Its methods raise what the Redis client raises.

    Args:
        client: A Redis client that answers with bytes.
        prefix: What stands before every key (kombu's `global_keyprefix`).
        results: Where the results are, which a retry takes away; None leaves them.
    """

    def __init__(self, client: Any, prefix: str = "", results: Results | None = None) -> None:
        self._client, self._prefix, self._results = client, prefix, results

    def count(self) -> int:
        """How many calls are on the list."""
        return int(self._client.hlen(f"{self._prefix}core-dead-calls"))

    def entries(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        kind: Kind | None = None,
        older_than: float = 0,
        limit: int | None = None,
    ) -> Iterator[DeadCall]:
        """The calls on the list, the youngest first. They are read as they are asked for, without their messages.

        Args:
            task: Only calls of this task.
            queue: Only calls from this queue.
            kind: Only calls that are there for this reason.
            older_than: Only calls that are on the list for at least this many seconds.
            limit: How many calls at most; None is all of them.
        """
        calls = self._read(self._times(kind, older_than))
        return islice((call for call in calls if task in (None, call.task) and queue in (None, call.queue)), limit)

    def ids(
        self, *, task: str | None = None, queue: str | None = None, kind: Kind | None = None, older_than: float = 0
    ) -> list[str]:
        """The ids of what `entries` gives."""
        if task is None and queue is None:
            return [_id(key) for key, _, _ in self._times(kind, older_than)]
        return [call.id for call in self.entries(task=task, queue=queue, kind=kind, older_than=older_than)]

    def find(self, call_id: str) -> DeadCall:
        """One call, with its message.

        Raises:
            CoreError: It is not on the list.
        """
        kept = self._client.hget(f"{self._prefix}core-dead-calls", _key(call_id))
        for kind, key in KINDS.items():
            at = self._client.zscore(self._prefix + key, _key(call_id))
            if kept is not None and at is not None:
                return _call(call_id, kept, at, kind, whole=True)
        raise CoreError(f"{call_id} is not on the dead list. `core dead list` says what is.")

    def retry(self, call_id: str) -> Outcome:
        """Put a call back into its queue as it was, behind those that wait there; it is pending again.

        However many do so at the same moment, one of them puts it back; the others do not find it on the list.
        """
        while True:
            # In this order: a result that is read while the call is on the list is not that of another's retry.
            stored = self._results.read(call_id) if self._results else None
            kept = self._client.hget(f"{self._prefix}core-dead-calls", _key(call_id))
            if kept is None:
                return Outcome.NOT_LISTED
            entry = _object(kept)
            if entry.get("message") is None or entry.get("list") is None:
                return Outcome.NOT_KEPT
            if stored is None or self._results is None or self._results.forget(call_id, stored):
                break
        done = self._client.eval(_RETRY, 0, self._prefix, _key(call_id))
        return {1: Outcome.PUT_BACK, 0: Outcome.NOT_LISTED}.get(done, Outcome.NOT_KEPT)

    def purge(self, ids: Iterable[str], *, older_than: float = 0) -> int:
        """Take calls off the list for good; how many were there.

        Args:
            ids: Their ids. One that is not on the list is passed over.
            older_than: Those that are on the list for fewer seconds stay.
        """
        purged = 0
        for some in _batches([_key(call_id) for call_id in ids], 1000):
            purged += self._client.eval(_PURGE, 0, self._prefix, self._latest(older_than), *some)
        return purged

    def _latest(self, older_than: float) -> float | str:
        """When a call that is on the list for so many seconds came there, by Redis' clock, which dates the entries."""
        if not older_than:
            return "+inf"
        seconds, micros = self._client.time()
        return float(seconds + micros / 1e6 - older_than)

    def _times(self, kind: Kind | None, older_than: float) -> list[tuple[bytes, float, Kind]]:
        """The ids on the list with their times, the youngest first."""
        latest = self._latest(older_than)
        kinds: list[Kind] = [kind] if kind else list(KINDS)
        with self._client.pipeline(transaction=True) as pipe:  # a call that changes its kind is seen once
            for one in kinds:
                pipe.zrevrangebyscore(self._prefix + KINDS[one], latest, "-inf", withscores=True)
            answers = pipe.execute()
        found: list[tuple[bytes, float, Kind]] = []
        for one, answer in zip(kinds, answers, strict=True):
            found.extend((key, at, one) for key, at in answer)
        return sorted(found, key=lambda entry: entry[1], reverse=True)

    def _read(self, times: Sequence[tuple[bytes, float, Kind]]) -> Iterator[DeadCall]:
        for some in _batches(times, BATCH):
            kept = self._client.hmget(f"{self._prefix}core-dead-calls", [key for key, _, _ in some])
            for (key, at, kind), value in zip(some, kept, strict=True):
                if value is not None:  # else it was retried or purged meanwhile
                    yield _call(_id(key), value, at, kind)


@contextmanager
def opened(app: Any) -> Iterator[DeadList]:
    """The dead list of this process's project; *app* is its Celery application.

    Raises:
        BrokerUnreachable: Redis does not answer.
        ConfigurationError: The broker is no Redis, or refuses the user, the password or the database.
    """
    url = embedded.broker_url()
    if not isinstance(url, RedisURL):
        raise ConfigurationError(f"There is no dead list: it is kept in a broker's Redis, and {url} is none.")
    results = Results(embedded.result_url(), app.backend.get_key_for_task)
    prefix = app.conf.broker_transport_options.get("global_keyprefix", "")
    try:
        with _told(url), url.client() as client:
            yield DeadList(client, prefix, results)
    finally:
        results.close()


@contextmanager
def _told(url: RedisURL) -> Iterator[None]:
    # No OSError: the client makes its own errors of them, and a caller's broken pipe is none of Redis.
    try:
        yield
    except RedisError as error:
        raise broker_error(error, url) from error


def _batches(of: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (of[start : start + size] for start in range(0, len(of), size))


# An id may come from a message that is no UTF-8; it is told from others all the same.
def _id(key: bytes) -> str:
    return key.decode(errors="surrogateescape")


def _key(call_id: str) -> bytes:
    return call_id.encode(errors="surrogateescape")


def _call(call_id: str, kept: bytes, at: float, kind: Kind, *, whole: bool = False) -> DeadCall:
    entry = _object(kept)
    since = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    message = entry.get("message") if whole else None
    return DeadCall(call_id, entry.get("task"), entry.get("queue"), entry.get("reason") or "", since, kind, message)


def _object(text: bytes) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(text.decode(errors="replace"))
    return made


def _contents(message: str | None) -> tuple[dict[str, Any] | None, list[Any] | None, dict[str, Any] | None]:
    """Headers and arguments of a Celery message, as far as it is one."""
    headers: Any = None
    try:
        envelope = json.loads(message or "", parse_constant=str)  # NaN is no JSON for others
        headers, body = envelope.get("headers"), envelope["body"]
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        args, kwargs, *_ = json.loads(body, parse_constant=str)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        args = kwargs = None
    return (
        headers if isinstance(headers, dict) else None,
        args if isinstance(args, list) else None,
        kwargs if isinstance(kwargs, dict) else None,
    )
