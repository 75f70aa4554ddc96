"""Broker, worker and result backend of one test, in memory: what stands in for them in `core.tasks`.

Arguments and results make the same way through JSON as they do through Redis, and a body runs by the same code as in a
worker. Only waiting is left out: for the time of a call, and between attempts.
"""

import asyncio
import json
import traceback
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from pydantic import SecretStr

from core import config
from core.errors import CoreError, ResultTimeout, ResultUnavailable, TasksNotFound, UnknownQueue
from core.tasks import bridge, cancellation, celery_app, progress, runner
from core.tasks.context import CurrentTask
from core.tasks.definition import Task
from core.tasks.envelope import Call
from core.tasks.listener import FINAL, decoded
from core.tasks.result import TaskResult
from core.tasks.stand_in import standing_in
from core.testing.outbox import CapturedCall, Outbox

#: Calls that make each other, one inside the other, before they count as ones that never end.
DEEPEST = 50
#: Where no broker answers, for a project that names none: no test is to start a server by accident.
NOWHERE = "redis://127.0.0.1:1/0"
#: Seconds between two looks at a call that runs on another loop.
OFTEN = 0.01
#: Seconds that importing the project's task modules may take.
IMPORT = 60.0


@contextmanager
def in_memory(fixture: str, *, runs: bool) -> Iterator[Outbox]:
    """Keep every call of this process here for a while.

    Args:
        fixture: What the user calls this, for errors.
        runs: Whether a call runs at once; else it waits for `Outbox.run_all`.
    """
    memory = Memory(fixture, runs)
    with config.overridden() as settings, celery_app.renewed():
        nowhere = {} if settings.broker_url and settings.result_url else {"redis_url": SecretStr(NOWHERE)}
        with config.overridden(**nowhere), standing_in(memory):
            yield memory.outbox
    if memory.endless:
        raise AssertionError(memory.endless)


class Memory:
    """The calls of one test, and what became of them."""

    def __init__(self, fixture: str, runs: bool) -> None:
        self._fixture, self._runs = fixture, runs
        self.outbox = Outbox(self._run_waiting)
        #: What went wrong where no caller may see it.
        self.endless = ""
        #: What Redis would have, by id: a result as its text; calls that wait, that run, and that were cancelled.
        self._results: dict[str, bytes] = {}
        self._waiting: dict[str, Call] = {}
        self._running: set[str] = set()
        self._cancelled: set[str] = set()
        #: Who has a lock, by its name.
        self._holders: dict[str, str] = {}
        #: How many calls led to one, by id.
        self._depth: dict[str, int] = {}

    async def send(self, call: Call) -> str:
        """Take a call; return its id, or that of the call which keeps it from being another one."""
        task = cast("Task[..., Any]", call.task)
        queue = call.options.get("queue")
        if queue is not None:
            await bridge.in_thread(lambda _: _check(queue), IMPORT)
        other = self._holders.get(call.lock) if call.lock else None
        if other is not None and (other in self._waiting or other in self._running):
            return other
        if call.lock:
            self._holders[call.lock] = call.id
        self._depth[call.id] = depth = self._depth.get(call.caller.id, 0) + 1 if call.caller else 1
        if depth > DEEPEST:
            self.endless = (
                f"{task.name} was queued by a call, that by another one, and so on {DEEPEST} times: "
                f"with {self._fixture} each runs before `delay` returns, and these never end. Use captured_tasks here."
            )
            raise CoreError(self.endless)
        args, kwargs = task.arguments.decode(*self._from_json(call))
        kwargs = {name: value for name, value in kwargs.items() if name in call.kwargs}  # without what was left out
        self.outbox.calls.append(
            CapturedCall(task, args[: len(call.args)], kwargs, dict(call.options), call.id, _queue(task, call))
        )
        self._store(call, "PENDING")
        if self._runs:
            await self._run(call)
        else:
            self._waiting[call.id] = call
        return call.id

    async def read(self, task_id: str) -> dict[str, Any] | None:
        """What is stored of a call now, or None."""
        text = self._results.get(task_id)
        return None if text is None else decoded(text)

    async def final(self, task_id: str, timeout: float | None) -> dict[str, Any]:
        """What is stored of a call that has ended, or ends now on another loop; nothing else is worth waiting for.

        Raises:
            ResultTimeout: It does not run, so that any time would pass.
            ResultUnavailable: The same, where there is no limit.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            meta = await self.read(task_id)
            if meta is not None and meta["status"] in FINAL:
                return meta
            if task_id not in self._running or (timeout is not None and loop.time() >= began + timeout):
                break
            await asyncio.sleep(OFTEN)
        if timeout is None:
            raise ResultUnavailable(f"get() would wait for ever for {task_id} ({self._why(task_id)}).")
        late = ResultTimeout(task_id, timeout)
        late.add_note(f"{self._why(task_id)}.")
        raise late

    async def changes(self, task_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """What is stored of a call, now and after each change, until it has ended.

        Raises:
            ResultUnavailable: It does not run.
        """
        before = None
        while True:
            meta = await self.read(task_id)
            if meta is not None and meta["status"] in FINAL:
                return
            if meta is not None and meta != before:
                before = meta
                yield meta
            if task_id not in self._running:
                raise ResultUnavailable(f"progress() would wait for ever for {task_id} ({self._why(task_id)}).")
            await asyncio.sleep(OFTEN)

    def _why(self, task_id: str) -> str:
        """Why a call has not ended."""
        why = (
            "it waits for `await outbox.run_all()`" if task_id in self._waiting
            else "it runs still" if task_id in self._running
            else "nobody has queued it"
        )  # fmt: skip
        return f"{self._fixture}: {why}"

    async def cancel(self, task_id: str, store: bool) -> str:
        """Cancel a call, and return the state in which it was."""
        meta = await self.read(task_id)
        if meta is not None and meta["status"] in FINAL:
            return str(meta["status"])
        self._cancelled.add(task_id)
        if runner.cancel(task_id):
            return "STARTED"
        self._waiting.pop(task_id, None)
        if store:
            self._results[task_id] = json.dumps(cancellation.outcome(task_id)).encode()
        return "PENDING"

    def refusal(self, name: str) -> Exception:
        """Why Celery itself cannot send a call of this task."""
        return CoreError(
            f"{name} was not queued: {self._fixture} has no Celery worker, which chain, group, chord and apply_async "
            "need. Use worker_tasks in this test."
        )

    async def _run_waiting(self) -> list[TaskResult[Any]]:
        calls, self._waiting = self._waiting, {}
        self._running |= set(calls)  # whoever waits for one of them does so with reason
        try:
            for call in calls.values():
                await self._run(call)
        finally:
            self._running -= set(calls)
        return [_handle(call) for call in calls.values()]

    async def _run(self, call: Call) -> None:
        """Run a call to its end: as many attempts as its task allows, one right after the other."""
        body = cast("Task[..., Any]", call.task).body()
        self._running.add(call.id)
        number = 0
        try:
            while True:
                if call.id in self._cancelled or _has_expired(call):
                    return self._revoke(call, "cancelled" if call.id in self._cancelled else "expired")
                number += 1
                self._store(call, "STARTED")
                outcome = await runner.attempt(body, self._current(call, body, number), *self._from_json(call))
                if outcome.cancelled:
                    return self._revoke(call, "cancelled")
                if outcome.error is None:
                    return self._store(call, "SUCCESS", outcome.value)
                if outcome.retry_in is None:
                    return self._store(call, "FAILURE", outcome.error)
                self._store(call, "RETRY")
        except asyncio.CancelledError:
            self._revoke(call, "cancelled")
            raise
        finally:
            self._running.discard(call.id)

    def _current(self, call: Call, body: runner.Body, number: int) -> CurrentTask:
        return CurrentTask(
            id=call.id,
            name=body.name,
            attempt=number,
            queue=_queue(cast("Task[..., Any]", call.task), call),
            headers={},
            deadline=datetime.now(UTC) + timedelta(seconds=body.limit.seconds) if body.limit else None,
            parent_id=call.caller.id if call.caller else None,
            root_id=call.caller.root_id if call.caller else call.id,
            _report=lambda said: self._store(call, progress.STATE, asdict(said)),
        )

    def _from_json(self, call: Call) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs = json.loads(json.dumps([call.args, call.kwargs]))
        return args, kwargs

    def _revoke(self, call: Call, reason: str) -> None:
        import celery.exceptions  # noqa: F401  # the handle builds Celery's error again, if its module is there

        self._store(call, "REVOKED", reason)

    def _store(self, call: Call, status: str, value: Any = None) -> None:
        task = cast("Task[..., Any]", call.task)
        before = self._results.get(call.id)
        if task.options_declared.ignore_result or (before and decoded(before)["status"] in ("SUCCESS", "REVOKED")):
            return  # a final state stays
        meta: dict[str, Any] = {"status": status, "result": value, "traceback": None, "name": task.name}
        text = json.dumps(cancellation.outcome(call.id, value)) if status == "REVOKED" else None
        self._results[call.id] = (text or (_failure(meta) if status == "FAILURE" else json.dumps(meta))).encode()


def _failure(meta: dict[str, Any]) -> str:
    """An error as Celery's result backend writes it."""
    from celery.utils.serialization import ensure_serializable
    from kombu.utils.json import dumps

    error = meta["result"]
    told = {
        "exc_type": type(error).__qualname__,
        "exc_message": ensure_serializable(error.args, dumps),
        "exc_module": type(error).__module__,
    }
    lines = traceback.format_exception(error)
    return str(dumps({**meta, "result": told, "traceback": "".join(lines)}))  # type: ignore[no-untyped-call]


def _handle(call: Call) -> TaskResult[Any]:
    task = cast("Task[..., Any]", call.task)
    return TaskResult(call.id, task.arguments, ignored=task.options_declared.ignore_result)


def _check(queue: str) -> None:
    try:
        celery_app.check_queue(queue)
    except TasksNotFound:
        raise UnknownQueue(queue, celery_app.queues()) from None


def _queue(task: "Task[..., Any]", call: Call) -> str:
    return str(call.options.get("queue") or task.queue or config.get_settings().task_default_queue)


def _has_expired(call: Call) -> bool:
    """Whether a worker would have had this call too late, had it waited for the time of the call."""
    expires = call.options.get("expires")
    if expires is None:
        return False
    now = datetime.now(UTC)
    due = max(call.options.get("eta") or now + timedelta(seconds=call.options.get("countdown") or 0), now)
    return bool((expires if isinstance(expires, datetime) else now + timedelta(seconds=expires)) <= due)
