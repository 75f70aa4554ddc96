"""What is measured: each figure's name, its unit, and how the samples of several rounds become one figure."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

#: Cores that other programs may take during a sample; one that was disturbed more is dropped where two others are left.
QUIET = 0.2


@dataclass(frozen=True)
class Measure:
    """One figure of a row."""

    name: str
    title: str
    unit: str
    more: bool = False
    digits: int = 2

    def text(self, value: float) -> str:
        return f"{value:,.0f}" if self.digits == 0 or value >= 100 else f"{value:.{self.digits}f}"


@dataclass(frozen=True)
class Figure:
    """The median of a row's samples."""

    value: float
    #: Half of what lies between the smallest and the largest, as a share of the median.
    spread: float
    #: How many samples it rests on, and whether other programs disturbed them.
    samples: int
    disturbed: bool


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("one", "queue one by one", "calls/s", True, 0),
        Measure("together", "100 publishers", "calls/s", True, 0),
        Measure("many", "in bulk", "calls/s", True, 0),
        Measure("noop", "no-op calls", "calls/s", True, 0),
        Measure("io", "sleep of 0.1 s", "calls/s", True, 1),
        Measure("cpu", "10 ms of Python", "calls/s", True, 1),
        Measure("backlog", "backlog", "calls/s", True, 0),
        Measure("delayed", "due at once", "s", digits=1),
        Measure("median", "latency, median", "ms"),
        Measure("p99", "p99", "ms"),
        Measure("paused", "after a pause of 0.5 s", "ms"),
        Measure("memory", "memory", "MiB", digits=0),
        Measure("startup", "start-up", "s"),
        Measure("commands", "commands", "", digits=1),
        Measure("trips", "round trips", ""),
        Measure("worker", "worker", "ms", digits=3),
        Measure("server", "server", "ms", digits=3),
        Measure("publish_commands", "commands", "", digits=1),
        Measure("publish_trips", "round trips", "", digits=1),
        Measure("publish_client", "client", "ms", digits=3),
        Measure("together_trips", "round trips, 100 publishers", ""),
    )
}


def figure(samples: Iterable[tuple[float, float]]) -> Figure | None:
    """One figure of samples, each with the cores that other programs took meanwhile."""
    every = list(samples)
    quiet = [value for value, others in every if others <= QUIET]
    kept = quiet if len(quiet) >= 2 else [value for value, _ in every]
    if not kept:
        return None
    median = statistics.median(kept)
    spread = (max(kept) - min(kept)) / 2 / median if median else 0.0
    return Figure(median, spread, len(kept), len(quiet) < len(kept))
