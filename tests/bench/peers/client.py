"""A client of one peer, in that peer's own environment: it does what it reads, a JSON document a line, and answers so.

python -m bench.peers.client PEER
"""

import asyncio
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

#: Calls of one bulk, and publishers at once.
BULK, PUBLISHERS = 1000, 100


class Client:
    """Does what it is told with a peer that awaits; `Blocking` with one that does not."""

    def __init__(self, peer: Any) -> None:
        self.peer = peer

    async def open(self) -> None:
        if hasattr(self.peer, "open"):
            await self.peer.open()

    async def one(self, seconds: float) -> int:
        """Queue calls one after the other for so long; nobody runs them."""
        queue, end, calls = self.peer.queue, time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            for _ in range(20):
                await queue("noop", 0)
            calls += 20
        return calls

    async def together(self, seconds: float) -> int:
        """The same from a hundred publishers at once."""
        return sum(await asyncio.gather(*(self.one(seconds) for _ in range(PUBLISHERS))))

    async def many(self, seconds: float) -> int:
        """The same in bulk."""
        end, calls, numbers = time.perf_counter() + seconds, 0, [0] * BULK
        while time.perf_counter() < end:
            await self.peer.queue_many("noop", numbers)
            calls += BULK
        return calls

    async def fill(self, task: str, first: int, calls: int, limit: float) -> int:
        """Queue calls as fast as the peer does, within so many seconds; how many there are."""
        end, numbers = time.perf_counter() + limit, range(first, first + calls)
        if hasattr(self.peer, "queue_many"):
            for start in range(0, calls, BULK):
                if time.perf_counter() > end:
                    return start
                await self.peer.queue_many(task, numbers[start : start + BULK])
            return calls
        return await self._each(numbers, lambda number: self.peer.queue(task, number), end)

    async def later(self, first: int, calls: int, due: float) -> int:
        """Queue calls that are due at the same moment."""
        numbers = range(first, first + calls)
        return await self._each(
            numbers, lambda number: self.peer.queue_later("noop", number, due - time.time()), time.perf_counter() + 60
        )

    async def _each(self, numbers: range, queue: Callable[[int], Awaitable[Any]], end: float) -> int:
        left = iter(numbers)
        queued = 0

        async def publisher() -> None:
            nonlocal queued
            while time.perf_counter() < end and (number := next(left, None)) is not None:
                await queue(number)
                queued += 1

        await asyncio.gather(*(publisher() for _ in range(PUBLISHERS)))
        return queued

    async def latency(self, first: int, calls: int, seconds: float, pause: float) -> list[float]:
        """Queue calls, one after the other has its result; the seconds that each took."""
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while len(taken) < calls and time.perf_counter() < end:
            await asyncio.sleep(pause)
            began, number = time.perf_counter(), first + len(taken)
            got = await self.peer.result(await self.peer.queue("noop", number))
            taken.append(time.perf_counter() - began)
            assert got == number, f"{got!r} is not {number}"
        return taken


class Blocking(Client):
    """The same with a peer whose calls block, from one thread: more threads are not faster."""

    async def open(self) -> None:
        if hasattr(self.peer, "open"):
            self.peer.open()

    async def one(self, seconds: float) -> int:
        queue, end, calls = self.peer.queue, time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            for _ in range(20):
                queue("noop", 0)
            calls += 20
        return calls

    async def together(self, seconds: float) -> int:
        return await self.one(seconds)

    async def many(self, seconds: float) -> int:
        end, calls, numbers = time.perf_counter() + seconds, 0, [0] * BULK
        while time.perf_counter() < end:
            self.peer.queue_many("noop", numbers)
            calls += BULK
        return calls

    async def fill(self, task: str, first: int, calls: int, limit: float) -> int:
        end, numbers = time.perf_counter() + limit, range(first, first + calls)
        many = hasattr(self.peer, "queue_many")
        for start in range(0, calls, BULK if many else 1):
            if time.perf_counter() > end:
                return start
            if many:
                self.peer.queue_many(task, numbers[start : start + BULK])
            else:
                self.peer.queue(task, numbers[start])
        return calls

    async def later(self, first: int, calls: int, due: float) -> int:
        for number in range(first, first + calls):
            self.peer.queue_later("noop", number, due - time.time())
        return calls

    async def latency(self, first: int, calls: int, seconds: float, pause: float) -> list[float]:
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while len(taken) < calls and time.perf_counter() < end:
            time.sleep(pause)  # noqa: ASYNC251  nothing else runs here
            began, number = time.perf_counter(), first + len(taken)
            got = self.peer.result(self.peer.queue("noop", number))
            taken.append(time.perf_counter() - began)
            assert got == number, f"{got!r} is not {number}"
        return taken


async def main(peer: Any, answers: Any) -> None:
    awaits = inspect.iscoroutinefunction(peer.queue)
    client = (Client if awaits else Blocking)(peer)
    await client.open()
    print(json.dumps({"many": hasattr(peer, "queue_many")}), file=answers, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        what = asked.pop("do")
        try:
            began, busy = time.perf_counter(), time.process_time()
            value = versions(**asked) if what == "versions" else await getattr(client, what)(**asked)
            said = {"value": value, "wall": time.perf_counter() - began, "busy": time.process_time() - busy}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), file=answers, flush=True)


def versions(names: list[str]) -> dict[str, str]:
    """The versions of what is installed here of these."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes elsewhere
    module = importlib.import_module(f"bench.peers.adapters.{sys.argv[1]}")
    if inspect.iscoroutinefunction(module.queue):
        import uvloop

        uvloop.run(main(module, answers))
    else:
        asyncio.run(main(module, answers))
