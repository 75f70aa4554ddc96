"""The caller's side: a call leaves this process for the broker."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from core import config, embedded
from core.broker_error import broker_error, never_sent
from core.errors import (
    BrokerUnreachable,
    ConfigurationError,
    CoreError,
    PublishError,
    TasksDisabled,
)
from core.redis_url import RedisURL
from core.tasks import bridge, celery_app, celery_config
from core.tasks.envelope import UNIQUE, Call, Envelope, Message, envelope, holder, new_id
from core.tasks.sender import MOST, REMEMBERED, NoAnswer, opened, sender
from core.tasks.stand_in import stand_in
from core.tasks.unique import PRELUDE

logger = logging.getLogger("core.tasks")

#: Calls that `send_many` gives to threads at once.
IN_THREADS = 32


async def send(call: Call) -> str:
    """Put a call into its queue; return its id, or that of the call which keeps it from being another one.

    The event loop stays free meanwhile.

    Raises:
        TasksDisabled: `task_enabled` is False.
        UnknownQueue: No task and no setting names the queue.
        PublishError: No broker took it within `task_publish_timeout`. Its `maybe_sent` says whether the
            message may have arrived all the same.
    """
    seconds = _seconds(call)
    if (instead := stand_in()) is not None:
        return await instead.send(call)
    until = asyncio.get_running_loop().time() + seconds
    way = _known(call) or await _learn(call, seconds)
    if way.envelope is None:
        return await _by_thread(call, seconds, until)
    errors, there = await _by_loop([call], way, seconds, until)
    if errors:
        raise errors[0]
    return there.get(0, call.id)


@dataclass
class Sent:
    """What became of many calls, each list in their order."""

    sent: list[Call] = field(default_factory=list)
    maybe_sent: list[Call] = field(default_factory=list)
    not_sent: list[Call] = field(default_factory=list)
    #: The first error, after which nothing more was sent.
    error: Exception | None = None
    #: For calls that were not sent because there is another one of their kind: its id, by theirs.
    there: dict[str, str] = field(default_factory=dict)


async def send_many(calls: Sequence[Call]) -> Sent:
    """Put calls of one task, with the same options, into their queue, in their order, until there is an error.

    Raises:
        TasksDisabled: `task_enabled` is False.
        UnknownQueue: No task and no setting names the queue.
    """
    loop, seconds, done, at = asyncio.get_running_loop(), _seconds(calls[0]), Sent(), 0
    if (instead := stand_in()) is not None:
        ids = [await instead.send(call) for call in calls]
        return Sent([*calls], there={c.id: other for c, other in zip(calls, ids, strict=True) if other != c.id})
    while at < len(calls) and done.error is None:
        until, chunk, errors = loop.time() + seconds, calls[at : at + MOST], dict[int, Exception]()
        try:
            way = _known(calls[0]) or await _learn(calls[0], seconds)
            if way.envelope is not None:
                errors, there = await _by_loop(chunk, way, seconds, until)
                done.there |= {chunk[number].id: other for number, other in there.items()}
            else:
                chunk = chunk[:IN_THREADS]
                outcomes = await asyncio.gather(
                    *(_by_thread(call, seconds, until) for call in chunk), return_exceptions=True
                )
                errors = {n: error for n, error in enumerate(outcomes) if isinstance(error, Exception)}
                done.there |= {
                    c.id: o for c, o in zip(chunk, outcomes, strict=True) if isinstance(o, str) and o != c.id
                }
        except PublishError as error:
            errors = dict.fromkeys(range(len(chunk)), error)
        for number, call in enumerate(chunk):
            failed = errors.get(number)
            maybe = isinstance(failed, PublishError) and failed.maybe_sent
            (done.sent if failed is None else done.maybe_sent if maybe else done.not_sent).append(call)
        done.error = next(iter(errors.values()), None)
        at += len(chunk)
    done.not_sent += calls[at:]
    return done


def _seconds(call: Call) -> float:
    settings = config.get_settings()
    if not settings.task_enabled:
        raise TasksDisabled(f"{call.task.name} was not queued")
    return settings.task_publish_timeout


@dataclass(frozen=True)
class _Way:
    """How the calls of one task that have the same options leave."""

    #: Their message, where the loop itself sends it; None is by Celery's `apply_async` in a thread.
    envelope: Envelope | None = None
    url: Any = None
    expires: int = 0
    #: Celery's `before_task_publish` and `after_task_publish`.
    before: Any = None
    after: Any = None
    #: The classes whose code sends calls in Celery, and that code.
    classes: tuple[Any, ...] = ()
    code: tuple[Any, ...] = ()

    def is_open(self) -> bool:
        """Whether the code is still the same: whoever has put something of theirs in its place wants to see calls."""
        task, app, producer = self.classes
        return self.code == (task.apply_async, app.send_task, producer.publish)


_BY_THREAD = _Way()
_ways: "WeakKeyDictionary[Any, dict[tuple[Any, ...], _Way]]" = WeakKeyDictionary()
os.register_at_fork(after_in_child=_ways.clear)  # a message names the process that it comes from


def _kind(call: Call) -> tuple[Any, ...]:
    """What changes more of a message than each call does by itself."""
    options = call.options
    return (options.get("queue"), options.get("priority"), "expires" in options) if options else (None, None, False)


def _known(call: Call) -> _Way | None:
    """How this call leaves, if that is known without asking anybody."""
    celery_task = celery_app.bound(call.task)
    ways = _ways.get(celery_task) if celery_task is not None else None
    way = ways.get(_kind(call)) if ways else None
    return way if way is None or way.envelope is None or way.is_open() else _BY_THREAD


async def _learn(call: Call, seconds: float) -> _Way:
    """Find out how this call leaves, in a thread: it may import task modules, or start the development server."""

    with _told(call, seconds):
        return await bridge.in_thread(lambda _: _way(call), seconds)


def _way(call: Call) -> _Way:
    if (known := _known(call)) is not None:
        return known  # another call of that kind has learned it meanwhile
    if queue := call.options.get("queue"):
        celery_app.check_queue(queue)
    celery_task = celery_app.celery_task(call.task)
    conf, url, way = celery_task.app.conf, embedded.broker_url(), _BY_THREAD
    ours = isinstance(url, RedisURL) and (conf.broker_write_url, conf.broker_use_ssl or None) == (
        url.for_celery(), url.tls_options(),
    )  # fmt: skip
    from celery import Celery
    from celery.signals import after_task_publish, before_task_publish
    from kombu.messaging import Producer

    classes = type(celery_task), Celery, Producer
    code = classes[0].apply_async, Celery.send_task, Producer.publish
    homes = "celery.app.task", "celery.app.base", "kombu.messaging"
    celerys = all(
        type(function) is FunctionType and function.__globals__["__name__"] == home
        for function, home in zip(code, homes, strict=True)
    )
    if ours and celerys and (made := envelope(celery_task, call)):
        import redis.asyncio  # noqa: F401  # it takes a while

        expires = int(getattr(celery_task.app.backend, "expires", 0) or 0)
        way = _Way(made, url, expires, before_task_publish, after_task_publish, classes, code)
    if way is _BY_THREAD:
        logger.debug("calls of %s are sent by Celery itself, each in a thread", call.task.name)
    _ways.setdefault(celery_task, {})[_kind(call)] = way
    return way


async def prepare(seconds: float) -> None:
    """Do what the first calls from this loop would wait for: find out how they leave, and connect.

    Args:
        seconds: How long the broker has for its answer.

    Raises:
        BrokerUnreachable: It did not answer.
        ConfigurationError: It does not let us in, or the settings cannot be used.
    """

    def learn() -> list[_Way]:
        blanks = [(task, celery_app.celery_task(task).body.arguments.blank()) for task in celery_app.declared()]
        return [_way(Call(task, new_id(), args, kwargs, {})) for task, (args, kwargs) in blanks]

    by_loop = [way for way in await asyncio.to_thread(learn) if way.envelope is not None]
    error: BaseException | None
    try:
        if by_loop:
            own = await opened(by_loop[0].url, by_loop[0].expires)
            await own.send(list, asyncio.get_running_loop().time() + seconds)  # nothing, which is answered all the same
        else:
            await bridge.in_thread(lambda _: celery_app.producer(), seconds)
        return
    except bridge.NotInTime:
        error = None
    except NoAnswer as none:
        error = none.cause
    if isinstance(error, CoreError):
        raise error
    late = TimeoutError(f"no answer within {seconds:g} s")
    raise broker_error(error or late, _address()) from error


async def _by_loop(
    calls: Sequence[Call], way: _Way, seconds: float, until: float
) -> tuple[dict[int, Exception], dict[int, str]]:
    """Send calls from this loop; return the errors of those that were not sent, or perhaps not, by their number, and
    the ids of the calls in whose favour others were not sent.
    """
    assert way.envelope is not None
    message, announced = way.envelope.message, list[Callable[[Any], None]]()

    def make() -> list[Message]:
        return [message(call) for call in calls]

    if way.before.receivers or way.after.receivers:
        pairs = [way.envelope.announced(call, way.before) for call in calls]
        announced, make = [tell for _, tell in pairs], [message for message, _ in pairs].copy
    try:
        own = sender() or await opened(way.url, way.expires)
        refused, there = await own.send(make, until)
    except NoAnswer as none:
        return {number: _unsent(call, none.cause, none.written, seconds) for number, call in enumerate(calls)}, {}
    for number, tell in enumerate(announced):
        if number not in refused:
            tell(way.after)
    return {number: _unsent(calls[number], text, False, seconds) for number, text in refused.items()}, there


class _Guard:
    """What keeps a call from being sent twice, where that cannot be looked at in the step that sends it."""

    def __init__(self, celery_task: Any, call: Call) -> None:
        app, self._call = celery_task.app, call
        self._prefix = str(app.conf.broker_transport_options.get("global_keyprefix", ""))
        kept = celery_config.is_one_database(app.conf) and app.backend.expires and not celery_task.ignore_result
        result: str | bytes = app.backend.get_key_for_task(call.id) if kept else ""
        self._keys: list[str | bytes] = [key and self._prefix + key for key in (call.lock, call.once)]
        self._keys.append(result)
        #: What Celery is told of it.
        self.options = {"headers": {UNIQUE: call.lock}} if call.lock else {}

    def enter(self) -> str | None:
        """The id of the call in whose favour this one is not sent; None where it is."""
        if not (self._call.once or self._call.lock):
            return None
        words = [holder(self._call), self._call.lock_seconds, REMEMBERED]
        other = self._run(PRELUDE + _ENTER, *words)
        return other.decode() if isinstance(other, bytes) else None

    def leave(self) -> None:
        """It was not sent."""
        if self._call.once or self._call.lock:
            self._run(_LEAVE, holder(self._call))

    def _run(self, script: str, *words: Any) -> Any:
        url = embedded.broker_url()
        with (url if isinstance(url, RedisURL) else embedded.result_url()).client() as client:
            return client.eval(script, 0, *self._keys, *words)  # one that is empty is no key that anybody may touch


_ENTER = """
local lock, once, result, holder = unpack(ARGV)
local other = lock ~= '' and taken(lock, result, holder)
if other then return other end
if once ~= '' and not redis.call('SET', once, '1', 'NX', 'EX', ARGV[6]) then
  return string.match(holder, '^[^\\n]*')
end
if lock ~= '' then redis.call('SET', lock, holder, 'EX', ARGV[5]) end
return false
"""
_LEAVE = """
local lock, once, result, holder = unpack(ARGV)
if once ~= '' then redis.call('DEL', once) end
if lock ~= '' and redis.call('GET', lock) == holder then redis.call('DEL', lock) end
"""


async def _by_thread(call: Call, seconds: float, until: float) -> str:
    """Let Celery itself send a call, in a thread."""

    def publish(handoff: bridge.Handoff) -> str:
        producer = celery_app.producer()
        celery_task = celery_app.celery_task(call.task)
        guard = _Guard(celery_task, call)
        if not handoff.begin():
            return call.id  # nobody waits for it any more: it must not be sent
        if there := guard.enter():
            return there
        try:
            with celery_task.app.amqp.as_current():
                celery_task.apply_async(
                    call.args,
                    call.kwargs,
                    task_id=call.id,
                    producer=producer,
                    event_dispatcher=celery_app.event_dispatcher(),
                    retry=False,
                    **call.lineage(),
                    **call.options,
                    **guard.options,
                )
        except Exception as error:
            celery_app.drop_producer()
            if never_sent(error):
                guard.leave()
            raise
        return call.id

    with _told(call, seconds):
        return await bridge.in_thread(publish, until - asyncio.get_running_loop().time())


@contextmanager
def _told(call: Call, seconds: float) -> Iterator[None]:
    """Tell what happens in a thread as an error of this call."""
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    try:
        yield
        return
    except bridge.NotInTime as late:
        failed = _unsent(call, None, late.begun, seconds)
    except (BrokerUnreachable, ConfigurationError, OperationalError, RedisError, OSError) as error:
        failed = _unsent(call, error, True, seconds)
    raise failed


def _unsent(call: Call, cause: Exception | str | None, maybe: bool, seconds: float) -> Exception:
    """The error of a call that did not arrive, or perhaps did.

    Args:
        cause: What happened, or what Redis answered; None is that there was no more time.
        maybe: Whether it may have arrived, as far as *cause* does not tell.
        seconds: How long it took, at most.
    """
    if cause is None:
        advice = "" if maybe else " Start it, or set REDIS_URL to one that is running."
        reason = f"no broker answered at {_where()} within {seconds:g} s.{advice}"
        return PublishError(call.task.name, call.id, reason, maybe_sent=maybe)
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError, ResponseError

    cause = ResponseError(cause) if isinstance(cause, str) else cause
    away = isinstance(cause, BrokerUnreachable) or (isinstance(cause, ConfigurationError) and cause.__cause__)
    if not away and not isinstance(cause, RedisError | OperationalError | OSError):
        return cause  # the project's own mistake, which has nothing to do with this call
    known = cause if isinstance(cause, CoreError) else broker_error(cause, _address())
    maybe = maybe and cause is not known and not never_sent(cause)
    error = PublishError(call.task.name, call.id, str(known), maybe_sent=maybe)
    error.__cause__ = cause
    return error


def _address() -> Any:
    """Where the broker is, without asking whether it is there."""
    root = config.get_project().root
    return config.get_settings().broker_url or RedisURL(host=None, port=0, socket=str(embedded.socket_path(root)), db=0)


def _where() -> str:
    """Where the broker is, for a message."""
    url = config.get_settings().broker_url
    return str(url) if url else "the development server"
