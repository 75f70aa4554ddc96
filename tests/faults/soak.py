"""`make soak`: calls of every kind, for MINUTES=10, by a worker that must not grow: the asyncio pool, two processes.

    python tests/faults/soak.py --minutes 10 --seed 1

Calls are made in rounds. After each one, when nothing runs, it is written down what the worker's processes take. Ends
with 1 where that has grown between the first third after the warm-up and the last, or a call has not ended as it
should.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from load.calls import plan, play
from stock.world import Call, World, world
from support import held, wait_until

PROCESSES, CONCURRENCY = 2, 1000
#: Calls of a round, beside those that they make themselves, and how many of them at once.
CALLS, AT_ONCE = 1500, 500
#: The part of the time that is not looked at: threads, connections and caches come into being as they are needed.
WARM_UP = 0.25
#: What may be more at the end than at the beginning, as a part of it. Where the machine is busy with something else,
#: more calls run at once, and memory keeps the trace of it; pools of threads fill up to their limit.
MORE = {"memory": 0.05, "caller": 0.05, "objects": 0.05, "threads": 0.1, "descriptors": 0.1, "connections": 0.1}
ENVIRONMENT = {
    "TASK_RESULT_EXPIRES": "60",
    "TASK_PUBLISH_TIMEOUT": "30",
    # Celery remembers this many revoked calls. With its own 50,000 a process grows for longer than this takes.
    "CELERY_WORKER_REVOKES_MAX": "1000",
}


class Soak:
    """A worker under load, and what it takes."""

    def __init__(self, made: World) -> None:
        self.made = made
        made.project.environment |= ENVIRONMENT
        os.environ |= {**ENVIRONMENT, "MARKS": str(made.file)}
        os.chdir(made.project.root)
        sys.path.append(str(made.project.root))
        made.workers.append(made.project.start(
            "core", "runworker", "--pool", "asyncio", "--processes", f"{PROCESSES}", "--concurrency", f"{CONCURRENCY}",
            "--loglevel", "error",
        ))  # fmt: skip
        wait_until(lambda: made.socket.exists() and len(self.looks()) == PROCESSES, 30, "all processes serve")
        self.tasks = import_module("src.tasks")
        self.samples: list[dict[str, float]] = []
        self.kinds: list[Counter[str]] = []

    def looks(self) -> list[dict[str, Any]]:
        """What every process tells of itself."""
        answers = self.made.app.control.broadcast("look", reply=True, timeout=10, limit=PROCESSES) or []
        return [look for answer in answers for look in answer.values()]

    def sample(self) -> dict[str, float]:
        """What the worker takes now that nothing runs."""
        redis = self.made.redis
        try:
            wait_until(lambda: not held(redis) and not redis.llen("default"), 30, "nothing runs")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.left()}") from None
        looks = self.looks()
        assert len(looks) == PROCESSES, f"{PROCESSES - len(looks)} processes do not answer"
        names = ("asyncio tasks", "threads", "descriptors", "bodies", "tracers", "objects")
        found = {name: float(sum(look[name] for look in looks)) for name in names}
        found["memory"] = sum(map(pss, [self.made.worker.pid, *(look["pid"] for look in looks)]))
        found["caller"] = pss(os.getpid())
        found["connections"] = len(redis.client_list())
        self.samples.append(found)
        self.kinds.append(sum((Counter(look["kinds"]) for look in looks), Counter[str]()))
        return found

    def left(self) -> str:
        """What is known of the calls that have not ended."""
        lines = self.made.file.read_text().splitlines()
        found = []
        for message in [*held(self.made.redis), *self.made.redis.lrange("default", 0, -1)]:
            headers = json.loads(message)["headers"]
            id = headers["id"]
            marks = [said.split(maxsplit=1)[1] for said in lines if said.startswith(id)]
            state = Call(self.made.redis, id).state
            found.append(f"{headers['task']}{headers['argsrepr']}[{id}] is {state}, root {headers['root_id']}: {marks}")
        return "\n".join([*found, self.made.worker.text()[-3000:]])

    def round(self, seed: int) -> list[str]:
        """Make the calls of one round, and say which did not end as they should."""
        for file in (self.made.file, self.made.worker.output):
            os.truncate(file, 0)
        return self.run(play(self.tasks, plan(seed, CALLS), AT_ONCE))

    def grown(self) -> list[str]:
        """What is more at the end than at the beginning."""
        samples = self.samples[int(len(self.samples) * WARM_UP) :]
        third = max(len(samples) // 3, 1)
        first, last = samples[:third], samples[-third:]
        found = []
        for name in samples[0]:
            before, after = (median(sample[name] for sample in some) for some in (first, last))
            if after > before * (1 + MORE.get(name, 0)):
                found.append(f"{name} from {before:,.0f} to {after:,.0f}")
        return found

    run: Callable[[Any], Any] = staticmethod(asyncio.run)


def pss(pid: int) -> float:
    """KiB of memory that a process has written to; what it shares with the others counts in part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


def line(words: Mapping[str, object]) -> str:
    return "  ".join(f"{word:>13}" for word in words.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.minutes:g} minutes", flush=True)
    wrong: list[str] = []
    with world(str(Path(__file__).parent.parent / "load/tasks.py")) as made, asyncio.Runner() as runner:
        soak = Soak(made)
        soak.run = runner.run
        began, calls = time.monotonic(), 0
        while time.monotonic() < began + options.minutes * 60:
            wrong += soak.round(seed + len(soak.samples))
            calls += CALLS
            sample = soak.sample()
            if len(soak.samples) == 1:
                print(line({name: name for name in ("seconds", "calls", *sample)}))
            said = {"seconds": time.monotonic() - began, "calls": calls, **sample}
            print(line({name: f"{value:,.0f}" for name, value in said.items()}), flush=True)
        grown = soak.grown()
        if grown:
            half = soak.kinds[len(soak.kinds) // 2]
            print(f"more at the end than in the middle: {(soak.kinds[-1] - half).most_common(12)}")
        code = made.worker.stop()
    print("".join(f"\n{said}" for said in wrong[:10]))
    found = [*grown, *([f"{len(wrong)} calls did not end as they should"] if wrong else []),
             *([f"the worker's exit code is {code}"] if code else [])]  # fmt: skip
    print(f"seed {seed}, {calls:,} calls: {'; '.join(found) or 'nothing has grown, every call as it should be'}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
