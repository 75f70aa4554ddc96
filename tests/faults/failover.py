"""How long a schedule stands still when the scheduler that leads is killed, beside a worker under load.

    python tests/faults/failover.py
    python tests/faults/failover.py --kind stock --kills 3 --default-kills 0

Three entries are due every second, a worker runs them and 100 other calls a second, and one scheduler stands by. The
one that leads is killed (`kill -9`) ten times with a lock of 4 s, and twice with the default one of 30 s, always when
it has just sent something and renewed its lock, the worst moment. It takes two to three minutes.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from faults.crew import Load
from faults.rows import KINDS, Finding
from faults.schedulers import EVERY, LOCK, LOOP, Plan, Ran, leading, scheduler, standby, takes_over
from faults.world import World, world

PLAN: Plan = {"ticks": EVERY, "tocks": EVERY, "tacks": EVERY}
#: Seconds of the lock and of the longest time between two looks that core.tasks sets; RedBeat's own are 1,500 and 300.
DEFAULTS = 30, 5
#: Seconds that a run may be late beside that, on a machine that has other things to do.
SLACK = 1.0


@dataclass
class Figures:
    """What one series of kills has shown."""

    lock: int
    loop: int
    #: Seconds from each kill to the next run.
    seconds: list[float] = field(default_factory=list)
    sent: int = 0
    twice: int = 0
    #: Times without a run that were longer than a lock, a look and the interval.
    missed: int = 0
    calls: int = 0

    def __str__(self) -> str:
        found = sorted(self.seconds)
        return (
            f"lock {self.lock} s, a look every {self.loop} s: {len(found)} kills, the next run after "
            f"{statistics.median(found):.1f} s (median), {found[-1]:.1f} s (worst); at most {self.lock + self.loop} s "
            f"is promised\n"
            f"  {self.sent} due times sent, {self.twice} of them twice; {self.missed} times missed for longer than "
            f"that; {self.calls} other calls ran once"
        )


def failover(made: World, kills: int, lock: int, loop: int, rate: float) -> Figures:
    """Kill the leader again and again.

    Args:
        rate: Other calls a second.
    """
    figures = Figures(lock, loop)
    ours_is_default = made.ours and (lock, loop) == DEFAULTS
    celery = {} if ours_is_default else {"redbeat_lock_timeout": lock, "beat_max_loop_interval": loop}
    environment = {"CELERY": json.dumps(celery)}
    with Ran(made) as ran:
        began = time.time()
        crew = [scheduler(made, PLAN, **environment), standby(made, PLAN, **environment)]
        for _ in range(kills):
            load = Load(made, int(rate * (lock + loop)), rate, "nap", 0.02)
            leader = leading(made, ran, crew)
            figures.seconds.append(takes_over(ran, "ticks", leader.kill))
            crew = [*(each for each in crew if each is not leader), standby(made, PLAN, **environment)]
            calls = load.accepted()
            made.settle(calls)
            made.ran(calls)
            figures.calls += len(calls)
        ran.more("ticks", 3)
        for each in crew:
            each.stop()
        figures.twice = ran.twice(since=began)
        for name in PLAN:
            runs = ran.runs(name, since=began)
            figures.sent += len(runs)
            gaps = [later.at - run.at for run, later in pairwise(runs)]
            figures.missed += sum(gap > lock + loop + EVERY + SLACK for gap in gaps)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="ours")
    parser.add_argument("--kills", type=int, default=10, help="with the short lock")
    parser.add_argument("--default-kills", type=int, default=2, help="with the default lock")
    parser.add_argument("--rate", type=float, default=100, help="other calls a second")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    found: list[Figures] = []
    with world(options.kind, "asyncio" if options.kind == "ours" else "prefork") as made:
        made.project.environment["FAULTS_SCHEDULE"] = json.dumps(PLAN)
        made.worker(concurrency=20 if made.ours else 4)
        try:
            for kills, times in ((options.kills, (LOCK, LOOP)), (options.default_kills, DEFAULTS)):
                if kills:
                    found.append(failover(made, kills, *times, options.rate))
                    if not options.json:
                        print(found[-1], flush=True)
        except Finding as finding:
            print(f"not as promised: {finding}", file=sys.stderr)
            return 1
    if options.json:
        print(json.dumps([asdict(each) for each in found]))
    return any(each.twice or each.missed or max(each.seconds) > each.lock + each.loop + SLACK for each in found)


if __name__ == "__main__":
    sys.exit(main())
