"""`make bench`: what the product is measured by, as ratios to plain Celery's in the same run, where Celery has a twin.

Absolute numbers are this machine's; the ratios hold on others, and suffer less when it is busy with other things too.
"""

import argparse
import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

import pool
import publishing
from support import CORE, Project, clean_environment, project, redis_server
from table import head, median, row


def wall(*command: str, cwd: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=cwd, env=clean_environment(), check=True, capture_output=True)
    return time.perf_counter() - began


def server_start(made: Project) -> float:
    from core import embedded

    subprocess.run([CORE, "broker", "stop"], cwd=made.root, env=clean_environment(), capture_output=True)
    began = time.perf_counter()
    embedded.ensure(made.root)
    return time.perf_counter() - began


def worker_start(made: Project) -> float:
    began = time.perf_counter()
    worker = made.worker("--processes", "2")
    took = time.perf_counter() - began
    worker.kill()
    return took


def starting(made: Project, rounds: int) -> None:
    """How long it takes until something runs."""

    def seconds(what: str, measure: Callable[[], float], target: str, beside: float = 0) -> None:
        taken = median(measure() for _ in range(rounds)) - beside
        row(what, f"{taken:.2f} s", target=target, measured=taken)

    head("starting")
    bare = median(wall(sys.executable, "-c", "pass", cwd=made.root) for _ in range(rounds))
    seconds("core --help", lambda: wall(CORE, "--help", cwd=made.root), "≤ 0.2")
    seconds("import core.tasks", lambda: wall(sys.executable, "-c", "import core.tasks", cwd=made.root), "≤ 0.35", bare)
    seconds("the development server, cold", lambda: server_start(made), "≤ 0.2")
    seconds("a worker of two processes, until it serves", lambda: worker_start(made), "≤ 2.5")


async def queueing(world: pool.World, rounds: int) -> None:
    """What a call costs its caller until it is queued."""
    add, plain = world.tasks.add, world.plain.add

    async def stock(_: object, calls: int) -> None:
        for number in range(calls):
            plain.delay(number, b=2)

    ways = {
        "Celery's delay()": (stock, 500, ""),
        "delay(), one by one": (publishing.one_by_one, 1000, "≥ 2.5"),
        "delay(), 100 at once": (publishing.at_once, 5000, "≥ 7"),
        "delay_many() of 10,000": (publishing.many, 10_000, "≥ 10"),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for way in (stock, publishing.one_by_one):
        await way(add, 1)
    for _ in range(rounds):
        for name, (way, calls, _target) in ways.items():
            began = time.perf_counter()
            await way(add, calls)
            taken[name].append((time.perf_counter() - began) / calls)
            world.client.flushall()
    theirs = median(taken.pop("Celery's delay()"))
    head("queueing; control: Celery's delay()")
    for name, values in taken.items():
        mine = median(values)
        row(name, f"{mine * 1e6:.0f} µs", f"{theirs * 1e6:.0f} µs", theirs / mine, ways[name][2])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    rounds = options.parse_args().rounds
    logging.disable(logging.WARNING)  # the development server says each time that it was started
    began = time.perf_counter()
    print(f"Python {sys.version.split()[0]}, medians of {rounds} alternating rounds or more")
    with redis_server() as (url, _), project() as made:
        os.chdir(made.root)
        sys.path.append(str(made.root))
        starting(made, rounds)
        os.environ["REDIS_URL"] = url
        world = pool.World(made, int(url.rpartition(":")[2].partition("/")[0]))
        asyncio.run(queueing(world, rounds))
        pool.figures(world, rounds)
    print(f"\n{time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
