"""Rows 20 to 22 and 33: what lies in a queue is not what it should be."""

import json
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from faults.payloads import Envelope, body, merged, payloads
from faults.rows import Finding, row
from faults.world import RECOVERY, Call, Worker, World
from support import wait_until


@dataclass(frozen=True)
class Template:
    """A message as this world's own callers write it, to be changed and put into the queue by hand."""

    envelope: Envelope
    changes: dict[str, Any]

    @classmethod
    def of(cls, world: World) -> "Template":
        """Taken from the queue of a world that has no worker yet."""
        world.call("mark")
        raw = world.server.client.rpop("default")
        assert raw is not None, "a worker was there first"
        return cls(json.loads(raw), {})

    def changed(self, **changes: Any) -> "Template":
        return Template(self.envelope, {**self.changes, **changes})

    def fresh(self, key: str, **changes: Any) -> tuple[str, str]:
        """The id and the text of a call of its own."""
        task_id, all_changes = str(uuid.uuid4()), {**self.changes, **changes}
        headers = {"id": task_id, "root_id": task_id, **all_changes.pop("headers", {})}
        rest = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        made = merged(self.envelope, headers=headers, properties=_own(task_id), body=body([[key], {}, rest]))
        return task_id, merged(json.loads(made), **all_changes)

    def push(self, world: World, **changes: Any) -> Call:
        """Put one call into the queue."""
        key = world.key("raw")
        task_id, text = self.fresh(key, **changes)
        world.server.client.lpush("default", text)
        return Call(task_id, key)

    def push_many(self, world: World, count: int) -> None:
        """Put many calls into the queue."""
        for start in range(0, count, 1000):
            texts = [self.fresh(f"raw-{start + number}")[1] for number in range(min(1000, count - start))]
            world.server.client.lpush("default", *texts)


def _own(task_id: str) -> dict[str, str]:
    return {"correlation_id": task_id, "delivery_tag": str(uuid.uuid4())}


@row(20, "34 odd messages in the queue, each followed by an ordinary call", alone=True)
def odd_messages(world: World) -> str:
    template = Template.of(world)
    harmful = world.project.root / "unpickled"
    worker = world.worker()
    world.fine()
    pushed: dict[str, tuple[Call, str]] = {}
    vanished: list[str] = []
    deadly: list[str] = []
    slow: list[str] = []
    every = list(dict(payloads(template.envelope, "", "")))
    for name in every:
        key = world.key("odd")
        task_id, good = template.fresh(key)
        text = dict(payloads(json.loads(good), key, str(harmful)))[name]
        pushed[name] = Call(task_id, key), text
        world.server.client.lpush("default", text)
        try:
            world.fine(within=1)
            world.hold(0.2)
        except Finding:
            if not ends(worker, within=3):
                slow.append(name)
                continue
            deadly.append(name)
            del pushed[name]
            vanished += unexplained(world, pushed, within=0)
            pushed.clear()
            worker.dismissed = True
            world.server.client.flushall()  # the next worker would die of it as well
            worker = world.worker()
    if harmful.exists():
        raise Finding("a pickle was read")
    vanished += unexplained(world, pushed, within=RECOVERY if world.ours else 1)
    found = {"end the worker": deadly, "hold up the next call": slow, "vanish": vanished}
    if any(found.values()):
        for what, names in found.items():
            print(f"{what}: {', '.join(names)}", file=sys.stderr)
        raise Finding(", ".join(f"{len(names)} of {len(every)} {what}" for what, names in found.items() if names))
    world.fine(within=1)
    return "the worker goes on; each runs, fails, waits or is set aside with its reason"


def ends(worker: Worker, within: float) -> bool:
    """Whether a worker ends by itself in this time."""
    with suppress(AssertionError):
        wait_until(lambda: worker.ended() is not None, within, "the worker ends")
    return worker.ended() is not None


def unexplained(world: World, pushed: dict[str, tuple[Call, str]], within: float) -> list[str]:
    """Those of these messages that neither ran nor wait, and have neither an outcome nor an entry with a reason."""
    missing: list[str] = []

    def look() -> bool:
        entries = world.ledger.set_aside()
        texts = {entry.get("message") for entry in entries.values() if entry.get("reason")}
        outcomes = world.ledger.outcomes([call.id for call, _ in pushed.values()])
        waiting = world.ledger.waiting()
        missing[:] = [
            name
            for name, (call, text) in pushed.items()
            if not (world.runs(call) or outcomes[call.id] or text in texts or any(call.id in one for one in waiting))
        ]
        return not missing

    with suppress(Finding):
        world.until(look, within, "")
    return missing


@row(21, "a deployment: a call of a new task reaches a worker with old code", TASK_UNKNOWN_HOLD="60")
def unknown_to_an_old_worker(world: World) -> str:
    old = world.worker(FAULTS_OLD_CODE="1")
    call = world.call("fresh")
    world.fine()  # it was behind the other in the queue
    world.worker()
    old.terminate()
    try:
        world.await_run(call, within=RECOVERY)
    except Finding:
        raise Finding("it is thrown away" if world.ledger.outcomes([call.id])[call.id] else "it does not run") from None
    world.settle([call])
    world.ran([call])
    world.nothing_left()
    return "it waits, and runs in a worker with the new code"


@row(22, "a message in pickle, and one of an unknown content type")
def foreign_content(world: World) -> str:
    template = Template.of(world)
    harmful = world.project.root / "unpickled"
    world.worker()
    pushed = {}
    for name in ("a pickle", "an unknown content type"):
        key = world.key("odd")
        task_id, good = template.fresh(key)
        text = dict(payloads(json.loads(good), key, str(harmful)))[name]
        world.server.client.lpush("default", text)
        pushed[name] = Call(task_id, key), text
        world.fine()
    if harmful.exists():
        raise Finding("the pickle was read")
    missing = unexplained(world, pushed, within=RECOVERY if world.ours else 1)
    if missing:
        raise Finding("not read, but thrown away")
    if world.dead_list() != set(world.ledger.set_aside()):
        raise Finding("`core dead list` shows something else")
    world.nothing_left()
    return "not read; set aside with the reason"


@row(33, "one message twice in the queue")
def message_twice(world: World) -> str:
    template = Template.of(world)
    key = world.key("raw")
    task_id, text = template.fresh(key)
    call = Call(task_id, key)
    world.server.client.lpush("default", text, text)
    world.worker()
    world.await_run(call, times=2)
    world.settle([call])
    world.fine()
    world.nothing_left()
    return "runs twice, has one outcome"
