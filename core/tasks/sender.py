"""Sends messages from an event loop: one connection for each loop, and calls that come together share a round trip.

What comes while a round trip is under way goes with the next one; a lone call goes at once. Nothing waits for a timer.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from core import embedded
from core.broker_error import judge
from core.redis_url import RedisURL
from core.tasks.envelope import Message
from core.tasks.unique import PRELUDE as UNIQUE_LOCK
from core.tasks.wire import Wire

#: When a round trip has this many messages, or characters of them, what else waits goes with the next one.
MOST, LARGEST = 200, 1_000_000
#: Seconds that the server has for an answer, and of silence after which a connection is made anew: what lies between
#: may have forgotten it.
ANSWER, SILENCE = 5.0, 25.0

#: Seconds for which it is known that a call was sent that is sent once: for longer than any two try it.
REMEMBERED = 3600

# Each message is pushed by itself: one that is refused does not take the others with it. The answer names those.
_SEND = (
    UNIQUE_LOCK
    + """
local refused, there, guards = {}, {}, {}
for at = #KEYS + 3, #ARGV, 5 do guards[tonumber(ARGV[at])] = at end
for number = 0, #KEYS / 2 - 1 do
  local list, result = KEYS[number * 2 + 1], KEYS[number * 2 + 2]
  local message, pending = ARGV[number * 2 + 3], ARGV[number * 2 + 4]
  local once, lock, holder, seconds = '', ''
  if guards[number] then once, lock, holder, seconds = unpack(ARGV, guards[number] + 1, guards[number] + 4) end
  if pending == '' then result = '' end
  local other = lock ~= '' and taken(lock, result, holder)
  if other then
    there[#there + 1] = number
    there[#there + 1] = other
  elseif once == '' or redis.call('EXISTS', once) == 0 then
    local pushed = redis.pcall('LPUSH', list, message)
    if type(pushed) == 'table' then
      refused[#refused + 1] = number
      refused[#refused + 1] = pushed.err
    else
      if once ~= '' then redis.call('SET', once, '1', 'EX', ARGV[2]) end
      if lock ~= '' then redis.call('SET', lock, holder, 'EX', seconds) end
      if result ~= '' then redis.pcall('SET', result, pending, 'NX', 'EX', ARGV[1]) end
    end
  end
end
return {refused, there}
"""
)


class NoAnswer(Exception):
    """Nobody said that the messages have arrived."""

    def __init__(self, written: bool, cause: Exception | None) -> None:
        super().__init__(written, cause)
        #: Whether they may have arrived all the same.
        self.written = written
        #: What happened; None when there was no more time.
        self.cause = cause


class Answer(NamedTuple):
    """What Redis has not pushed, by its number."""

    #: Why it was refused.
    refused: dict[int, str]
    #: The id of the call that was there before, where only one is to be.
    there: dict[int, str]


class _Parcel:
    """Messages of one caller, which travel together."""

    def __init__(self, make: Callable[[], Sequence[Message]], until: float) -> None:
        self.make = make
        self.until = until
        self.messages: Sequence[Message] = ()
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.written = False

    def fail(self, cause: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(NoAnswer(self.written, cause))


class Sender:
    """The connection of one event loop, and what waits to be sent over it."""

    def __init__(self, url: RedisURL, expires: int) -> None:
        """Args:
        url: Where the broker is.
        expires: Seconds for which Redis keeps that a call exists.
        """
        self._url, self._expires = url, expires
        self._client = url.async_client(socket_timeout=None)
        self._connection: Any = None
        self._wire: Wire | None = None
        self._heard = 0.0
        #: What has no answer yet, and of that what was not written yet, each in its order. To find the first one of a
        #: plain dict takes ever longer, the more were taken out in front of it.
        self._open: dict[_Parcel, None] = {}
        self._waiting: OrderedDict[_Parcel, None] = OrderedDict()
        #: What the round trip that is under way has taken along, and what ends it where there is no answer.
        self._written: list[_Parcel] = []
        self._patience: asyncio.TimerHandle | None = None
        #: Whether there will be a look at what waits when the loop turns, and who opens the connection meanwhile.
        self._due = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._end: AsyncGenerator[None, None] | None = None

    async def open(self) -> None:
        """Close the connection when the running loop ends."""

        async def until_the_end() -> AsyncGenerator[None, None]:
            try:
                yield
            finally:
                await self._client.aclose()

        # A loop that ends closes its asynchronous generators; there is no other word of its end.
        self._end = until_the_end()
        await anext(self._end)

    async def send(self, make: Callable[[], Sequence[Message]], until: float) -> Answer:
        """Push messages to their lists; return what Redis says of those that it has not pushed.

        A caller that is cancelled before its messages are written has not sent them.

        Args:
            make: Makes the messages; called right before they are written.
            until: When this has to be done, as the loop counts time.

        Raises:
            NoAnswer: The time passed, or the connection was lost, or there was none.
        """
        parcel = _Parcel(make, until)
        self._open[parcel] = self._waiting[parcel] = None
        if self._timer is None or until < self._timer.when():
            self._look_at_the_time()
        self._speak_soon()
        try:
            return await parcel.answer
        finally:
            del self._open[parcel]
            self._waiting.pop(parcel, None)

    async def close(self) -> None:
        """Close the connection when what is under way has arrived, or has failed."""
        if self._open:
            await asyncio.wait([parcel.answer for parcel in self._open])  # each has its time
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=0.1)
        for timer in filter(None, (self._timer, self._patience)):
            timer.cancel()
        await self._disconnect()
        if self._end is not None:
            await self._end.aclose()

    def _look_at_the_time(self) -> None:
        """Give up what has no time left, and look again when the next one has none."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        for parcel in [parcel for parcel in self._open if parcel.until <= loop.time()]:
            parcel.fail(None)
        left = [parcel.until for parcel in self._open if not parcel.answer.done()]
        self._timer = loop.call_at(min(left), self._look_at_the_time) if left else None

    def _speak_soon(self) -> None:
        """Send what waits when the loop turns, unless a round trip is under way: then it goes with the next one."""
        if not (self._due or self._written or self._task):
            self._due = True
            asyncio.get_running_loop().call_soon(self._speak)

    def _speak(self) -> None:
        self._due = False
        loop, wire = asyncio.get_running_loop(), self._wire
        if wire is None or loop.time() >= self._heard + SILENCE or not wire.is_quiet():
            self._task = loop.create_task(self._connect(), name="core-tasks-sender")
        else:
            self._write(wire)

    def _write(self, wire: Wire) -> None:
        if parcels := self._next():
            self._written = parcels
            self._patience = asyncio.get_running_loop().call_later(ANSWER, self._lose, TimeoutError())
            wire.write(_words(parcels, self._expires))

    def _answered(self, said: Any) -> None:
        if self._wire is None:
            return  # it came too late
        if isinstance(said, Exception):
            self._lose(said)
            return
        refused, there = said
        _settle(self._written, refused, there)
        self._heard = asyncio.get_running_loop().time()
        if refused:
            self._wire = None  # perhaps it is a replica by now
        self._go_on()

    def _pushed(self, said: Any) -> None:
        """Nothing that a sender has asked for."""

    def _lost(self, wire: Wire, lost: "asyncio.Future[None]") -> None:
        if wire is self._wire and isinstance(error := lost.exception(), Exception):
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """The connection is of no use any more, and what was written over it may have arrived."""
        self._wire = None
        _fail(self._written, error)
        self._go_on()

    def _go_on(self) -> None:
        """The round trip has ended."""
        self._written = []
        if self._patience is not None:
            self._patience.cancel()
        if self._waiting:
            self._speak_soon()

    def _next(self) -> list[_Parcel]:
        """Take what goes with the next round trip. From here on it may arrive."""
        parcels: list[_Parcel] = []
        count = size = 0
        while self._waiting and count < MOST and size < LARGEST:
            parcel = next(iter(self._waiting))
            if parcel.answer.done():  # its caller has given up in this very turn
                del self._waiting[parcel]
                continue
            del self._waiting[parcel]
            try:
                parcel.messages = parcel.make()
            except Exception as error:
                parcel.fail(error)  # it is nobody else's
                continue
            parcel.written = True
            parcels.append(parcel)
            count += len(parcel.messages)
            size += sum(len(message.text) for message in parcel.messages)
        return parcels

    async def _connect(self) -> None:
        """Open the connection anew, and send what waits."""
        cause: Exception | None = None
        try:
            async with asyncio.timeout(ANSWER):
                await self._open_wire()
        except Exception as error:
            cause = error
            await self._disconnect()
        finally:
            self._task = None
            if self._wire is None:
                _fail(self._waiting, cause)
                self._waiting.clear()
            else:
                self._write(self._wire)

    async def _open_wire(self) -> None:
        await self._disconnect()
        if embedded.is_default():
            await asyncio.to_thread(embedded.broker_url)  # it may have been stopped since
        if self._connection is None:
            self._connection = await self._client.connection_pool.get_connection()
        else:
            await self._connection.connect()
        await self._check(self._connection)
        self._heard = asyncio.get_running_loop().time()
        self._wire = wire = Wire(self._connection, self._answered, self._pushed)
        wire.lost.add_done_callback(partial(self._lost, wire))

    async def _check(self, connection: Any) -> None:
        """Refuse what is no server to send to."""
        from redis.exceptions import ResponseError

        await connection.send_command("HELLO")
        with suppress(ResponseError):  # too old to know the command, or not allowed to be asked
            judge(await connection.read_response(), self._url)

    async def _disconnect(self) -> None:
        self._wire = None
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)


def _words(parcels: list[_Parcel], expires: int) -> tuple[str | int, ...]:
    """The command that pushes their messages."""
    keys: list[str] = []
    guards: list[str | int] = []  # for few messages: their number, and what keeps them from being sent twice
    words: list[str | int] = [expires, REMEMBERED]
    for parcel in parcels:
        for message in parcel.messages:
            if message.once or message.lock:
                guards += (len(keys) // 2, message.once, message.lock, message.holder, message.lock_seconds)
            keys += (message.queue, message.result or message.queue)  # no user may touch an empty key
            words += (message.text, message.pending)
    return ("EVAL", _SEND, len(keys), *keys, *words, *guards)


def _fail(parcels: Iterable[_Parcel], cause: Exception | None) -> None:
    for parcel in parcels:
        parcel.fail(cause)


def _settle(parcels: list[_Parcel], *said: list[Any]) -> None:
    """Tell each sender which of its messages were not pushed."""
    kinds = [{int(n): _text(text) for n, text in zip(some[::2], some[1::2], strict=True)} for some in said]
    first = 0
    for parcel in parcels:
        after = first + len(parcel.messages)
        if not parcel.answer.done():
            own = ({n - first: text for n, text in kind.items() if first <= n < after} for kind in kinds)
            parcel.answer.set_result(Answer(*own))
        first = after


def _text(said: str | bytes) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else said


_senders: "WeakKeyDictionary[asyncio.AbstractEventLoop, Sender]" = WeakKeyDictionary()


def forget() -> None:
    """Let each loop open a connection anew: the settings name another broker."""
    _senders.clear()


def sender() -> Sender | None:
    """The running loop's sender, if it has one."""
    return _senders.get(asyncio.get_running_loop())


async def close() -> None:
    """Close the running loop's sender, if it has one. The next call opens another."""
    if (found := _senders.pop(asyncio.get_running_loop(), None)) is not None:
        await found.close()


async def opened(url: RedisURL, expires: int) -> Sender:
    """The running loop's sender, made if need be."""
    loop = asyncio.get_running_loop()
    if loop not in _senders:
        for other in [reference() for reference in _senders.keyrefs()]:  # another thread may add its own
            if other is not None and other.is_closed():
                _senders.pop(other, None)  # it was closed with its connection open, which holds on to it
        _senders[loop] = Sender(url, expires)
        await _senders[loop].open()
    return _senders[loop]
