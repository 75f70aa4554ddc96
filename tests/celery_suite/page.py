"""docs/celery-suite.md: what Celery's own tests say of its workers and of ours, and why."""

from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from celery_suite.outcomes import Outcome
from celery_suite.reasons import FILES, INSIDE, LEFT_OUT, REASONS, Reason, short
from celery_suite.variants import Variant

PAGE = Path(__file__).parent.parent.parent / "docs" / "celery-suite.md"
TEXT = """# Celery's own tests

<!-- Written by `make test-celery`; the reasons are in tests/celery_suite/reasons.py. -->

Celery {version} is tested with tests that need a running worker, `t/integration` in its source distribution. Here they
are run on Celery's own worker, as the control, and on `core runworker` with each of its pools: plain Celery tasks,
called by a plain Celery client. Both workers are processes of their own, on the same kind of server, and do one call at
a time. The asyncio pool runs plain functions in threads, so it is judged a second time with the same functions on the
loop, each in a greenlet, as it runs coroutines. {inside} tests look into the worker's memory, and have it inside their
process. A test that fails is tried a second time; Celery's own runs try most of them five times more. A test with
parameters counts once for each.

{counts}

## What does not pass everywhere

{reasons}

## What is not run

{left_out}
"""


def reason(test: str, variant: Variant) -> Reason | None:
    """Why a test does not pass, as it is written."""
    pool = "control" if variant.kind == "control" else variant.pool
    return next((each for each in REASONS if test in each.tests and pool in each.pools), None)


def unexplained(results: Mapping[Variant, Mapping[str, Outcome]]) -> Iterator[str]:
    """Whatever does not pass for no written reason, and what passes in spite of one."""
    every = dict.fromkeys(node for found in results.values() for node in found)
    for variant, found in results.items():
        yield from (f"{variant} {node} was not reached" for node in every if node not in found)
        for node, outcome in found.items():
            written = reason(short(node), variant)
            if outcome.status != "passed" and written is None:
                yield f"{variant} {node} {outcome.status}: {outcome.said}"
            if outcome.status == "passed" and written and not written.sometimes:
                yield f"{variant} {node} passes, in spite of its reason"


def write(results: Mapping[Variant, Mapping[str, Outcome]]) -> None:
    """Write the page."""
    PAGE.write_text(
        TEXT.format(
            version=version("celery"), inside=len(INSIDE), counts=counts(results), reasons=reasons(results),
            left_out="\n".join(f"- {', '.join(f'`{name}`' for name in names)}: {said}" for names, said in LEFT_OUT),
        )
    )  # fmt: skip


def counts(results: Mapping[Variant, Mapping[str, Outcome]]) -> str:
    """The table of how many tests passed, for each file and worker."""
    lines = ["| | " + " | ".join(_title(variant) for variant in results) + " |", "|---|" + "---|" * len(results)]
    for file in FILES:
        cells = []
        for found in results.values():
            by = Counter(outcome.status for node, outcome in found.items() if short(node).startswith(f"{file}::"))
            more = [f"{by[status]} {status}" for status in ("failed", "skipped") if by[status]]
            cells.append(", ".join([f"{by['passed']} passed", *more]))
        lines.append(f"| `{file}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reasons(results: Mapping[Variant, Mapping[str, Outcome]]) -> str:
    """The table of tests that do not pass everywhere, with the reasons."""
    lines = ["| test | " + " | ".join(map(_title, results)) + " | why |", "|---|" + "---|" * (len(results) + 1)]
    tests: dict[str, dict[Variant, Counter[str]]] = {}
    for variant, found in results.items():
        for node, outcome in found.items():
            tests.setdefault(short(node), {}).setdefault(variant, Counter())[outcome.status] += 1
    for name, by_variant in sorted(tests.items()):
        if any(set(statuses) != {"passed"} for statuses in by_variant.values()):
            cells = [_cell(by_variant.get(variant, Counter())) for variant in results]
            said = dict.fromkeys(
                written.why if (written := reason(name, variant)) else "**not known**"
                for variant, statuses in by_variant.items()
                if set(statuses) != {"passed"}
            )
            lines.append(f"| `{name}` | " + " | ".join(cells) + f" | {' '.join(said)} |")
    return "\n".join(lines)


def _cell(statuses: Mapping[str, int]) -> str:
    if len(statuses) == 1:
        return next(iter(statuses))
    return ", ".join(f"{count} {status}" for status, count in statuses.items()) or "not run"


def _title(variant: Variant) -> str:
    if variant.kind == "control":
        return "Celery, prefork"
    return f"`core.tasks`, {variant.pool.replace('loop', 'asyncio, on the loop')}"
