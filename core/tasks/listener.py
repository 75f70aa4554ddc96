"""Waits for results: one subscription on one connection for each event loop.

Every worker publishes a result under its key when it stores it. Whoever waits here shares one connection,
without a thread and without asking again and again; a thousand waiters are ordinary.
"""

import asyncio
import logging
import os
import random
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from core import embedded
from core.broker_error import broker_error
from core.errors import BrokerUnreachable, CoreError
from core.redis_url import RedisURL
from core.tasks import celery_app

logger = logging.getLogger("core.tasks")

FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
#: Channels that one SUBSCRIBE, and keys that one MGET, may name.
BATCH = 500
#: Seconds after which a subscription that nobody waits on is given up.
IDLE = 30.0
LONGEST_PAUSE = 2.0
#: Seconds of silence after which the server of a subscription is asked whether it is there, and that it has to answer.
SILENCE, ANSWER = 10.0, 5.0


class Listener:
    """The results that one event loop waits for, and the connections it reads them by."""

    def __init__(self, url: RedisURL, prefix: str) -> None:
        self._client = url.async_client()
        self._url, self._prefix = url, prefix
        self._waiting: dict[str, set[asyncio.Future[dict[str, Any]]]] = {}
        self._new: set[str] = set()
        self._unwanted: set[str] = set()
        self._commands = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def key(self, task_id: str) -> str:
        """The key, and channel, of a call's result."""
        return self._prefix + task_id

    async def read(self, task_id: str) -> dict[str, Any] | None:
        """What is stored of a call now, or None.

        Raises:
            BrokerUnreachable: Redis does not answer.
        """
        data = await self.command("GET", self.key(task_id))
        return _decoded(data) if data is not None else None

    async def command(self, *words: str | int) -> Any:
        """Send one command and return the answer.

        Raises:
            BrokerUnreachable, ConfigurationError: Redis does not answer, or does not let us in.
        """
        from redis.exceptions import RedisError

        self._commands += 1
        self._keep_running()
        try:
            return await self._client.execute_command(*words)
        except (RedisError, OSError) as error:
            raise broker_error(error, self._url) from error
        finally:
            self._commands -= 1
            self._wake.set()

    async def final(self, task_id: str) -> dict[str, Any]:
        """Wait until a call has its final state, and return what is stored of it."""
        key = self.key(task_id)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(key, set())
        waiters.add(future)
        self._unwanted.discard(key)
        if len(waiters) == 1:
            self._new.add(key)
        self._keep_running()
        self._wake.set()
        try:
            return await future
        finally:
            waiters.discard(future)
            if not waiters and self._waiting.get(key) is waiters:
                self._drop(key)

    def _drop(self, key: str) -> None:
        self._waiting.pop(key, None)
        self._new.discard(key)
        self._unwanted.add(key)
        self._wake.set()

    def _keep_running(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="core-tasks-listener")

    async def _run(self) -> None:
        """Own the connections: keep the subscription while somebody waits, close everything at the end."""
        pause = 0.0
        try:
            while True:
                _end_if_cancelled()
                try:
                    if not await self._wanted():
                        return
                    await self._subscription()
                    pause = 0.0
                except CoreError as error:
                    if not isinstance(error, BrokerUnreachable):
                        self._fail(error)
                        continue
                    if not pause:
                        logger.warning("results: %s Waiting goes on.", error)
                    pause = min(max(pause * 2, 0.05), LONGEST_PAUSE)
                    await asyncio.sleep(pause * (0.5 + random.random() / 2))
        except Exception as error:
            self._fail(error)
            raise
        finally:
            await self._client.aclose()

    async def _wanted(self) -> bool:
        """Wait until somebody waits for a result; False when nobody has asked for anything for a while."""
        while not self._waiting:
            self._wake.clear()
            try:
                async with asyncio.timeout(IDLE):
                    await self._wake.wait()
            except TimeoutError:
                if not self._commands:
                    return False
        return True

    def _fail(self, error: Exception) -> None:
        for key in list(self._waiting):
            for future in self._waiting.pop(key):
                if not future.done():
                    future.set_exception(error)

    async def _subscription(self) -> None:
        """Subscribe to what is waited for, until the connection is lost or nobody waits."""
        from redis.exceptions import RedisError

        pubsub = self._client.pubsub()
        self._new, self._unwanted = set(self._waiting), set()
        try:
            await pubsub.connect()
            reader = asyncio.create_task(self._read(pubsub))
            try:
                while True:
                    self._wake.clear()
                    await self._change(pubsub)
                    _end_if_cancelled()
                    waker = asyncio.ensure_future(self._wake.wait())
                    patience = None if self._waiting else IDLE
                    await asyncio.wait({reader, waker}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                    asked = waker.done()
                    waker.cancel()
                    if reader.done() or not (asked or self._waiting):
                        break
            finally:
                while not reader.done():
                    reader.cancel()
                    await asyncio.wait({reader}, timeout=0.1)
                failed = None if reader.cancelled() else reader.exception()
            if failed is not None:
                raise failed
        # A RuntimeError: reading and subscribing have both found the connection lost, and made it anew at once.
        except (RedisError, OSError, RuntimeError) as error:
            raise broker_error(error, self._url) from error
        finally:
            await pubsub.aclose()

    async def _change(self, pubsub: Any) -> None:
        """Subscribe to what is new, and drop what nobody waits for, many at a time."""
        while self._new:
            some = [self._new.pop() for _ in range(min(len(self._new), BATCH))]
            await pubsub.subscribe(*some)
        if len(self._unwanted) >= 100:  # lazily: a channel nobody publishes to costs nothing
            some, self._unwanted = list(self._unwanted), set()
            await pubsub.unsubscribe(*some)

    async def _read(self, pubsub: Any) -> None:
        """Read what arrives. A subscription's confirmation comes first, and only then is its key looked at, so a
        result stored at any moment is seen by one of the two. A server that is gone without a word, or was replaced
        by another one, is found by its silence.
        """
        from redis.exceptions import TimeoutError as NoAnswer

        confirmed: list[str] = []
        now, due = asyncio.get_running_loop().time, 0.0  # when an answer is due, if one was asked for
        while True:
            _end_if_cancelled()
            message = await pubsub.get_message(timeout=0 if confirmed else ANSWER if due else SILENCE)
            if message is None:
                if confirmed:
                    await self._look(confirmed)
                    confirmed = []
                elif not due:
                    await pubsub.ping("core")
                    due = now() + ANSWER
                elif now() >= due:
                    raise NoAnswer(f"no answer within {ANSWER:g} s")
                continue
            due = 0.0
            if message["type"] == "subscribe":
                confirmed.append(message["channel"].decode())
                if len(confirmed) >= BATCH:
                    await self._look(confirmed)
                    confirmed = []
            elif message["type"] == "message":
                self._found(message["channel"].decode(), message["data"])

    async def _look(self, keys: Iterable[str]) -> None:
        if wanted := [key for key in keys if key in self._waiting]:
            for key, data in zip(wanted, await self._client.mget(wanted), strict=True):
                if data is not None:
                    self._found(key, data)

    def _found(self, key: str, data: bytes | str) -> None:
        if key not in self._waiting:
            return
        meta = _decoded(data)
        if meta.get("status") in FINAL:  # started, progress and retry pass by on the same channel
            for future in self._waiting[key]:
                if not future.done():
                    future.set_result(meta)
            self._drop(key)


def _end_if_cancelled() -> None:
    """Notice a cancellation that was swallowed: on Python 3.11 `asyncio.wait_for` may do that to one which comes
    as the write that it waits for ends, and the client writes by it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _decoded(data: bytes | str) -> dict[str, Any]:
    from kombu.utils.json import loads

    try:
        meta = loads(data)  # type: ignore[no-untyped-call]
    except ValueError:
        meta = None
    if not isinstance(meta, dict):
        return {"status": "FAILURE", "result": {"exc_type": "ValueError", "exc_module": "builtins",
                "exc_message": ["the stored result is not JSON"]}}  # fmt: skip
    return meta


_listeners: "WeakKeyDictionary[asyncio.AbstractEventLoop, Listener]" = WeakKeyDictionary()
os.register_at_fork(after_in_child=_listeners.clear)


async def listener() -> Listener:
    """The running loop's listener, made on first use."""
    loop = asyncio.get_running_loop()
    found = _listeners.get(loop)
    if found is None:
        # Reading settings, importing Celery and starting the development server take their time.
        url, prefix = await asyncio.to_thread(_where)
        found = _listeners.setdefault(loop, Listener(url, prefix))
    return found


def _where() -> tuple[RedisURL, str]:
    key = celery_app.get_app().backend.get_key_for_task("id")
    return embedded.result_url(), (key.decode() if isinstance(key, bytes) else key).removesuffix("id")
