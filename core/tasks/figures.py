"""What the processes of one worker count, in memory that they share.

Each process has a row of its own, so that none waits for another, and what one has counted outlives it: the next
process in its place goes on from there.
"""

import mmap
import os
import threading
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from core import pidfile

Outcome = Literal["success", "failed", "retried", "cancelled"]
OUTCOMES: tuple[Outcome, ...] = ("success", "failed", "retried", "cancelled")
#: The upper ends of the histogram's buckets, in seconds. What takes longer is in a last one.
ENDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Processes that have a row of their own; further ones share the last.
ROWS = 256
#: In a row: calls in flight, the lag of the event loop; then for each task the outcomes, the buckets and their sum.
_IN_FLIGHT, _LAG, _HEAD = range(3)
_BUCKETS = len(OUTCOMES)
_SUM = _BUCKETS + len(ENDS) + 1
_WIDTH = _SUM + 1


@dataclass(frozen=True)
class TaskTotals:
    """What has become of the calls of one task."""

    outcomes: dict[Outcome, int]
    #: Attempts by how long they took, for each of `ENDS` and for what took longer; and their seconds in all.
    buckets: list[int]
    seconds: float


class Figures:
    """The numbers of one worker. It is made before its processes are forked.

    Args:
        tasks: The names of the tasks that it may run; others are not counted.
    """

    def __init__(self, tasks: Iterable[str]) -> None:
        self._places = {name: _HEAD + number * _WIDTH for number, name in enumerate(sorted(tasks))}
        self._length = _HEAD + len(self._places) * _WIDTH
        # Whose each row is stands before them all, by pid: the memory of the others is never touched, so never taken.
        self._cells = memoryview(mmap.mmap(-1, (ROWS + ROWS * self._length) * 8)).cast("d")
        self._lock = threading.Lock()
        self.take_row(0)

    def take_row(self, number: int) -> None:
        """Count in this row from now on, which no other process that is alive does."""
        number = min(number, ROWS - 1)
        self._lock = threading.Lock()  # a thread of the parent may have held the one before
        self._row = ROWS + number * self._length
        self._cells[number] = os.getpid()
        self.now(in_flight=0, lag=0.0)

    def now(self, *, in_flight: int, lag: float) -> None:
        """Say how it is in this process at the moment."""
        self._cells[self._row + _IN_FLIGHT], self._cells[self._row + _LAG] = in_flight, lag

    def finished(self, task: str, outcome: Outcome, seconds: float | None = None) -> None:
        """Count an attempt that has ended; *seconds* is how long it ran, None where it did not or nobody knows."""
        place = self._places.get(task)
        if place is None:
            return
        at, cells = self._row + place, self._cells
        with self._lock:  # threads run calls at the same time
            cells[at + OUTCOMES.index(outcome)] += 1
            if seconds is not None:
                cells[at + _BUCKETS + bisect_left(ENDS, seconds)] += 1
                cells[at + _SUM] += seconds

    def in_flight(self) -> int:
        """Calls that run now, in all processes that run."""
        return int(sum(self._cells[row + _IN_FLIGHT] for row in self._rows(alive=True)))

    def lag(self) -> float:
        """The longest that an event loop takes to react, in seconds."""
        return max(self._cells[row + _LAG] for row in self._rows(alive=True))

    def totals(self) -> dict[str, TaskTotals]:
        """What has become of the calls of each task, by name."""
        rows = self._rows()
        return {name: self._total([row + place for row in rows]) for name, place in self._places.items()}

    def _total(self, places: list[int]) -> TaskTotals:
        summed = [sum(column) for column in zip(*(self._cells[at : at + _WIDTH] for at in places), strict=True)]
        outcomes = dict(zip(OUTCOMES, map(int, summed), strict=False))
        return TaskTotals(outcomes, [int(count) for count in summed[_BUCKETS:_SUM]], summed[_SUM])

    def _rows(self, alive: bool = False) -> list[int]:
        """Where the rows begin; with *alive* those of processes that run."""
        owners = {number: int(self._cells[number]) for number in range(ROWS) if self._cells[number]}
        return [ROWS + number * self._length for number, pid in owners.items() if not alive or pidfile.runs(pid)]
