"""What a call does, the same for every peer: it leaves a mark, so that none is lost or run twice unseen."""

import mmap
import os

_marks: mmap.mmap | None = None


def mark(number: int) -> None:
    """Count one run of this call in the file that all processes share."""
    global _marks
    if _marks is None:
        with open(os.environ["BENCH_MARKS"], "r+b") as file:
            _marks = mmap.mmap(file.fileno(), 0)
    _marks[number] += 1


def burn(number: int) -> int:
    """Keep a core busy for about 10 ms, in plain Python."""
    mark(number)
    total = 0
    for each in range(260_000):
        total += each * each % 7
    return total
