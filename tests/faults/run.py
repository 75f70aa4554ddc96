"""`make test-faults`: plays every row with core.tasks and with plain Celery, prints both columns, writes the page.

python tests/faults/run.py                          everything, and docs/guarantees.md
python tests/faults/run.py --row 13 --kind ours     one row, with what its workers printed when it fails
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from faults import page
from faults.churn import Figures
from faults.rows import KINDS, Finding, Outcome, Row, all_rows, find
from faults.world import world
from support import sweep

#: Seconds for one row on one pool, after which it counts as failed.
LONGEST = 120
#: The same for the figures of what killing costs, and whose figures are taken.
CHURN_LONGEST = 420
CHURNED = (("ours", "prefork"), ("ours", "threads"), ("ours", "asyncio"), ("stock", "prefork"))
#: Plays at once; two cores carry three, since most of a row is waiting.
AT_ONCE = 3


def play(row: Row, kind: str, pool: str, *, patience: float = 1, explain: bool = False) -> Outcome:
    """Play one row here.

    Args:
        patience: By how much the next ordinary call may be late, where something else runs beside this.
        explain: Print what the workers have printed if it is not as promised.
    """
    with world(kind, pool, *row.server, **row.environment(kind)) as made:
        made.patience = patience
        try:
            return Outcome(True, row.play(made))
        except Finding as finding:
            if explain:
                for worker in made.workers:
                    print(f"--- worker {worker.pid}, ended: {worker.ended()}\n{worker.text()}", file=sys.stderr)
            return Outcome(False, str(finding))


def apart(script: str, *options: str, longest: float) -> str:
    """What a script of the suite prints, in a process of its own of which nothing stays."""
    directory = Path(tempfile.mkdtemp(prefix="core-faults-"))
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / script), *options, "--json"],
        env={**os.environ, "TEST_RUN": str(directory)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, errors = process.communicate(timeout=longest)
        if not said:
            raise Finding(f"the suite failed: {errors[-500:]}")
        return said
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise Finding(f"no end within {longest:g} s") from None
    finally:
        sweep(directory)


def play_apart(row: Row, kind: str, pool: str) -> Outcome:
    """Play one row in a process of its own."""
    try:
        return Outcome(**json.loads(apart("run.py", "--row", str(row.number), "--kind", kind, "--pool", pool,
                                          longest=LONGEST)))  # fmt: skip
    except Finding as finding:
        return Outcome(False, str(finding))


def churn_apart(kind: str, pool: str) -> Figures:
    """What killing costs, found in a process of its own."""
    said = json.loads(apart("churn.py", "--kind", kind, "--pool", pool, longest=CHURN_LONGEST))
    for name in ("runs", "outcomes"):
        said[name] = Counter({int(key): value for key, value in said[name].items()})
    return Figures(**said)


def merged(outcomes: dict[str, Outcome]) -> Outcome:
    """One outcome for all pools; they are named where they differ."""
    failed = {pool: outcome for pool, outcome in outcomes.items() if not outcome.passed}
    shown = failed or outcomes
    if len({outcome.said for outcome in shown.values()}) == 1 and len(shown) in (1, len(outcomes)):
        only = next(iter(shown))
        prefix = f"{only}: " if len(shown) < len(outcomes) else ""
        return Outcome(not failed, prefix + shown[only].said)
    return Outcome(not failed, "; ".join(f"{pool}: {outcome.said}" for pool, outcome in shown.items()))


def play_all(rows: list[Row], kinds: list[str]) -> Iterator[tuple[Row, dict[str, Outcome]]]:
    """Play rows side by side, those that measure time one by one at the end; each with its outcome by kind."""
    for alone in (False, True):
        chosen = [row for row in rows if row.alone is alone]
        with ThreadPoolExecutor(1 if alone else AT_ONCE) as threads:
            started = {
                (row.number, kind, pool): threads.submit(play_apart, row, kind, pool)
                for row in chosen
                for kind in kinds
                for pool in row.pools_of(kind)
            }
            for row in chosen:
                yield (
                    row,
                    {
                        kind: merged({pool: started[row.number, kind, pool].result() for pool in row.pools_of(kind)})
                        for kind in kinds
                    },
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", type=int, action="append", help="a row's number; may be repeated")
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--pool", help="one pool only, played in this process")
    parser.add_argument("--json", action="store_true", help="print the outcome of --row, --kind and --pool alone")
    parser.add_argument("--no-page", action="store_true", help="do not write docs/guarantees.md")
    options = parser.parse_args()
    if options.pool and not options.row:
        parser.error("--pool needs --row")
    if options.pool:
        outcome = play(find(options.row[0]), options.kind or "ours", options.pool, explain=not options.json)
        print(json.dumps(asdict(outcome)) if options.json else f"{'ok' if outcome.passed else 'NO'}  {outcome.said}")
        return not outcome.passed
    rows = [row for row in all_rows() if not options.row or row.number in options.row]
    kinds = [options.kind] if options.kind else list(KINDS)
    began, results = time.monotonic(), {}
    for row, outcomes in play_all(rows, kinds):
        results[row.number] = outcomes
        print(f"{row.number:>2}  {row.title}", flush=True)
        for kind, outcome in outcomes.items():
            print(f"      {kind:5} {'ok' if outcome.passed else 'NO'}  {outcome.said}", flush=True)
    failed = [
        f"row {number}" for number, outcomes in results.items() if "ours" in outcomes and not outcomes["ours"].passed
    ]
    if len(kinds) == len(KINDS) and not options.row and not options.no_page:
        figures = {}
        for kind, pool in CHURNED:
            figures[f"{page.NAMES[kind]}, {pool}"] = found = churn_apart(kind, pool)
            print(f"\n{kind}, {pool}\n{found}", flush=True)
            if kind == "ours" and (found.lost or found.outcomes[1] != found.accepted):
                failed.append(f"what killing costs on {pool}")
        page.write(results, figures)
    took = time.monotonic() - began
    print(f"\n{len(results)} rows in {took:.0f} s; not as promised: {', '.join(failed) or 'nothing'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
