"""Asks for results: one connection for each event loop, for everyone who waits there.

Every worker publishes a result under its key when it stores it. Whoever waits shares one subscription, without
a thread and without asking again and again; ten thousand waiters are ordinary.
"""

import asyncio
import json
import logging
import os
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from core import config, embedded
from core.broker_error import broker_error
from core.errors import BrokerUnreachable, CoreError
from core.redis_url import SCHEMES, RedisURL
from core.tasks import cancellation, celery_app
from core.tasks.wire import Wire

logger = logging.getLogger("core.tasks")

FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
#: What is stored of a call that no worker has touched: nothing that anybody waits for.
PENDING = b'{"status": "PENDING"'
#: Keys that one command names, commands that one write holds, and channels that are left together, at most.
BATCH = 100
#: Seconds after which a connection that nobody needs is closed.
IDLE = 30.0
LONGEST_PAUSE = 2.0
#: Seconds of silence after which the server is asked whether it is there, and that it has to answer.
SILENCE, ANSWER = 10.0, 5.0

Future = asyncio.Future[Any]
#: A command, and who waits for its answer. Nobody does by it for what is stored under the keys of an MGET.
Command = tuple[tuple[str | int, ...], Future | None]


class Listener:
    """The results that one event loop asks for, and the connection that it asks over."""

    def __init__(self, url: RedisURL, prefix: str, elsewhere: bool) -> None:
        #: Whether Celery keeps the results in what is no Redis, and cancellations alone are here.
        self.elsewhere = elsewhere
        self._client = url.async_client(socket_timeout=None)  # no timer for each write and answer: see `_watch`
        self._url, self._prefix = url, prefix
        self._waiting: dict[str, list[Future]] = {}
        #: Who is told of each other state as well.
        self._following: dict[str, list[Callable[[dict[str, Any]], object]]] = {}
        #: Channels to subscribe to, channels to leave, commands to send, and those that are sent, in order.
        self._new: set[str] = set()
        self._unwanted: set[str] = set()
        self._commands: list[Command] = []
        self._sent: deque[Command] = deque()
        self._wire: Wire | None = None
        self._due, self._hurry = False, asyncio.Event()
        #: Whether the connection stays open also while nobody needs it.
        self.lasting = False
        self._heard = 0.0
        self._task: asyncio.Task[None] | None = None

    def key(self, task_id: str) -> str:
        """The key, and channel, of a call's result."""
        return self._prefix + task_id

    async def read(self, task_id: str) -> dict[str, Any] | None:
        """What is stored of a call now, or None.

        Raises:
            BrokerUnreachable: Redis does not answer.
        """
        data = (await self.command("MGET", self.key(task_id)))[0]
        return decoded(data) if data is not None else None

    async def command(self, *words: str | int) -> Any:
        """Send one command and return the answer, which must not be nil.

        Raises:
            BrokerUnreachable, ConfigurationError: Redis does not answer, or does not let us in.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = loop.call_later(ANSWER, self._too_late, future)
        self._commands.append((words, future))
        self._hurry.set()
        self._stir()
        try:
            return await future
        finally:
            timer.cancel()

    async def cancel(self, task_id: str, store: bool) -> str:
        """Remember for all workers that a call is cancelled, and return the state in which it was.

        Args:
            store: Whether a call that no worker has is given its outcome.

        Raises:
            BrokerUnreachable: Redis does not answer; whether the call is cancelled is open.
        """
        conf, expires = celery_app.get_app().conf, config.get_settings().task_result_expires
        state: bytes = await self.command(
            "EVAL", cancellation.CANCEL, 2, self.key(task_id), cancellation.cancel_key(conf, task_id),
            json.dumps(cancellation.outcome(task_id)), expires, int(store), cancellation.delayed_key(conf), task_id,
        )  # fmt: skip
        return state.decode()

    async def final(self, task_id: str, timeout: float | None) -> dict[str, Any]:
        """Wait until a call has its final state, and return what is stored of it.

        Raises:
            TimeoutError: That took longer than *timeout* seconds.
        """
        loop = asyncio.get_running_loop()
        with self._waiter(self.key(task_id)) as future:
            timer = loop.call_later(timeout, _fail, [future], TimeoutError()) if timeout is not None else None
            try:
                meta: dict[str, Any] = await future
                return meta
            finally:
                if timer is not None:
                    timer.cancel()

    async def changes(self, task_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """What is stored of a call, now and after each change, until it has its final state.

        Who is slow is given the latest.
        """
        key, latest, changed = self.key(task_id), list[dict[str, Any]](), asyncio.Event()

        def tell(meta: dict[str, Any]) -> None:
            latest[:] = [meta]
            changed.set()

        with self._waiter(key, look=True) as ended:
            ended.add_done_callback(lambda _: changed.set())
            followers = self._following.setdefault(key, [])
            followers.append(tell)
            try:
                while not ended.done() or latest:
                    await changed.wait()
                    changed.clear()
                    if latest:
                        yield latest.pop()
            finally:
                followers.remove(tell)
                if not followers and self._following.get(key) is followers:
                    del self._following[key]
            ended.result()

    @contextmanager
    def _waiter(self, key: str, look: bool = False) -> Iterator[Future]:
        """A future that gets a call's final state.

        Args:
            look: Whether to look at what is stored also where others wait for the same call already.
        """
        future = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(key, [])
        waiters.append(future)
        if look or len(waiters) == 1:
            self._unwanted.discard(key)
            self._new.add(key)
        self._stir()
        try:
            yield future
        finally:
            waiters.remove(future)
            if not waiters and self._waiting.get(key) is waiters:
                self._leave(key)

    async def close(self) -> None:
        """Close the connection. Who still waits is cancelled."""
        commands = [future for _, future in (*self._sent, *self._commands) if future]
        for future in [*commands, *(future for futures in self._waiting.values() for future in futures)]:
            future.cancel()
        self._waiting.clear()
        self._commands.clear()
        self.lasting = False
        while self._task is not None and not self._task.done():
            self._task.cancel()  # below us it may be swallowed in the middle of a write
            await asyncio.wait({self._task}, timeout=0.1)

    def _too_late(self, future: Future) -> None:
        _fail([future], BrokerUnreachable(str(self._url), f"no answer within {ANSWER:g} s"))

    def _leave(self, key: str) -> None:
        del self._waiting[key]
        self._new.discard(key)
        self._unwanted.add(key)
        if len(self._unwanted) >= BATCH:
            self._speak_soon()

    def _stir(self) -> None:
        self._speak_soon()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="core-tasks-listener")

    async def _run(self) -> None:
        """Keep a connection while somebody needs one."""
        pause, now = 0.0, asyncio.get_running_loop().time
        while self._waiting or self._commands:
            self._hurry.clear()
            began = now()
            try:
                await self._talk()
            except BrokerUnreachable as error:
                if self._heard < began:
                    self._give_up(error)
                elif self._heard - began > LONGEST_PAUSE:
                    pause = 0.0
                if self._waiting and not pause:
                    logger.warning("results: %s Waiting goes on.", error)
                pause = min(max(pause * 2, 0.05), LONGEST_PAUSE)
                with suppress(TimeoutError):  # a command does not wait
                    async with asyncio.timeout(pause * (0.5 + random.random() / 2)):
                        await self._hurry.wait()
            except Exception as error:
                self._give_up(error, waiters=True)
                if not isinstance(error, CoreError):
                    raise

    def _give_up(self, error: Exception, waiters: bool = False) -> None:
        _fail([future for _, future in self._commands if future], error)
        self._commands.clear()
        if waiters:
            _fail([future for futures in self._waiting.values() for future in futures], error)
            self._waiting.clear()

    async def _talk(self) -> None:
        """Ask and listen over a new connection, until it is lost or has not been needed for a while."""
        from redis.exceptions import RedisError

        connection = self._client.connection_pool.make_connection()
        try:
            async with asyncio.timeout(ANSWER):
                await connection.connect()
            self._heard = asyncio.get_running_loop().time()
            self._new, self._unwanted = set(self._waiting), set()
            self._wire = Wire(connection, self._answered, self._pushed)
            self._speak()
            await self._watch(self._wire)
        except (RedisError, OSError) as error:
            raise broker_error(error, self._url) from error
        finally:
            self._wire = None
            await connection.disconnect(nowait=True)
            await self._client.aclose()
            self._commands = [command for command in (*self._sent, *self._commands) if command[1]]
            self._sent.clear()

    async def _watch(self, wire: Wire) -> None:
        """Find a connection that is lost, one that nobody needs, and a server that is gone without a word."""
        from redis.exceptions import TimeoutError as NoAnswer

        now = asyncio.get_running_loop().time
        needed = now()
        while True:
            await asyncio.wait((wire.lost,), timeout=ANSWER)
            if wire.lost.done():
                wire.lost.result()
            silent = now() - self._heard
            if silent >= SILENCE + ANSWER:
                raise NoAnswer(f"no answer within {ANSWER:g} s")
            if silent >= SILENCE:
                self._commands.append((("PING",), None))
                self._speak_soon()
            if self._waiting or self._commands or self._sent:
                needed = now()
            elif now() - needed >= IDLE and not self.lasting:
                return

    def _speak_soon(self) -> None:
        """Send what is to be said; what one turn of the loop has to say leaves together."""
        if self._wire is not None and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._speak)

    def _speak(self) -> None:
        self._due = False
        while self._wire is not None and (words := self._words()):
            self._wire.write(*words)

    def _words(self) -> list[tuple[str | int, ...]]:
        """The next commands. Subscribing comes first, and only then is a key looked at: so a result stored at any
        moment is seen by one of the two.
        """
        words: list[tuple[str | int, ...]] = []
        if self._new:
            some = [self._new.pop() for _ in range(min(len(self._new), BATCH))]
            words.append(("SUBSCRIBE", *some))
            self._commands.insert(0, (("MGET", *some), None))
        if len(self._unwanted) >= BATCH:  # lazily: a channel that nobody waits on costs nothing
            words.append(("UNSUBSCRIBE", *self._unwanted))
            self._unwanted.clear()
        sent, self._commands = self._commands[:BATCH], self._commands[BATCH:]
        self._sent.extend(sent)
        return words + [command for command, _ in sent]

    def _pushed(self, said: Any) -> None:
        self._heard = asyncio.get_running_loop().time()
        if said[0] == b"message":
            self._found(said[1].decode(), said[2])

    def _answered(self, said: Any) -> None:
        self._heard = asyncio.get_running_loop().time()
        (_, *keys), future = self._sent.popleft()
        if future is None:
            if isinstance(said, Exception):
                raise said  # perhaps of the SUBSCRIBE before it: what comes next answers something else
            for key, data in zip(keys, said, strict=False):
                if data is not None:
                    self._found(str(key), data)
        elif isinstance(said, Exception):
            _fail([future], broker_error(said, self._url))
        elif not future.done():
            future.set_result(said)

    def _found(self, key: str, data: bytes) -> None:
        waiters = self._waiting.get(key)
        if not waiters or data.startswith(PENDING):
            return
        meta = decoded(data)
        if meta.get("status") in FINAL:
            self._leave(key)
            for future in waiters:
                if not future.done():
                    future.set_result(meta)
        else:
            for tell in self._following.get(key, ()):
                tell(meta)


def _fail(futures: list[Future], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)


def decoded(data: bytes) -> dict[str, Any]:
    """What a worker has stored of a call."""
    from kombu.utils.json import loads

    try:
        # kombu's own looks at every object for the types that it has a spelling for, which takes its time.
        meta = loads(data) if b'"__type__"' in data else json.loads(data)  # type: ignore[no-untyped-call]
    except ValueError:
        meta = None
    if not isinstance(meta, dict):
        return {"status": "FAILURE", "result": {"exc_type": "ValueError", "exc_module": "builtins",
                "exc_message": ["the stored result is not JSON"]}}  # fmt: skip
    return meta


_listeners: "WeakKeyDictionary[asyncio.AbstractEventLoop, Listener]" = WeakKeyDictionary()
os.register_at_fork(after_in_child=_listeners.clear)


def forget() -> None:
    """Let each loop ask anew where results are: the settings are others."""
    _listeners.clear()


async def listener() -> Listener:
    """The running loop's listener, made on first use."""
    loop = asyncio.get_running_loop()
    found = _listeners.get(loop)
    if found is None:
        # Reading settings, importing Celery and starting the development server take their time.
        found = _listeners.setdefault(loop, Listener(*await asyncio.to_thread(_where)))
    return found


async def close() -> None:
    """Close the running loop's listener, if it has one. Whoever asks afterwards opens another."""
    if (found := _listeners.pop(asyncio.get_running_loop(), None)) is not None:
        await found.close()


def _where() -> tuple[RedisURL, str, bool]:
    settings, app, url = config.get_settings(), celery_app.get_app(), embedded.result_url()
    named = str(app.conf.result_backend)
    if named.partition("://")[0] not in SCHEMES:
        return url, "celery-task-meta-", True
    if "result_backend" in settings.celery:
        url = RedisURL.parse(named, verify=settings.redis_verify_certificates)
    key = app.backend.get_key_for_task("id")
    return url, (key.decode() if isinstance(key, bytes) else key).removesuffix("id"), False
