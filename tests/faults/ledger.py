"""What became of every call: how often it ran, which outcome it has, and what Redis still keeps of it."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from faults.server import Server

FINAL = ("SUCCESS", "FAILURE", "REVOKED")
#: Redis keys that hold calls, beside the queues: the kind of key, and what is in it.
HELD = {"core-held-": "held by a worker", "core-delayed-calls": "waiting", "unacked": "held by a worker"}
#: What a worker writes of itself beside its calls.
BOOKKEEPING = (b"connection", b"waiting")
#: kombu appends the priority to a queue's name behind these two characters.
PRIORITY = "\x06\x16"


@dataclass(frozen=True)
class Begun:
    """The beginning of one run."""

    pid: int
    at: float


class Ledger:
    """The record that the tasks write, and the traces of calls in Redis."""

    def __init__(self, server: Server, events: Path) -> None:
        self._server, self._events = server, events
        self._offset = 0
        self._begun: dict[str, list[Begun]] = defaultdict(list)
        self._ended = Counter[str]()
        self._total = 0

    def _read(self) -> None:
        try:
            with open(self._events, "rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode().splitlines():
            event, key, pid, at = line.split()
            if event == "begun":
                self._begun[key].append(Begun(int(pid), float(at)))
                self._total += 1
            else:
                self._ended[key] += 1

    def begun(self, key: str) -> list[Begun]:
        """Every run of this call so far."""
        self._read()
        return list(self._begun.get(key, ()))

    def ended(self, key: str) -> int:
        """How many runs of this call came to their end."""
        self._read()
        return self._ended[key]

    def total(self) -> int:
        """How many runs have begun."""
        self._read()
        return self._total

    def pids(self) -> set[int]:
        """The processes that have run something."""
        self._read()
        return {run.pid for runs in list(self._begun.values()) for run in runs}

    def keys(self) -> Counter[str]:
        """How often each call has begun."""
        self._read()
        return Counter({key: len(runs) for key, runs in self._begun.items()})

    def outcomes(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """How these calls ended: nothing for those that have not, and one word when all is well."""
        if not ids:
            return {}
        client = self._server.client
        stored = client.mget([f"celery-task-meta-{task_id}" for task_id in ids])
        dead = {key.decode(errors="replace") for key in client.zrange("core-dead", 0, -1)}
        found: dict[str, list[str]] = {}
        for task_id, text in zip(ids, stored, strict=True):
            state = json.loads(text)["status"] if text else "PENDING"
            found[task_id] = [state.lower()] if state in FINAL else []
            # A call that was set aside has failed for whoever waits for it: one outcome, told twice.
            if task_id in dead and state != "FAILURE":
                found[task_id].append("set aside")
        return found

    def set_aside(self) -> dict[str, dict[str, Any]]:
        """The dead list: each message that will not run, with its reason, by the id of its entry."""
        client = self._server.client
        ids = client.zrange("core-dead", 0, -1)
        texts = client.hmget("core-dead-calls", ids) if ids else []
        return {
            key.decode(errors="replace"): json.loads(text.decode(errors="replace")) if text else {}
            for key, text in zip(ids, texts, strict=True)
        }

    def waiting(self) -> set[str]:
        """The texts of the messages whose time has not come."""
        client = self._server.client
        held = [*client.hvals("unacked"), *client.hvals("core-delayed-calls")]
        return {text.decode(errors="replace") for text in held}

    def remaining(self) -> Counter[str]:
        """What Redis keeps of calls that are not done: how many, by where they are."""
        client = self._server.client
        found = Counter[str]()
        for key in client.scan_iter(count=1000):
            name = key.decode(errors="replace")
            try:
                if name.removeprefix("core-next-").partition(PRIORITY)[0] == "default":
                    found["queued"] += client.llen(key)
                for prefix, what in HELD.items():
                    if name == prefix or (prefix.endswith("-") and name.startswith(prefix)):
                        found[what] += sum(field not in BOOKKEEPING for field in client.hkeys(key))
            except redis.ResponseError:
                continue  # gone since, or of another type
        return +found
