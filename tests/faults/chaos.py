"""`make test-chaos`: everything at once, at random, under load; then every call's outcome against what was sent.

    python tests/faults/chaos.py --seed 7 --minutes 5

Ends with 1 and the story of each call whose outcome is not as promised. A seed fixes what is done and in which order,
not how the processes' steps fall between each other: a finding may need the same seed several times.
"""

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from faults.crew import Keeper
from faults.messages import Template, unexplained
from faults.payloads import payloads
from faults.rows import KINDS, POOLS, Finding
from faults.stories import Story, wrong
from faults.world import LEASE, RECOVERY, Call, World, world

WORKERS = 3
#: What is called, and how often of a hundred times.
SORTS = {"mark": 40, "nap": 40, "later": 8, "cancelled": 6, "block": 5, "poison": 1}
#: Calls a second. They keep half of the workers busy when all is well; the rest is for what faults hold up.
RATE = 15.0
#: Seconds between two faults, at least and at most.
PAUSE = (0.3, 4.0)


class Timeline:
    """What was done, and when."""

    def __init__(self) -> None:
        self.began = time.time()
        self.faults: list[tuple[float, str]] = []

    def did(self, what: str) -> None:
        self.faults.append((time.time(), what))
        print(f"{time.time() - self.began:7.2f}  {what}", flush=True)

    def around(self, since: float, to: float) -> list[str]:
        """The faults of this time and of the seconds before it."""
        return [f"{at - self.began:7.2f}  {what}" for at, what in self.faults if since - 3 <= at <= to]


class Callers(threading.Thread):
    """Makes calls of every sort until told to stop."""

    def __init__(self, made: World, seed: int) -> None:
        super().__init__(daemon=True)
        self.made, self.random, self.over = made, random.Random(seed), threading.Event()
        self.stories: list[Story] = []

    def run(self) -> None:
        while not self.over.wait(self.random.expovariate(RATE)):
            sort = self.random.choices(("mark", "nap", "later", "cancelled", "block", "poison"), (40, 40, 8, 6, 5, 1))[
                0
            ]
            self.stories.append(self._call(sort))
            for story in self.stories[-200:]:
                story.look()
                if story.sort == "cancelled" and story.accepted and story.call and not story.cancel:
                    story.cancel_asked = time.time()
                    story.cancel = self.made.ask_to_cancel(story.call)

    def _call(self, sort: str) -> Story:
        choice = self.random.random()
        task, args, options = {
            "mark": ("mark", [], {}),
            "nap": ("nap", [choice], {}),
            "later": ("mark", [], {"countdown": 1 + choice * 2 * LEASE}),
            "cancelled": ("mark", [], {"countdown": 2 + choice * 2 * LEASE}),
            "block": ("block", [choice], {}),
            "poison": ("poison", ["kill"], {}),
        }[sort]
        at = time.time()
        key, answer = self.made.begin(task, *args, **options)
        return Story(sort, key, at, at + options.get("countdown", 0), answer)


class Faults:
    """What can go wrong, each a function that heals what has to be healed."""

    def __init__(self, made: World, keeper: Keeper, timeline: Timeline, choose: random.Random) -> None:
        self.made, self.keeper, self.timeline, self.random = made, keeper, timeline, choose
        self.template = Template.of(made)
        self.pushed: dict[str, tuple[Call, str]] = {}
        self.names = list(dict(payloads(self.template.envelope, "", "")))

    def any(self) -> None:
        """One of them, at random."""
        deeds: dict[Callable[[], None], int] = {
            self.kill_worker: 5, self.kill_process: 3, self.pause_worker: 3, self.restart_worker: 3, self.cut: 3,
            self.restart_server: 2, self.freeze_server: 2, self.fill_server: 1, self.demote_server: 1,
            self.forget_scripts: 1, self.odd_message: 6,
        }  # fmt: skip
        self.random.choices(list(deeds), list(deeds.values()))[0]()

    def kill_worker(self) -> None:
        worker = self.keeper.one(self.random.choice)
        self.timeline.did(f"kill -9 of worker {worker.pid}")
        worker.kill()

    def kill_process(self) -> None:
        worker = self.keeper.one(self.random.choice)
        pid = self.random.choice(worker.children() or [worker.pid])
        self.timeline.did(f"kill -9 of process {pid} of worker {worker.pid}")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def pause_worker(self) -> None:
        worker, seconds = self.keeper.one(self.random.choice), self.random.uniform(0.5, 2.5 * LEASE)
        self.timeline.did(f"worker {worker.pid} stands still for {seconds:.1f} s")
        with suppress(ProcessLookupError):
            worker.freeze()
            self.made.hold(seconds)
            os.killpg(worker.pid, signal.SIGCONT)

    def restart_worker(self) -> None:
        worker = self.keeper.one(self.random.choice)
        self.timeline.did(f"SIGTERM to worker {worker.pid}")
        worker.terminate()

    def cut(self) -> None:
        self.timeline.did("every connection is cut")
        self.made.server.cut()

    def restart_server(self) -> None:
        seconds = self.random.uniform(0, 1.5 * LEASE)
        self.timeline.did(f"the server is killed, and starts again after {seconds:.1f} s")
        self.made.server.kill()
        self.made.hold(seconds)
        self.made.server.start()

    def freeze_server(self) -> None:
        seconds = self.random.uniform(0.5, 2 * LEASE)
        self.timeline.did(f"the server freezes for {seconds:.1f} s")
        with self.made.server.frozen():
            self.made.hold(seconds)

    def fill_server(self) -> None:
        self.timeline.did("the server is full for 2 s")
        with self.made.server.full():
            self.made.hold(2)

    def demote_server(self) -> None:
        self.timeline.did("the server is a replica for 2 s")
        with self.made.server.demoted():
            self.made.hold(2)

    def forget_scripts(self) -> None:
        self.timeline.did("the server forgets its scripts")
        self.made.server.client.script_flush()

    def odd_message(self) -> None:
        name, key = self.random.choice(self.names), self.made.key("odd")
        task_id, good = self.template.fresh(key)
        text = dict(payloads(json.loads(good), key, str(self.made.project.root / "unpickled")))[name]
        self.timeline.did(f"an odd message: {name}")
        self.made.server.client.lpush("default", text)
        self.pushed[f"{name} ({key})"] = Call(task_id, key), text


def chaos(made: World, seed: int, minutes: float) -> list[str]:
    """Play everything for so long; the stories of what is not as promised."""
    timeline, choose = Timeline(), random.Random(seed)
    found: list[str] = []
    # The template is taken before a worker could take it.
    with_faults = Faults(made, keeper := Keeper(made, WORKERS), timeline, choose)
    with keeper:
        callers = Callers(made, seed)
        callers.start()
        while time.time() < timeline.began + minutes * 60:
            made.hold(choose.uniform(*PAUSE))
            with_faults.any()
        callers.over.set()
        callers.join()
        timeline.did("peace")
        for story in callers.stories:
            story.look(within=30)
        calls = [story.call for story in callers.stories if story.call and story.accepted]
        for check in (
            lambda: made.until(
                lambda: not made.ledger.remaining()["queued"], 60 + minutes * 30, "the queue stays full"
            ),
            lambda: made.settle(calls, within=RECOVERY + 60),
            lambda: made.nothing_left(within=RECOVERY),
        ):
            try:
                check()
            except Finding as finding:
                found.append(f"at the end: {finding}")
        missing = unexplained(made, with_faults.pushed, within=RECOVERY)
    for worker in made.workers:
        # SIGTERM ends with 0, a kill with a signal; 70 is a worker that says it is stuck.
        if (code := worker.ended()) not in (None, 0, -signal.SIGKILL):
            found.append(f"a worker ended by itself: exit code {code}\n{worker.text()[-2000:]}")
    found += [f"an odd message is nowhere: {name}" for name in missing]
    found += wrong(made, callers.stories, timeline.around)
    sorts = Counter(story.sort for story in callers.stories)
    refused = sum(not story.accepted for story in callers.stories)
    print(f"\n{len(callers.stories)} calls ({dict(sorts)}), {refused} of them refused; {len(timeline.faults)} faults")
    print(f"set aside: {Counter(str(entry.get('reason'))[:60] for entry in made.ledger.set_aside().values())}")
    print(f"runs per call: {dict(sorted(Counter(made.runs_of(s.key) for s in callers.stories if s.accepted).items()))}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--kind", choices=KINDS, default="ours")
    parser.add_argument("--pool", choices=POOLS, help="otherwise as the seed chooses")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    pool = options.pool or random.Random(seed).choice(POOLS)
    print(f"seed {seed}, {options.minutes:g} minutes, {options.kind}, {pool}", flush=True)
    with world(options.kind, pool) as made:
        found = chaos(made, seed, options.minutes)
    for story in found:
        print(f"\n{story}")
    print(f"\nseed {seed}: {f'{len(found)} not as promised' if found else 'every call as promised'}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
