"""`make bench-peers`: core.tasks beside other libraries for background tasks, each in an environment of its own.

python tests/bench/peers/run.py                                   everything, and docs/benchmarks.md (20 minutes)
python tests/bench/peers/run.py --only ours,saq --workload noop   some rows or peers, some workloads; only printed
python tests/bench/peers/run.py --page                            the page anew, from the figures that are kept

Rounds alternate between the rows, and whoever is not measured does not run.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

from bench.peers import page
from bench.peers.measures import MEASURES, figure
from bench.peers.rows import PEERS, ROWS, Row
from bench.peers.workloads import FULL, ONCE, QUICK, WORKLOADS, Round, Sizes
from bench.peers.world import ROOT, Unavailable, environment, world

#: Seconds after which no further round begins, nor any workload that is run once.
LONGEST = 25 * 60


def play(row: Row, workloads: list[str], sizes: Sizes, found: dict[str, Any]) -> None:
    """One round of a row; its samples, and what went wrong, are added to what was found before.

    After a failure the other workloads begin in a new world, in which nothing of it is left.
    """
    began, samples, waiting = time.monotonic(), {}, list(workloads)
    while waiting:
        workload = ""
        try:
            with world(row) as made:
                if not found["versions"]:
                    names = list(PEERS[row.peer].versions)
                    found["versions"] = made.publisher().ask("versions", names=names)["value"]
                measured = Round(made, sizes, samples)
                while waiting:
                    workload = waiting.pop(0)
                    measured.run(workload)
                lost, again = made.runs()
                found["calls"] += made.next - len(made.left)
                found["lost"] += lost
                found["again"] += again
        except (Unavailable, AssertionError, OSError) as error:
            said = found["failed"][workload or "all"] = " ".join(str(error).replace(str(ROOT), "…").split())[:300]
            print(f"    {row.name}: {workload or 'all'}: {said}", flush=True)
            if not workload:
                break
    for name, (value, others) in samples.items():
        found["samples"].setdefault(name, []).append((float(f"{value:.5g}"), others))
    shown = "  ".join(f"{name} {MEASURES[name].text(value)}" for name, (value, _) in samples.items())
    print(f"  {row.name} ({time.monotonic() - began:.0f} s): {shown}", flush=True)


def installed(peers: Iterable[str], upgrade: bool) -> Iterator[tuple[str, str]]:
    """Install peers where they are not yet; those that cannot be, and why."""
    for name in peers:
        try:
            environment(name, upgrade)
        except Unavailable as error:
            print(f"{name}: {error}", flush=True)
            yield name, str(error)


def measure(
    rows: list[Row], workloads: list[str], rounds: int, sizes: Sizes, missing: Mapping[str, str]
) -> dict[str, Any]:
    """Run rounds over the rows, and return what they gave, by row.

    Args:
        missing: Peers that cannot be measured, and why.
    """
    results: dict[str, Any] = {
        row.name: {"versions": {}, "samples": {}, "failed": {}, "calls": 0, "lost": 0, "again": 0} for row in rows
    }
    for row in rows:
        if row.peer in missing:
            results[row.name]["failed"]["all"] = missing[row.peer]
    rows = [row for row in rows if row.peer not in missing]
    began = time.monotonic()
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}, {time.monotonic() - began:.0f} s", flush=True)
        for row in rows if number % 2 == 0 else reversed(rows):
            if time.monotonic() - began > LONGEST:
                print(f"  {row.name} is left out of this round: {LONGEST / 60:.0f} minutes are over", flush=True)
                continue
            chosen = [
                workload
                for workload in workloads
                if workload not in ONCE or (number == 0 and getattr(row, workload))
            ]  # fmt: skip
            play(row, chosen, sizes, results[row.name])
    return results


def about(rounds: int, seconds: float, sizes: Sizes) -> dict[str, Any]:
    """When, where and with what it was measured."""
    from redis import Redis
    from support import redis_server

    with redis_server() as (url, _), Redis.from_url(url) as client:
        server = client.info("server")
    name = "valkey" if "valkey_version" in server else "redis"
    return {
        "date": datetime.date.today().isoformat(), "python": platform.python_version(), "cores": os.cpu_count(),
        "machine": platform.machine(), "server": f"{name.title()} {server[f'{name}_version']}", "rounds": rounds,
        "minutes": round(seconds / 60),
        "sizes": {name: getattr(sizes, name) for name in ("backlog", "filling", "backlog_time", "delayed")},
    }  # fmt: skip


def show(results: dict[str, Any]) -> None:
    """Print the medians."""
    for name, found in results.items():
        print(f"\n{name}  {found['calls']:,} calls, {found['lost']} lost, {found['again']} run again")
        for measure, samples in found["samples"].items():
            if of := figure(samples):
                unit = MEASURES[measure].unit
                print(f"  {measure:18} {MEASURES[measure].text(of.value):>9} {unit:8} ± {of.spread:.0%}")
        for what, said in found["failed"].items():
            print(f"  {what}: {said}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="names of peers or rows, with commas between them: ours,saq")
    parser.add_argument("--workload", help=f"some of {','.join(WORKLOADS)}")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that everything works")
    parser.add_argument("--upgrade", action="store_true", help="install the latest version of every peer")
    parser.add_argument("--page", action="store_true", help="only write the page anew, from the figures that are kept")
    options = parser.parse_args()
    if options.page:
        page.write(json.loads(page.RESULTS.read_text()))
        return 0
    only = {name.strip() for name in (options.only or "").split(",") if name.strip()}
    rows = [row for row in ROWS if not only or {row.name, row.peer} & only]
    workloads = [name for name in WORKLOADS if not options.workload or name in options.workload.split(",")]
    if not rows or not workloads:
        parser.error("nothing is left: --only knows " + ", ".join([*PEERS, *(row.name for row in ROWS)]))
    missing = dict(installed(dict.fromkeys(row.peer for row in rows), options.upgrade))
    began = time.monotonic()
    results = measure(rows, workloads, options.rounds, QUICK if options.quick else FULL, missing)
    show(results)
    print(f"\n{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f} at the end")
    if only or options.workload or options.quick:
        print("only some of it, or small numbers: the page is left as it is")
    else:
        page.write({"about": about(options.rounds, time.monotonic() - began, FULL), "rows": results})
    return any(found["lost"] for found in results.values())


if __name__ == "__main__":
    sys.exit(main())
