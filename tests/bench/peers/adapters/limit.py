"""The limit: no library, but the least that a program can do for the same promise, two processes over a stream.

XREADGROUP takes and records up to 100 calls; SET and PUBLISH store and announce a result; XACK and XDEL settle. All of
it that is ready goes in one pipeline; calls that are queued together share one too. It has no retries, time limits,
states, argument checks, delayed calls, nor anybody who takes over the calls of a dead worker: nobody can be asked to
reach it.
"""

import asyncio
import json
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import uvloop
from bench.peers import body
from redis.asyncio import Redis
from redis.exceptions import ResponseError

STREAM, GROUP, RESULT = "calls", "workers", "result:"
redis: Any = Redis.from_url(os.environ["BENCH_URL"], decode_responses=True)


async def noop(number: int) -> int:
    body.mark(number)
    return number


async def nap(number: int) -> int:
    await asyncio.sleep(0.1)
    body.mark(number)
    return number


async def burn(number: int) -> int:
    return body.burn(number)


TASKS = {"noop": noop, "nap": nap, "burn": burn}


class Shared:
    """A pipeline that leaves with whatever is there as soon as the one before is back."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, str, asyncio.Future[None]]] = []
        self._busy: asyncio.Task[None] | None = None

    def send(self, *commands: Any, entry: str = "") -> "asyncio.Future[None]":
        """Send commands, and settle an entry of the stream with them."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((commands, entry, done))
        if self._busy is None:
            self._busy = asyncio.create_task(self._flush())
        return done

    async def _flush(self) -> None:
        while self._waiting:
            now, self._waiting = self._waiting, []
            pipeline = redis.pipeline(transaction=False)
            for commands, _, _ in now:
                for command in commands:
                    pipeline.execute_command(*command)
            if entries := [entry for _, entry, _ in now if entry]:
                pipeline.xack(STREAM, GROUP, *entries).xdel(STREAM, *entries)
            await pipeline.execute()
            for _, _, done in now:
                done.set_result(None)
        self._busy = None


calls = Shared()
_waiters: dict[str, asyncio.Future[str]] = {}
_listening: asyncio.Task[None] | None = None


async def open() -> None:
    with suppress(ResponseError):  # it is there
        await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)


def _add(name: str, number: int) -> tuple[str, tuple[Any, ...]]:
    call = uuid.uuid4().hex
    return call, ("XADD", STREAM, "*", "call", json.dumps([call, name, [number]]))


async def queue(name: str, number: int) -> str:
    call, command = _add(name, number)
    await calls.send(command)
    return call


async def queue_many(name: str, numbers: Sequence[int]) -> None:
    await calls.send(*(_add(name, number)[1] for number in numbers))


async def result(call: str) -> Any:
    global _listening
    waiter = _waiters[call] = asyncio.get_running_loop().create_future()
    if _listening is None:
        listener = redis.pubsub()
        await listener.psubscribe(f"{RESULT}*")
        await listener.get_message(timeout=5)
        _listening = asyncio.create_task(_listen(listener))
    if stored := await redis.get(RESULT + call):
        _waiters.pop(call, None)
        return json.loads(stored)
    return json.loads(await asyncio.wait_for(waiter, 30))


async def _listen(listener: Any) -> None:
    async for message in listener.listen():
        waiter = _waiters.pop(message["channel"].removeprefix(RESULT), None)
        if waiter and not waiter.done():
            waiter.set_result(message["data"])


async def work(name: str) -> None:
    await open()
    results, running = Shared(), set()

    async def run(entry: str, fields: dict[str, str]) -> None:
        call, task, args = json.loads(fields["call"])
        value = json.dumps(await TASKS[task](*args))
        results.send(("SET", RESULT + call, value, "EX", 86400), ("PUBLISH", RESULT + call, value), entry=entry)

    while True:
        for _, entries in await redis.xreadgroup(GROUP, name, {STREAM: ">"}, count=100, block=1000):
            for entry, fields in entries:
                running.add(running_now := asyncio.create_task(run(entry, fields)))
                running_now.add_done_callback(running.discard)
            await asyncio.sleep(0)


if __name__ == "__main__":
    uvloop.run(work(f"{os.fork()}"))
