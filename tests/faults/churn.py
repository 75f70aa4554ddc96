"""What killing costs: workers and the server are killed under a steady load, and every call is accounted for.

    python tests/faults/churn.py --kind ours --pool prefork

5,000 calls at 100 a second, 50 `kill -9` of whole workers, 10 of the server (append-only file, appendfsync always);
a worker is killed after each hundred runs. Then, ten times in a calm, the worker that runs a call is killed.
Calls whose `delay()` raised are no part of the promise; they are made again until 5,000 were accepted.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from faults.crew import Keeper, Load
from faults.rows import KINDS, POOLS, Finding
from faults.world import LEASE, RECOVERY, Call, Worker, World, until, world

WORKERS = 3


@dataclass
class Figures:
    """What one run has shown, and what was done in it."""

    rate: float
    kills: int
    server_kills: int
    accepted: int = 0
    refused: int = 0
    lost: int = 0
    #: Calls by the number of their runs, and by the number of their outcomes.
    runs: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[int] = field(default_factory=Counter)
    set_aside: int = 0
    #: Seconds from a kill to the next run of a call that it interrupted.
    recoveries: list[float] = field(default_factory=list)
    calm: list[float] = field(default_factory=list)
    left: str = ""

    @property
    def again(self) -> int:
        """How many calls ran more than once."""
        return sum(count for runs, count in self.runs.items() if runs > 1)

    def __str__(self) -> str:
        lines = [
            f"accepted {self.accepted}, refused while the server was away {self.refused}",
            f"lost {self.lost}, run more than once {self.again}, set aside {self.set_aside}",
            f"outcomes per call: {dict(sorted(self.outcomes.items()))}",
        ]
        for when, seconds in (("under load", self.recoveries), ("in a calm", self.calm)):
            if seconds:
                lines.append(
                    f"{when}: {len(seconds)} interrupted calls ran again after {statistics.median(seconds):.1f} s "
                    f"(median), {max(seconds):.1f} s (worst); lease {LEASE} s"
                )
        return "\n".join([*lines, *([self.left] if self.left else [])])


def churn(
    made: World,
    *,
    calls: int = 5000,
    rate: float = 100,
    kills: int = 50,
    server_kills: int = 10,
    calm: int = 10,
    seed: int = 1,
) -> Figures:
    """Kill and count.

    Args:
        rate: Calls a second.
        kills: How many workers are killed under load, and then one by one in a calm (*calm*).
    """
    random_ = random.Random(seed)

    def choose(found: list[Worker]) -> Worker:
        """One that works, where there is one."""
        busy = [worker for worker in found if made.ledger.pids() & {worker.pid, *worker.children()}]
        return random_.choice(busy or found)

    killed: dict[int, float] = {}
    figures = Figures(rate, kills, server_kills)
    with Keeper(made, WORKERS) as keeper:
        loads = [Load(made, calls, rate, "nap", 0.02)]
        for number in range(1, kills + 1):
            until(lambda due=number * calls / (kills + 1): made.ledger.total() >= due, 120, "calls do not run")
            worker = keeper.one(choose)
            pids = [worker.pid, *worker.children()]
            worker.kill()
            killed |= dict.fromkeys(pids, time.time())
            if server_kills and number % (kills // server_kills) == 0:
                made.server.kill()
                made.server.start()
        accepted: list[Call] = loads[0].accepted()
        while missing := calls - len(accepted):
            figures.refused += missing
            loads.append(Load(made, missing, rate, "nap", 0.02))
            accepted += loads[-1].accepted()
        try:
            made.settle(accepted, within=RECOVERY + 60)
            made.nothing_left()
        except Finding as finding:
            figures.left = str(finding)
        account(made, accepted, killed, figures)
        try:
            for _ in range(calm):
                figures.calm.append(recovery(made, keeper))
        except Finding as finding:
            figures.left += f"; in a calm: {finding}"
    return figures


def recovery(made: World, keeper: Keeper) -> float:
    """Seconds from the kill of a worker to the next run of the call that it ran."""
    until(lambda: len(keeper.ready()) == WORKERS, 60, "workers do not start")
    call = made.call("nap", 0.5)
    made.runner(call)[0].kill()
    began = time.time()
    made.await_run(call, times=2, within=RECOVERY + 5)
    return made.ledger.begun(call.key)[1].at - began


def account(made: World, accepted: list[Call], killed: dict[int, float], figures: Figures) -> None:
    """Count what became of the calls."""
    outcomes = made.ledger.outcomes([call.id for call in accepted])
    aside = made.ledger.set_aside()
    figures.accepted = len(accepted)
    for call in accepted:
        runs = made.ledger.begun(call.key)
        figures.runs[len(runs)] += 1
        figures.outcomes[len(outcomes[call.id])] += 1
        figures.set_aside += call.id in aside
        figures.lost += not runs and call.id not in aside
        figures.recoveries += [later.at - killed[run.pid] for run, later in pairwise(runs) if run.pid in killed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="ours")
    parser.add_argument("--pool", choices=POOLS, default=POOLS[0])
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=100, help="calls a second")
    parser.add_argument("--kills", type=int, default=50, help="of workers under load")
    parser.add_argument("--server-kills", type=int, default=10)
    parser.add_argument("--calm", type=int, default=10, help="kills in a calm")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = vars(parser.parse_args())
    kind, pool, as_json = options.pop("kind"), options.pop("pool"), options.pop("json")
    with world(kind, pool) as made:
        figures = churn(made, **options)
    if as_json:
        print(json.dumps(vars(figures)))
    else:
        print(f"{kind}, {pool}: {figures.kills} kills of workers, {figures.server_kills} of the server")
        print(figures)
    return int(figures.lost > 0 or set(figures.outcomes) != {1} or bool(figures.left))


if __name__ == "__main__":
    sys.exit(main())
