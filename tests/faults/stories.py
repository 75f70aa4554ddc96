"""The story of each call in a run of everything at once, judged by what was promised to its caller."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from faults.callers import Answer
from faults.poison import DELIVERIES
from faults.rows import Finding
from faults.world import Call, World

#: Seconds by which clocks and a command on its way may differ.
SLACK = 0.5


@dataclass
class Story:
    """One call, from its caller's side."""

    sort: str
    key: str
    sent: float
    due: float
    answer: Callable[[float], Answer]
    said: Answer | None = None
    cancel: Callable[[float], Answer] | None = None
    cancel_asked: float = 0.0
    cancelled_at: float = field(default=0.0)

    def look(self, within: float = 0) -> None:
        """Read what became of it in its caller, as far as that is known."""
        if self.said is None:
            try:
                self.said = self.answer(within)
            except Finding:
                return
        if self.cancel and not self.cancelled_at:
            try:
                said = self.cancel(within)
            except Finding:
                return
            self.cancelled_at = -1.0 if said.error else self.cancel_asked + said.seconds

    @property
    def accepted(self) -> bool:
        return self.said is not None and self.said.error is None

    @property
    def call(self) -> Call | None:
        return Call(self.said.id, self.key) if self.said and self.said.id else None


def wrong(world: World, stories: list[Story], around: Callable[[float, float], list[str]]) -> list[str]:
    """The stories whose end is not as promised."""
    outcomes = world.ledger.outcomes([story.call.id for story in stories if story.call])
    aside = world.ledger.set_aside()
    told = []
    for story in stories:
        if said := _judge(world, story, outcomes, aside):
            told.append(_tell(world, story, said, outcomes, around))
    return told


def _judge(world: World, story: Story, outcomes: dict[str, list[str]], aside: dict[str, dict[str, object]]) -> str:
    """What is wrong with one story; empty when all is well."""
    if story.said is None:
        return "delay() did not return"
    runs = world.ledger.begun(story.key)
    if story.call is None:
        return ""  # an error without an id
    found = outcomes[story.call.id]
    is_aside = story.call.id in aside
    if len(found) > 1:
        return f"has {len(found)} outcomes"
    if not story.accepted and not story.said.maybe and (runs or found):
        return "runs, although delay() said that it was not queued"
    if not found:
        return "has no outcome" if story.accepted or runs else ""
    if any(run.at < story.due - SLACK for run in runs):
        return "runs before its time"
    if story.cancelled_at > 0 and any(run.at > story.cancelled_at + SLACK for run in runs):
        return "runs after it was cancelled"
    if story.sort == "poison":
        return "" if is_aside and len(runs) <= DELIVERIES else f"is not set aside after {len(runs)} runs"
    if found == ["success"]:
        return "" if world.ledger.ended(story.key) else "is a success that never came to its end"
    if found == ["revoked"]:
        return "" if story.cancel else "is revoked, and nobody asked for it"
    return "" if is_aside else f"ends as {found[0]}"


def _tell(
    world: World,
    story: Story,
    said: str,
    outcomes: dict[str, list[str]],
    around: Callable[[float, float], list[str]],
) -> str:
    """One story, for people to read."""
    runs = world.ledger.begun(story.key)
    last = max([story.sent, story.due, *(run.at for run in runs)])
    lines = [f"{story.key} ({story.sort}) {said}"]
    lines.append(f"  sent {_clock(story.sent)}, due {_clock(story.due)}, delay(): {_answer(story.said)}")
    if story.cancel:
        lines.append(f"  cancelled {_clock(story.cancelled_at)}")
    lines += [f"  begun {_clock(run.at)} in process {run.pid}" for run in runs]
    lines.append(
        f"  ended {world.ledger.ended(story.key)} times; outcome {outcomes.get(story.call.id) if story.call else ''}"
    )
    return "\n".join([*lines, *(f"    {fault}" for fault in around(story.sent, last + 5))])


def _answer(said: Answer | None) -> str:
    return "nothing" if said is None else said.error or f"id {said.id}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at)) + f"{at % 1:.2f}"[1:]
