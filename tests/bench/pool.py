"""What the asyncio pool is measured by: drains, latency and memory, each beside plain Celery in the same run.

Rounds alternate between the two, and who is not measured stands still. The figures are medians of the rounds.
"""

import asyncio
import importlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from drains import Crew, Drained, Proxy, drain, forget, states
from publishing import longest_gap
from redis import Redis
from support import Process, Project, wait_until
from table import head, median, percentile, row

STOCK = """
import time

from celery import Celery

app = Celery("plain", broker="{url}", backend="{url}", set_as_current=False)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_default_queue="plain")


@app.task(name="plain.add")
def add(a, b=1):
    return a + b


@app.task(name="plain.nap")
def nap(seconds):
    time.sleep(seconds)
    return seconds
"""


class World:
    """A project with a server; this process can call its tasks, and those of plain Celery in another database."""

    def __init__(self, made: Project, port: int) -> None:
        self.made, self.port = made, port
        self.client, self.plain_client = Redis(port=port), Redis(port=port, db=1)
        made.write("plain.py", STOCK.format(url=f"redis://127.0.0.1:{port}/1"))
        self.tasks: Any = importlib.import_module("src.apps.probe.tasks")
        self.plain: Any = importlib.import_module("plain")

    @contextmanager
    def ours(
        self, at_once: int, queue: str = "default", level: str = "warning", delay: float | None = None,
        processes: int = 2, more_queues: tuple[str, ...] = (),
    ) -> Iterator[Crew]:  # fmt: skip
        """A worker of ours.

        Args:
            at_once: Calls that run at once, in all processes.
            delay: Seconds that each of their round trips takes longer, by way of a proxy; None goes without one.
        """
        port = self.port if delay is None else Proxy(self.port, delay).port
        queues = [word for name in (queue, *more_queues) for word in ("--queue", name)]
        worker = self.made.start(
            "core", "runworker", "--processes", str(processes), "--concurrency", str(at_once), *queues,
            "--loglevel", level, REDIS_URL=f"redis://127.0.0.1:{port}/0",
        )  # fmt: skip
        with self._crew(self.client, queue, self._add(queue).delay_many_sync, worker, more_queues=more_queues) as crew:
            yield crew

    @contextmanager
    def celery(self, pool: str, at_once: int, level: str = "warning", workers: int = 1) -> Iterator[Crew]:
        """Workers of plain Celery."""
        command = ("celery", "-A", "plain", "worker", "-P", pool, "-c", str(at_once), "-l", level, "-n")
        started = [self.made.start(*command, f"{number}@here") for number in range(workers)]
        with self._crew(self.plain_client, "plain", self.fill_plain, *started) as crew:
            yield crew

    @contextmanager
    def _crew(
        self, client: Any, queue: str, fill: Callable[[Any], object], *workers: Process,
        more_queues: tuple[str, ...] = (),
    ) -> Iterator[Crew]:  # fmt: skip
        """Let workers run a few calls, and make them stand still."""
        crew = Crew(client, queue, *workers, more_queues=more_queues)
        try:
            fill([(1, 2)] * 100)
            wait_until(lambda: states(client).count("SUCCESS") >= 100, 30, f"{queue} is served")
            forget(client)
            crew.stand_still()
            yield crew
        finally:
            crew.kill()

    def _add(self, queue: str) -> Any:
        return self.tasks.add.options(queue=queue)

    def fill_plain(self, calls: list[tuple[Any, ...]], name: str = "add") -> None:
        """Queue calls as plain Celery does."""
        task = getattr(self.plain, name)
        for args in calls:
            task.delay(*args)

    def drains(self, crew: Crew, calls: int) -> Drained:
        """Drain no-op calls."""
        many = [(number, 2) for number in range(calls)]
        if crew.client is self.client:

            def fill() -> None:
                for number, queue in enumerate(crew.queues):
                    self._add(queue).delay_many_sync(many[number :: len(crew.queues)])

            return drain(crew, fill, calls)
        return drain(crew, lambda: self.fill_plain(many), calls)


def alternating(rounds: int, *measures: Callable[[], Any]) -> list[list[Any]]:
    """What each measure has given in each round, one after the other."""
    taken: list[list[Any]] = [[] for _ in measures]
    for _ in range(rounds):
        for values, measure in zip(taken, measures, strict=True):
            values.append(measure())
    return taken


def compare(what: str, ours: list[Drained], theirs: list[Drained], target: str) -> None:
    mine, stock = (median(drained.wall for drained in all_) for all_ in (ours, theirs))
    row(what, f"{1 / mine:,.0f}/s", f"{1 / stock:,.0f}/s", stock / mine, target)


def figures(world: World, rounds: int) -> None:
    """Measure everything, and print the rows."""
    head("no-op calls; 2 × 100 coroutines, prefork -c 2")
    with world.ours(200) as ours, world.celery("prefork", 2) as prefork:
        both = ours.memory(), prefork.memory()
        row("memory, idle (PSS)", *(f"{mib:.0f} MiB" for mib in both), both[0] / both[1], "≤ 1.2")
        idle = both[1]
        latencies(world, ours, prefork, rounds)
        with ours.awake():
            gaps = [asyncio.run(gap(world.tasks.add)) for _ in range(rounds)]
        longest = median(gaps)
        row("longest gap of a 10 ms ticker, 2,000 calls awaited", f"{longest:.0f} ms", target="≤ 50", measured=longest)
        forget(world.client)
        mine, stock = alternating(rounds, lambda: world.drains(ours, 8000), lambda: world.drains(prefork, 1500))
        compare("drain", mine, stock, "≥ 8")
        for what, unit, name in (("processor time", "µs", "processor"), ("commands", "", "commands"),
                                 ("round trips", "", "trips")):  # fmt: skip
            a, b = (median(getattr(one, name) for one in runs) * (1e6 if unit else 1) for runs in (mine, stock))
            row(f"  {what} of a call", *(f"{v:.0f} {unit}" if unit else f"{v:.2f}" for v in (a, b)), a / b)
        with (
            world.ours(200, queue="other", delay=0.001) as far,
            world.ours(200, queue="high-priority", delay=0) as near,
        ):
            there, here = alternating(rounds, lambda: world.drains(far, 8000), lambda: world.drains(near, 8000))
        compare("drain by a proxy with 1 ms of network; control: without the 1 ms", there, here, "≥ 0.85")
    with world.ours(200, level="info") as ours, world.celery("prefork", 2, level="info") as prefork:
        mine, stock = alternating(rounds, lambda: world.drains(ours, 8000), lambda: world.drains(prefork, 1500))
        compare("drain, with log lines", mine, stock, "≥ 8")
    head("calls that sleep for 0.1 s; 2 × 1,000 coroutines, threads -c 100 × 2")
    with world.ours(2000) as ours, world.celery("threads", 100, workers=2) as threads:
        naps = world.tasks.nap.delay_many_sync
        naps([(4.0,)] * 1000)
        with ours.awake():
            wait_until(lambda: states(world.client).count("STARTED") >= 1000, 30, "1,000 coroutines run")
            busy = ours.memory()
            wait_until(lambda: states(world.client).count("SUCCESS") >= 1000, 30, "they have ended")
        forget(world.client)
        ratio = busy / idle
        row("memory, 1,000 run; control: prefork, idle", f"{busy:.0f} MiB", f"{idle:.0f} MiB", ratio, "≤ 1.2")
        mine, stock = alternating(
            rounds,
            lambda: drain(ours, lambda: naps([(0.1,)] * 6000), 6000),
            lambda: drain(threads, lambda: world.fill_plain([(0.1,)] * 1500, "nap"), 1500),
        )
        compare("drain", mine, stock, "≥ 3")


async def gap(add: Any) -> float:
    """Milliseconds by which a 10 ms ticker is late, at most, while many calls are made and awaited."""

    async def call(number: int) -> None:
        await (await add.delay(number)).get(timeout=60)

    await call(0)
    return await longest_gap(asyncio.gather(*map(call, range(2000))))


def latencies(world: World, ours: Crew, prefork: Crew, rounds: int) -> None:
    """How long it takes from a call to its result when nothing else is to do."""
    for what, pause, calls in (("back to back", 0.0, 150), ("with a pause of 5 ms", 0.005, 60)):

        async def await_them(pause: float = pause, calls: int = calls) -> list[float]:
            await (await world.tasks.add.delay(1, 2)).get(timeout=20)
            taken = []
            for _ in range(calls):
                began = time.perf_counter()
                await (await world.tasks.add.delay(1, 2)).get(timeout=20)
                taken.append(time.perf_counter() - began)
                await asyncio.sleep(pause)
            return taken

        def get_them(pause: float = pause, calls: int = calls) -> list[float]:
            world.plain.add.delay(1, 2).get(timeout=20)
            taken = []
            for _ in range(calls):
                began = time.perf_counter()
                world.plain.add.delay(1, 2).get(timeout=20)
                taken.append(time.perf_counter() - began)
                time.sleep(pause)
            return taken

        def mine(measure: Callable[[], Awaitable[list[float]]] = await_them) -> list[float]:
            with ours.awake():
                return asyncio.run(measure())  # type: ignore[arg-type]

        def theirs(measure: Callable[[], list[float]] = get_them) -> list[float]:
            with prefork.awake():
                return measure()

        both = [[*chain(*runs)] for runs in alternating(rounds, mine, theirs)]
        for name, share in (("median", 0.5), ("p99", 0.99)):
            a, b = (percentile(values, share) for values in both)
            row(f"call to result, {what}, {name}", f"{a * 1e3:.2f} ms", f"{b * 1e3:.2f} ms", a / b, "≤ 0.5")
    forget(world.client)
    forget(world.plain_client)


if __name__ == "__main__":
    sys.exit("run `make bench`")
