"""The rows that `make bench` prints."""

import os
import statistics
from collections.abc import Iterable


def _line(*words: str) -> None:
    what, ours, control, ratio, target, met = words
    print(f"{what:52} {ours:>11} {control:>11} {ratio:>6} {target:>7}  {met}".rstrip(), flush=True)


def head(title: str) -> None:
    """Begin a part of the table; the load says how busy the machine is with other things."""
    print(f"\n{title} (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
    _line("", "ours", "control", "ratio", "target", "")


def row(
    what: str, ours: str, control: str = "", ratio: float | None = None, target: str = "", measured: float | None = None
) -> None:
    """Print a row.

    Args:
        target: A comparison with a number, as in `≥ 8`; empty is none.
        measured: What the target is about where it is not the ratio.
    """
    met = ""
    if target:
        sign, number = target.split()
        value = ratio if measured is None else measured
        assert value is not None
        met = "met" if (value >= float(number) if sign == "≥" else value <= float(number)) else "NOT MET"
    _line(what, ours, control, "" if ratio is None else f"{ratio:.2f}", target, met)


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
