"""docs/guarantees.md: the promise, written by hand, with what the faults have shown beside it."""

import statistics
from collections.abc import Mapping
from pathlib import Path

from faults.churn import Figures
from faults.rows import KINDS, Outcome, find
from faults.schedulers import LOCK
from faults.world import LEASE, RECOVERY

TEMPLATE = Path(__file__).parent / "guarantees.md"
PAGE = Path(__file__).parent.parent.parent / "docs" / "guarantees.md"
NAMES = {"ours": "`core.tasks`", "stock": "Celery"}


def write(results: Mapping[int, Mapping[str, Outcome]], figures: Mapping[str, Figures]) -> None:
    """Write the page from the outcome of every row by kind, and from the figures by kind and pool."""
    PAGE.write_text(text(results, figures))


def text(results: Mapping[int, Mapping[str, Outcome]], figures: Mapping[str, Figures]) -> str:
    """The page."""
    one = next(iter(figures.values()))
    values = {
        "lease": f"{LEASE}", "recovery": f"{RECOVERY}", "calls": f"{one.accepted:,}", "rate": f"{one.rate:g}",
        "kills": f"{one.kills}", "server_kills": f"{one.server_kills}", "calm": f"{len(one.calm)}",
        "lock": f"{LOCK}", "rows": rows(results), "figures": costs(figures),
    }  # fmt: skip
    made = TEMPLATE.read_text()
    for name, value in values.items():
        made = made.replace(f"{{{name}}}", value)
    return made


def rows(results: Mapping[int, Mapping[str, Outcome]]) -> str:
    """The table of faults."""
    lines = ["| what happens | " + " | ".join(NAMES[kind] for kind in KINDS) + " |", "|---|" + "---|" * len(KINDS)]
    for number, outcomes in sorted(results.items()):
        shown = [_cell(outcomes[kind]) for kind in KINDS]
        lines.append(f"| {find(number).title} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _cell(outcome: Outcome) -> str:
    said = outcome.said.replace("|", "\\|").replace("\n", " ")
    return said if outcome.passed else f"**no:** {said}"


def costs(figures: Mapping[str, Figures]) -> str:
    """The table of figures."""
    lines = [
        "| | lost | run more than once | with exactly one outcome | back after a kill: median, worst |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {each.lost} | {each.again} | {each.outcomes[1]:,} | {_seconds(each.calm)} |"
        for name, each in figures.items()
    ]
    return "\n".join(lines)


def _seconds(found: list[float]) -> str:
    return f"{statistics.median(found):.1f} s, {max(found):.1f} s" if found else "never"
