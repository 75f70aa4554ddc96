"""What a row is put through in one round, and the samples that come of it."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import drains
from bench.peers import unsettled
from bench.peers.world import Unavailable, World
from bench.table import percentile
from redis import Redis


@dataclass(frozen=True)
class Sizes:
    """How much of everything: seconds, and calls."""

    publishing: float = 1.0
    draining: float = 1.5
    most: int = 40_000
    latency: float = 1.5
    latency_calls: int = 200
    pauses: int = 4
    cpu: int = 200
    io_most: int = 4000
    backlog: int = 100_000
    filling: int = 20
    backlog_time: int = 12
    delayed: int = 10_000
    delayed_time: float = 30.0


FULL = Sizes()
QUICK = Sizes(
    publishing=0.2, draining=0.3, most=2000, latency=0.4, latency_calls=30, pauses=1, cpu=30, io_most=400, backlog=2000,
    filling=3, backlog_time=3, delayed=200, delayed_time=10.0,
)  # fmt: skip

#: Workloads in the order in which they are run, with the measures that each gives. The last two are run in one round.
WORKLOADS = {
    "publish": ("one", "together", "many", "publish_commands", "publish_trips", "publish_client", "together_trips"),
    "start": ("startup", "memory"),
    "latency": ("median", "p99", "paused"),
    "noop": ("noop", "commands", "trips", "worker", "server"),
    "cpu": ("cpu",),
    "io": ("io",),
    "delayed": ("delayed",),
    "backlog": ("backlog",),
}
ONCE = ("delayed", "backlog")
#: Seconds after which a drain counts as hung.
HUNG = 60
DATABASE = 1  # where nobody works


class Round:
    """One round of one row."""

    def __init__(self, world: World, sizes: Sizes, samples: dict[str, tuple[float, float]]) -> None:
        """Args:
        samples: By measure: the value, and how many cores others took meanwhile. They are added here.
        """
        self.world, self.sizes, self.samples = world, sizes, samples
        self._rates: dict[str, float] = {}

    def run(self, workload: str) -> None:
        """Run one workload, and take its samples.

        Raises:
            Unavailable: The peer failed.
        """
        work: dict[str, Callable[[], None]] = {
            "publish": self._publish, "start": self._start, "latency": self._latency, "noop": self._noop,
            "cpu": self._cpu, "io": self._io, "delayed": self._delayed, "backlog": self._backlog,
        }  # fmt: skip
        work[workload]()

    @contextmanager
    def _watched(self) -> Iterator[dict[str, float]]:
        """Samples that are noted inside, with what other programs took."""
        values: dict[str, float] = {}
        began, machine, mine = time.monotonic(), _machine(), self.world.busy()
        yield values
        seconds = time.monotonic() - began
        others = (_machine() - machine - self.world.busy() + mine) / seconds
        self.samples.update({name: (value, round(max(others, 0.0), 2)) for name, value in values.items()})

    def _publish(self) -> None:
        server = self.world.client
        with self.world.caller(DATABASE) as client:
            client.ask("one", seconds=0.05)
            for name, has in (("one", True), ("together", True), ("many", client.has_many)):
                if has:
                    before = drains.counted(server)
                    with self._watched() as taken:
                        said = client.ask(name, seconds=self.sizes.publishing)
                        taken[name] = said["value"] / said["wall"]
                        after = drains.counted(server)
                        trips = (after.reads - before.reads - drains.READS) / said["value"]
                        if name == "one":
                            taken["publish_commands"] = (after.commands - before.commands) / said["value"]
                            taken["publish_trips"] = trips
                            taken["publish_client"] = said["busy"] / said["value"] * 1000
                        if name == "together":
                            taken["together_trips"] = trips
        with Redis(port=self.world.port, db=DATABASE) as nobodys:
            nobodys.flushdb()

    def _start(self) -> None:
        """From the start of the worker to the end of a call that waits for it; then at rest."""
        world = self.world
        world.rest()
        first = self._fill("noop", 1)
        with self._watched() as taken:
            began = time.perf_counter()
            world.serve()
            self._finish(first, 1, 0.0005)
            taken["startup"] = time.perf_counter() - began
        self._warm()
        time.sleep(0.5)
        assert world.crew
        self.samples["memory"] = (world.crew.memory(), 0.0)

    def _warm(self, task: str = "noop", command: str = "", variant: str = "") -> None:
        """Have workers that have run some calls, in all their processes; note how fast they are."""
        if self.world.crew:
            self._settle()  # they may be killed now, and what is not acknowledged would run again
        self.world.serve(command, variant)
        most = 100 if task == "noop" else 2 * self.world.row.at_once
        for calls in (min(20, most), min(100, most)):
            first = self._fill(task, calls)
            began = time.perf_counter()
            self._finish(first, calls)
            self._rates[task] = calls / (time.perf_counter() - began)

    def _fill(self, task: str, calls: int, limit: float = HUNG) -> int:
        """Queue calls; the number of the first."""
        first, client = self.world.numbers(calls), self.world.publisher()
        queued = client.ask("fill", task=task, first=first, calls=calls, limit=limit, timeout=limit + 20)["value"]
        self.world.left.update(range(first + queued, first + calls))
        return first

    def _finish(self, first: int, calls: int, pause: float = 0.002) -> None:
        if (ran := self.world.until_marked(first, calls, HUNG, pause)) < calls:
            raise Unavailable(f"{ran} of {calls} calls ran within {HUNG} s: {self.world.said()}")

    def _latency(self) -> None:
        world, sizes, row = self.world, self.sizes, self.world.row
        command, variant = row.latency
        self._warm("noop", command, variant)
        with world.caller(variant=variant if command else None) as client:

            def ask(calls: int, seconds: float, pause: float) -> list[float]:
                first = world.numbers(calls)
                said = client.ask("latency", first=first, calls=calls, seconds=seconds, pause=pause)["value"]
                world.left.update(range(first + len(said), first + calls))
                return [each * 1000 for each in said]

            ask(10, 2, 0)
            with self._watched() as taken:
                found = ask(sizes.latency_calls, sizes.latency, 0)
                taken["median"], taken["p99"] = statistics.median(found), percentile(found, 0.99)
            with self._watched() as taken:
                taken["paused"] = statistics.median(ask(sizes.pauses, 30, 0.5))

    def _drain(self, name: str, task: str, calls: int, *, longest: float = HUNG, filling: float = HUNG) -> None:
        """Queue calls for workers that stand still, and let them go on until all have run and are settled."""
        world, server = self.world, self.world.client
        crew = world.crew
        assert crew
        self._settle()
        crew.stand_still()
        first = self._fill(task, calls, filling)
        queued = calls - sum(1 for number in range(first, first + calls) if number in world.left)
        looks = 0
        there = unsettled.stored(server, world.row.peer)
        with self._watched() as taken:
            before, busy, began = drains.counted(server), crew.seconds(), time.perf_counter()
            crew.go_on()
            ran, ended = world.until_marked(first, queued, longest), time.perf_counter()
            if ran < queued and longest >= HUNG:
                raise Unavailable(f"{ran:,} of {queued:,} calls ran within {longest:g} s: {world.said()}")
            while ran == queued:
                looks, ended = looks + 1, time.perf_counter()
                if unsettled.count(server, world.row.peer, there + queued) <= 0:
                    break
                if ended - began > HUNG + longest:
                    raise Unavailable(f"all calls ran, but not all results were stored within {HUNG + longest:g} s")
                time.sleep(0.002)
            after, busy = drains.counted(server), crew.seconds() - busy
            taken[name] = ran / (ended - began)
            if name == "noop":
                asked = looks * unsettled.COMMANDS[world.row.peer]
                taken["commands"] = (after.commands - before.commands - asked) / queued
                taken["trips"] = (after.reads - before.reads - looks - drains.READS) / queued
                taken["worker"] = busy / queued * 1000
                taken["server"] = (after.seconds - before.seconds) / queued * 1000
        if ran < queued:  # what was not run in the time is left where it is
            world.rest()
            marks = world.marks[first : first + queued]
            world.left.update(first + number for number, mark in enumerate(marks) if not mark)
        elif (found := unsettled.stored(server, world.row.peer) - there) < queued:
            raise Unavailable(f"only {found} of {queued} results are stored")

    def _settle(self) -> None:
        """Wait until the results of the calls before are stored: until no more come."""
        last, now = -1, unsettled.stored(self.world.client, self.world.row.peer)
        while last != now:
            time.sleep(0.1)
            last, now = now, unsettled.stored(self.world.client, self.world.row.peer)

    def _noop(self) -> None:
        self._warm()
        calls = int(self._rates["noop"] * self.sizes.draining)
        self._drain("noop", "noop", max(60, min(calls, self.sizes.most)))

    def _cpu(self) -> None:
        self._warm()
        self._drain("cpu", "burn", self.sizes.cpu)

    def _io(self) -> None:
        self._warm("nap", *self.world.row.io)
        self._drain("io", "nap", min(self.world.row.at_once * 15, self.sizes.io_most))

    def _delayed(self) -> None:
        """Calls that are due at the same moment: how long after it the last one has run."""
        world, calls = self.world, self.sizes.delayed
        self._warm("noop", *world.row.later)
        rate = self.samples.get("together", (1000.0, 0.0))[0]
        first, due = world.numbers(calls), float(int(time.time() + calls / rate * 1.5 + 4))
        world.publisher().ask("later", first=first, calls=calls, due=due, timeout=90)
        if time.time() > due:
            raise Unavailable(f"{calls:,} calls were not queued before they were due")
        time.sleep(max(0.0, due - 0.1 - time.time()))
        if early := calls - world.marks[first : first + calls].count(0):
            raise Unavailable(f"{early:,} of {calls:,} calls ran before they were due")
        with self._watched() as taken:
            ran = world.until_marked(first, calls, self.sizes.delayed_time)
            taken["delayed"] = time.time() - due
        if ran < calls:
            world.left.update(n for n in range(first, first + calls) if not world.marks[n])
            del self.samples["delayed"]
            raise Unavailable(f"{ran:,} of {calls:,} calls ran within {self.sizes.delayed_time:g} s of being due")

    def _backlog(self) -> None:
        sizes = self.sizes
        self._settle()
        self.world.rest()
        self._warm()
        self._drain("backlog", "noop", sizes.backlog, longest=sizes.backlog_time, filling=sizes.filling)


def _machine() -> float:
    """Processor seconds that this machine has been busy, whoever has used them."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _waits, irq, soft, steal = map(int, words[:8])
    return (user + nice + system + irq + soft + steal) / 100
