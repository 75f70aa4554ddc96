"""`make bench-growth`: what a call costs when there is ever more of something. Writes docs/growth.md and its picture.

Workers of ours drain calls that do nothing, while one thing at a time grows. What a call costs is processor time, the
worker's and the server's; its exponent is the slope of that in a picture with logarithmic axes: 0 where a call costs
the same however much there is, 1 where it costs in proportion. Ends with 1 where one is steeper than it may be.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from drains import READS, Crew, Drained, counted, drain
from growth_page import LIMITS, write
from pool import World
from support import project, redis_server, wait_until
from table import median

KEPT = Path(__file__).parent / "growth.json"
#: Calls of a drain, and drains of which the median is taken.
CALLS, ROUNDS = 5000, 3
TASKS = """
from core.tasks import task


@task
async def swallow(text: str) -> None: ...
"""
MOST_QUEUES = 64
QUEUES = tuple(f"queue-{number}" for number in range(MOST_QUEUES))
Point = dict[str, Any]


def point(amount: int, crew: Crew, runs: list[Drained], label: str = "") -> Point:
    """The medians of some drains."""
    names = ("wall", "processor", "server", "commands", "trips")
    figures = {name: median(getattr(run, name) for run in runs) for name in names}
    return {"amount": amount, "label": label or f"{amount:,}", **figures, "memory": crew.memory()}


def queued(world: World) -> Iterator[Point]:
    """Calls that wait in the queue."""
    with world.ours(200) as crew:
        for calls, rounds in ((1000, 9), (10_000, 3), (100_000, 1)):
            yield point(calls, crew, [world.drains(crew, calls) for _ in range(rounds)])


def queues(world: World) -> Iterator[Point]:
    """Queues that one worker serves, with calls in all of them."""
    for count in (1, 4, 16, MOST_QUEUES):
        with world.ours(200, queue=QUEUES[0], more_queues=QUEUES[1:count]) as crew:
            yield point(count, crew, [world.drains(crew, CALLS) for _ in range(ROUNDS)])


def concurrency(world: World) -> Iterator[Point]:
    """Calls that may run at once, where each does nothing."""
    for at_once in (1, 10, 100, 1000, 2000):
        calls = 2000 if at_once == 1 else CALLS
        with world.ours(at_once, processes=1) as crew:
            yield point(at_once, crew, [world.drains(crew, calls) for _ in range(ROUNDS)])


def sleeping(world: World) -> Iterator[Point]:
    """Calls that run at once, where each sleeps for 0.1 s."""
    for at_once in (10, 100, 1000, 2000):
        calls = at_once * 10
        naps = [(0.1,)] * calls
        with world.ours(at_once, processes=1) as crew:
            runs = [drain(crew, lambda naps=naps: world.tasks.nap.delay_many_sync(naps), calls) for _ in range(2)]  # type: ignore[misc]
            yield point(at_once, crew, runs)


def processes(world: World) -> Iterator[Point]:
    """Processes of a worker."""
    for count in (1, 2, 4):
        with world.ours(200, processes=count) as crew:
            yield point(count, crew, [world.drains(crew, CALLS) for _ in range(ROUNDS)])


def arguments(world: World) -> Iterator[Point]:
    """Bytes of a call's arguments."""
    swallow: Any = import_module("src.apps.growth.tasks").swallow
    with world.ours(200) as crew:
        for size, calls, label in (
            (100, CALLS, "100 B"), (1024, CALLS, "1 KiB"), (10 * 1024, 4000, "10 KiB"), (100 * 1024, 800, "100 KiB"),
        ):  # fmt: skip
            texts = [("x" * size,)] * calls
            runs = [drain(crew, lambda texts=texts: swallow.delay_many_sync(texts), calls) for _ in range(ROUNDS)]  # type: ignore[misc]
            yield point(size, crew, runs, label)


def countdowns(world: World) -> Iterator[Point]:
    """Calls that wait for their time beside those that are run."""
    later = world.tasks.add.options(countdown=86_400).delay_many_sync
    with world.ours(200) as crew:
        for count in (0, 1000, 10_000, 100_000):
            there = world.client.zcard("core-delayed")
            later([(number,) for number in range(count - there)])
            with crew.awake():
                wait_until(lambda count=count: world.client.zcard("core-delayed") == count, 120, "they are parked")  # type: ignore[misc]
            for key in world.client.scan_iter("celery-task-meta-*", count=1000):
                world.client.unlink(key)  # that they are pending: `drain` would read them all
            yield point(count, crew, [world.drains(crew, CALLS) for _ in range(ROUNDS)])


def drained(world: World) -> Iterator[Point]:
    """Calls that a worker has run since it was started."""
    with world.ours(200) as crew:
        for number in range(1, 11):
            yield point(number * 15_000, crew, [world.drains(crew, 15_000)])


def made(world: World) -> Iterator[Point]:
    """Calls that are made at once on one event loop: the processor time is their caller's."""

    async def make(calls: int) -> Drained:
        before, busy, began = counted(world.client), time.process_time(), time.perf_counter()
        await asyncio.gather(*(world.tasks.add.delay(number) for number in range(calls)))
        wall, busy, after = time.perf_counter() - began, time.process_time() - busy, counted(world.client)
        world.client.flushall()
        figures = wall, busy, after.seconds - before.seconds, after.commands - before.commands
        return Drained(*(figure / calls for figure in (*figures, after.reads - before.reads - READS)))

    async def series() -> list[Point]:
        await make(1)
        points = []
        for calls, rounds in ((100, 9), (1000, 9), (10_000, 3), (100_000, 1)):
            runs = [await make(calls) for _ in range(rounds)]
            points.append(point(calls, Crew(world.client, "default"), runs) | {"memory": None})
        return points

    yield from asyncio.run(series())


SERIES: dict[str, Callable[[World], Iterator[Point]]] = {
    measure.__name__: measure
    for measure in (queued, made, queues, concurrency, sleeping, processes, arguments, countdowns, drained)
}


def exponent(points: list[Point]) -> float:
    """The slope of a call's processor time where both axes are logarithmic."""
    some = [
        (math.log(each["amount"]), math.log(each["processor"] + each["server"])) for each in points if each["amount"]
    ]
    middle = [sum(values) / len(some) for values in zip(*some, strict=True)]
    above = sum((x - middle[0]) * (y - middle[1]) for x, y in some)
    return above / sum((x - middle[0]) ** 2 for x, _ in some)


def measure(names: list[str]) -> dict[str, Any]:
    """Measure these series, and say where and when."""
    began, found = time.monotonic(), {}
    with redis_server() as (url, _), project() as made:
        made.write("src/apps/growth/__init__.py", "")
        made.write("src/apps/growth/tasks.py", TASKS)
        os.environ |= {"REDIS_URL": url, "TASK_QUEUES": json.dumps(QUEUES), "TASK_PUBLISH_TIMEOUT": "120"}
        made.environment["TASK_QUEUES"] = os.environ["TASK_QUEUES"]
        os.chdir(made.root)
        sys.path.append(str(made.root))
        world = World(made, int(url.rpartition(":")[2].partition("/")[0]))
        for name in names:
            found[name] = []
            for each in SERIES[name](world):
                found[name].append(each)
                spent = each["processor"] * 1e6, each["server"] * 1e6
                print(f"{name:12} {each['label']:>9} {1 / each['wall']:8,.0f}/s  {spent[0]:6.0f} + {spent[1]:5.0f} µs"
                      f"  {each['commands']:7.2f} {each['trips']:6.3f}  {each['memory'] or 0:5.0f} MiB",
                      flush=True)  # fmt: skip
            world.client.flushall()
        server = world.client.info("server")
    versions = {name: metadata.version(name) for name in ("celery", "kombu", "redis")}
    named = server.get("server_name", "redis")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.monotonic() - began),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {"Python": platform.python_version(), **versions,
                     named: server.get(f"{named}_version", server["redis_version"])},
        "series": found,
    }  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("series", nargs="*", choices=[*SERIES, []], help="these only, and write nothing")
    options.add_argument("--page", action="store_true", help="write the page from what was kept")
    chosen = options.parse_args()
    found = json.loads(KEPT.read_text()) if chosen.page else measure(chosen.series or list(SERIES))
    steep = {}
    for name, points in found["series"].items():
        steep[name] = slope = exponent(points)
        print(f"{name:12} exponent {slope:5.2f}, at most {LIMITS[name]:g}")
    if not chosen.series:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
        write(found, steep)
    too_steep = [name for name, slope in steep.items() if slope > LIMITS[name]]
    print(f"{found['seconds']} s; steeper than it may be: {', '.join(too_steep) or 'nothing'}")
    return bool(too_steep)


if __name__ == "__main__":
    sys.exit(main())
