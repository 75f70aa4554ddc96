"""Makes calls that end in every way there is, many at once and at random, inside a project with `load/tasks.py`.

    python -m load.calls SEED CALLS AT_ONCE

A seed fixes what is called and when, not how the steps fall between each other.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from core.tasks import TaskResult

#: What is called, and how often of a hundred times.
KINDS = {
    "nap": 22, "plain": 8, "fails": 10, "retried": 12, "slow": 8, "stubborn": 4, "parent": 8, "orphan": 4,
    "later": 5, "cancelled": 10, "raced": 6, "dropped": 3,
}  # fmt: skip
#: Seconds that a sleep takes at most.
LONGEST = 0.7
#: Words that are the end of a call, or of one of its attempts.
ENDS = ("success", "failure", "revoked", "retry")
#: Seconds that anything may take where the machine is busy with something else.
PATIENCE = 60
#: Seconds by which the last marks of a call may come after its outcome.
LATE = 5


@dataclass
class Story:
    """One call: what was planned, and what became of it."""

    kind: str
    number: int
    #: Seconds until a random moment, and attempts that fail.
    after: float
    fails: int
    id: str = ""
    outcome: str = ""
    said: str = ""
    #: What `cancel` has said.
    stopped: bool | None = None

    async def play(self, tasks: Any) -> None:
        """Make the call and wait for its outcome."""
        try:
            result = await self._call(tasks)
            self.id = result.id
            if self.kind in ("cancelled", "raced", "dropped"):
                await asyncio.sleep(self.after if self.kind != "dropped" else 0)
                self.stopped = await result.cancel()
            self.outcome = f"returned {await result.get(timeout=PATIENCE)}"
        except Exception as error:
            self.outcome, self.said = type(error).__name__, str(error)

    async def _call(self, tasks: Any) -> TaskResult[Any]:
        match self.kind:
            case "nap" | "raced":
                return await tasks.nap.delay(self.after, self.number)
            case "plain":
                return await tasks.plain.delay(self.after / 50, self.number)
            case "fails" | "orphan":
                return await getattr(tasks, self.kind).delay(self.after)
            case "retried":
                return await tasks.retried.delay(self.after / 4, self.fails)
            case "parent":
                return await tasks.parent.delay(self.after, self.number)
            case "later":
                return await tasks.nap.delay(0, self.number, countdown=self.after)
            case "cancelled":
                return await tasks.nap.delay(600, self.number)
            case "dropped":
                return await tasks.nap.delay(0, self.number, countdown=30)
        return await getattr(tasks, self.kind).delay()

    def wrong(self, marks: Counter[str]) -> str:
        """What is not as expected, if anything."""
        ends = {word: marks[word] for word in ENDS if marks[word]}
        seen = self.outcome, marks["begun"], ends, marks["cleaned"]
        if seen in self._expected(marks):
            return ""
        return f"{self}: {dict(marks)}, expected one of {self._expected(marks)}"

    def _expected(self, marks: Counter[str]) -> list[tuple[str, int, dict[str, int], int]]:
        """Outcome, how often the body began, how Celery says that the attempts ended, and bodies that cleaned up."""
        good = (f"returned {self.number}", 1, {"success": 1}, 0)
        revoked = [("TaskRevoked", begun, {"revoked": 1}, 0) for begun in (0, 1)]
        match self.kind:
            case "nap" | "plain" | "later":
                return [good]
            case "fails" | "orphan":
                return [("ValueError", 1, {"failure": 1}, 0)]
            case "retried" if self.fails == 3:
                return [("TaskError", 3, {"retry": 2, "failure": 1}, 0)]
            case "retried":
                return [(f"returned {self.fails + 1}", self.fails + 1, {"success": 1, "retry": self.fails}, 0)]
            case "slow" | "stubborn":
                return [("TaskTimeout", 1, {"failure": 1}, 1)]
            case "parent":
                return [(f"returned {2 * self.number + 2}", 1, {"success": 1}, 0)]
            case "cancelled":
                return revoked
            case "dropped":  # it is parked until its time has come
                return [("TaskRevoked", 0, {}, 0)]
        if marks["cancelled"]:
            return revoked[1:]
        # It has ended while it was being cancelled.
        return [good] if self.stopped is False else [good, *revoked, ("TaskRevoked", 1, {"success": 1}, 0)]


def plan(seed: int, calls: int) -> list[Story]:
    """What a seed chooses."""
    choose = random.Random(seed)
    kinds = choose.choices(list(KINDS), list(KINDS.values()), k=calls)
    return [Story(kind, number, choose.random() * LONGEST, choose.randint(1, 3)) for number, kind in enumerate(kinds)]


async def play(tasks: Any, stories: list[Story], at_once: int) -> list[str]:
    """Make these calls, so many at once, and say what is not as expected."""
    room = asyncio.Semaphore(at_once)

    async def one(story: Story) -> None:
        async with room:
            await story.play(tasks)

    await asyncio.gather(*map(one, stories))
    deadline = time.monotonic() + LATE
    while (found := wrong(stories)) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return found


def wrong(stories: list[Story]) -> list[str]:
    """What is not as expected by now."""
    marks: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in Path(os.environ["MARKS"]).read_text().splitlines():
        id, word, _ = line.split()
        marks[id][word] += 1
    return [said for story in stories if (said := story.wrong(marks[story.id]))]


def main(seed: int, calls: int, at_once: int) -> None:
    stories = plan(seed, calls)
    began = time.monotonic()
    found = asyncio.run(play(import_module("src.tasks"), stories, at_once))
    kinds = Counter(story.kind for story in stories)
    print(json.dumps({"wrong": found, "kinds": kinds, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
