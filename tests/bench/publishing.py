"""`make bench-publishing`: what queueing a call costs, as ratios to Celery's own `delay()` in the same run.

Each round measures every way once, in turn; the figures are medians. Absolute numbers are this machine's.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from support import project

QUEUE = "default"


def stock_task(url: str) -> Any:
    """The same task with Celery alone, its results in the same Redis."""
    from celery import Celery

    app = Celery("stock", broker=f"redis+socket://{url}", backend=f"redis+socket://{url}", set_as_current=False)
    app.conf.task_default_queue = QUEUE

    def add(a: int, b: int = 1) -> int:
        return a + b

    return app.task(name="stock.add")(add)


async def one_by_one(task: Any, calls: int) -> None:
    for number in range(calls):
        await task.delay(number, b=2)


async def at_once(task: Any, calls: int) -> None:
    """A hundred callers, each of which awaits one call after the other."""
    await asyncio.gather(*(one_by_one(task, calls // 100) for _ in range(100)))


async def many(task: Any, calls: int) -> None:
    await task.delay_many([(number, 2) for number in range(calls)])


async def longest_gap(work: Awaitable[Any]) -> float:
    """Milliseconds by which a ticker of 10 ms was late, at most, while this was awaited."""
    longest, last = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.01)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticker = asyncio.create_task(tick())
    await work
    ticker.cancel()
    return (longest - 0.01) * 1000


async def measure(rounds: int, socket: str) -> None:
    from redis import Redis

    from src.apps.probe.tasks import add

    theirs, client = stock_task(socket), Redis(unix_socket_path=socket)

    async def stock(_: Any, calls: int) -> None:
        for number in range(calls):
            theirs.delay(number, b=2)

    ways: dict[str, tuple[Callable[[Any, int], Awaitable[None]], int, str]] = {
        "Celery's delay(), one by one": (stock, 500, ""),
        "delay(), one by one": (one_by_one, 1000, "2.5"),
        "delay(), 100 at once": (at_once, 5000, "7"),
        "delay_many(10,000)": (many, 10_000, "10"),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    gaps: dict[str, list[float]] = {name: [] for name in list(ways)[2:]}
    theirs.delay(0)
    await add.delay(0)
    for _ in range(rounds):
        for name, (way, calls, _goal) in ways.items():
            client.flushdb()
            began, cpu = time.perf_counter(), time.process_time()
            await way(add, calls)
            taken[name].append((time.perf_counter() - began) / calls * 1e6)
            busy[name].append((time.process_time() - cpu) / calls * 1e6)
            assert client.llen(QUEUE) == calls
        client.flushdb()
        for name, way in zip(
            gaps, (asyncio.gather(*(add.delay(1) for _ in range(2000))), many(add, 10_000)), strict=True
        ):
            gaps[name].append(await longest_gap(way))
    client.flushdb()
    stock_wall, stock_busy = (statistics.median(next(iter(figures.values()))) for figures in (taken, busy))
    print(f"{'':30} {'µs a call':>10} {'ratio':>6} {'goal':>5} {'µs CPU':>8} {'ratio':>6} {'longest gap':>12}")
    for name, (_way, _calls, goal) in ways.items():
        wall, cpu = statistics.median(taken[name]), statistics.median(busy[name])
        gap = f"{statistics.median(gaps[name]):9.0f} ms" if name in gaps else ""
        print(f"{name:30} {wall:10.0f} {stock_wall / wall:6.1f} {goal:>5} {cpu:8.0f} {stock_busy / cpu:6.1f} {gap:>12}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=7)
    rounds = options.parse_args().rounds
    with project() as made:
        import os

        os.chdir(made.root)
        sys.path.append(str(made.root))
        from core import embedded

        server = embedded.ensure(made.root)
        asyncio.run(measure(rounds, str(server.socket)))


if __name__ == "__main__":
    main()
