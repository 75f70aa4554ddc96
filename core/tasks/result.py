"""The handle to one call: its status, its result, and how to cancel it."""

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from enum import StrEnum
from importlib import import_module
from typing import Any, Generic, TypeVar

from core import config
from core.errors import (
    BrokerUnreachable,
    OptionError,
    ResultTimeout,
    ResultUnavailable,
    TaskFailed,
    TaskRevoked,
    TaskTimeout,
)
from core.tasks import bridge, celery_app
from core.tasks.arguments import Arguments
from core.tasks.listener import FINAL
from core.tasks.poller import results
from core.tasks.progress import Progress, progress_of
from core.tasks.retry import mark_from_call
from core.tasks.stand_in import stand_in

R_co = TypeVar("R_co", covariant=True)


class TaskStatus(StrEnum):
    """Where a call is."""

    #: Queued, waiting for its time or for its next attempt; also what is said of an unknown id.
    PENDING = "pending"
    #: A worker runs it.
    RUNNING = "running"
    #: Its result is there.
    SUCCESS = "success"
    #: Its last attempt failed, or it was cancelled, or it expired.
    FAILED = "failed"


_STATUS = {
    "PENDING": TaskStatus.PENDING,
    "RECEIVED": TaskStatus.PENDING,
    "RETRY": TaskStatus.PENDING,
    "REJECTED": TaskStatus.PENDING,
    "SUCCESS": TaskStatus.SUCCESS,
    "FAILURE": TaskStatus.FAILED,
    "REVOKED": TaskStatus.FAILED,
}


class TaskResult(Generic[R_co]):
    """The result of one call, wherever it runs."""

    def __init__(
        self, task_id: str, arguments: Arguments | None = None, *, ignored: bool = False, deduplicated: bool = False
    ) -> None:
        #: The call's id, known before anything was sent.
        self.id = task_id
        #: Whether this is a call that was there before, and `delay` has queued no other: its task is `unique`.
        self.deduplicated = deduplicated
        self._arguments = arguments
        self._ignored = ignored

    @classmethod
    def from_id(cls, task_id: str) -> "TaskResult[Any]":
        """The handle to a call of which only the id is known. Its result comes as JSON's own values."""
        if not isinstance(task_id, str) or not task_id:
            raise OptionError(f"{task_id!r} is not the id of a call.")
        return TaskResult(task_id)

    def __repr__(self) -> str:
        return f"<TaskResult {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    async def status(self) -> TaskStatus:
        """Where the call is now: pending, running, success or failed.

        An id that nobody queued is pending too: see `exists`.

        Raises:
            ResultUnavailable: The task ignores its results.
            BrokerUnreachable: Redis does not answer.
        """
        self._refuse_ignored("status()")
        meta = await (await results()).read(self.id)
        return _status(meta)

    async def exists(self) -> bool:
        """Whether the call was queued. False for an id that nobody queued, and when its result is not kept any longer.

        Before a worker has touched the call, this is known only where calls and results are in one database of Redis.

        Raises:
            ResultUnavailable: The task ignores its results.
            BrokerUnreachable: Redis does not answer.
        """
        self._refuse_ignored("exists()")
        return await (await results()).read(self.id) is not None

    async def get(self, timeout: float | None = None) -> R_co:
        """Wait for the call to finish and return what the task returned.

        Args:
            timeout: Seconds to wait here. It does not stop the task; None waits for ever, 0 only looks.

        Raises:
            ResultTimeout: *timeout* passed first; the task may still finish.
            ResultUnavailable: The task ignores its results.
            TaskRevoked: The call was cancelled or expired before it finished.
            TaskTimeout: The body took longer than the task's timeout.
            TaskFailed: The task failed with an error that cannot be built again here.
            Exception: Whatever the task itself raised on its last attempt.
        """
        self._refuse_ignored("get()")
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < float("inf")
        ):
            raise OptionError(f"timeout={timeout!r} is not a number of seconds from 0 on.")
        waits = await results()
        meta: dict[str, Any] | None
        if timeout == 0:
            meta = await waits.read(self.id)
            if meta is None or meta["status"] not in FINAL:
                raise ResultTimeout(self.id, 0)
        else:
            try:
                meta = await waits.final(self.id, timeout)
            except ResultTimeout:
                raise
            except TimeoutError:
                raise ResultTimeout(self.id, timeout or 0) from None
        return self._outcome(meta)

    def get_sync(self, timeout: float | None = None) -> R_co:
        """`get` for code without an event loop.

        Raises:
            SyncInLoop: This thread runs an event loop.
        """
        return bridge.run(self.get(timeout), "get_sync()", "get()")

    def progress(self) -> AsyncGenerator[Progress, None]:
        """How far the call is, now and whenever its body says so, until it has ended: `async for update in …`.

        How it ends makes no difference here; `get()` tells. Who is slow is given the latest. A connection that is
        lost is made anew. Where results are kept in what is no Redis, it is looked at now and then.

        Raises:
            ResultUnavailable: The task ignores its results.
        """
        self._refuse_ignored("progress()")
        return self._progress()

    async def _progress(self) -> AsyncGenerator[Progress, None]:
        before = None
        async with aclosing((await results()).changes(self.id)) as changes:
            async for meta in changes:
                now = progress_of(meta)
                if now is not None and now != before:
                    yield now
                before = now

    async def cancel(self) -> bool:
        """Cancel the call: a pending one never runs, a running one gets CancelledError in its body.

        A plain `def` is interrupted where it runs in a process of its own, and cannot be in a thread.

        Returns:
            False when the call had finished already.

        Raises:
            BrokerUnreachable: Redis does not answer; whether the call is cancelled is open.
        """
        waits = await results()
        state = await waits.cancel(self.id, store=not self._ignored)
        if state in FINAL or waits is stand_in():
            return state not in FINAL
        seconds = config.get_settings().task_publish_timeout

        def tell_workers(handoff: bridge.Handoff) -> None:
            if handoff.begin():
                celery_app.get_app().control.broadcast("cancel_call", arguments={"task_id": self.id})

        try:
            await bridge.in_thread(tell_workers, seconds)
        except bridge.NotInTime:
            raise BrokerUnreachable("the broker", f"no answer within {seconds:g} s") from None
        return True

    def _refuse_ignored(self, what: str) -> None:
        if self._ignored:
            name = self._arguments.name if self._arguments else "the task"
            raise ResultUnavailable(
                f"{what}: {name} is declared with ignore_result=True, so nothing is kept of its calls."
            )

    def _outcome(self, meta: dict[str, Any]) -> R_co:
        stored: Any = meta.get("result")
        if meta["status"] == "SUCCESS":
            value: R_co = self._arguments.decode_result(stored) if self._arguments else stored
            return value
        error = _error(meta, self._arguments.name if self._arguments else "the task")
        if meta.get("traceback"):
            error.add_note(f"Traceback in the worker:\n{meta['traceback']}")
        mark_from_call(error)
        raise error


def described(task_id: str, meta: dict[str, Any] | None) -> dict[str, Any]:
    """What is stored of a call, as JSON's own values for people and scripts.

    Raises:
        ResultUnavailable: Nothing is.
    """
    if meta is None:
        raise ResultUnavailable(
            f"Nothing is known of {task_id}: nobody queued it, its task ignores its results, or they are not kept any "
            "longer (task_result_expires)."
        )
    status, progress = _status(meta), progress_of(meta)
    error = _error(meta, "the task") if status is TaskStatus.FAILED else None
    kind = "" if isinstance(error, TaskFailed) else f"{type(error).__name__}: "
    return {
        "id": task_id,
        "task": meta.get("name"),
        "status": str(status),
        "progress": asdict(progress) if progress else None,
        "result": meta.get("result") if status is TaskStatus.SUCCESS else None,
        "error": f"{kind}{error}".rstrip(": ") if error else None,
        "traceback": meta.get("traceback"),
        "finished": meta.get("date_done"),
    }


def _status(meta: dict[str, Any] | None) -> TaskStatus:
    return _STATUS.get(meta["status"], TaskStatus.RUNNING) if meta else TaskStatus.PENDING


def _error(meta: dict[str, Any], task: str) -> Exception:
    """The error of a call that has failed."""
    stored = meta.get("result")
    error = _revived(stored, str(meta.get("name") or task))
    return TaskRevoked(str(error) if stored else "revoked") if meta["status"] == "REVOKED" else error


def _revived(stored: Any, task: str) -> Exception:
    """The error that a worker stored, as itself where that is possible, else as a TaskFailed."""
    if not isinstance(stored, dict):
        return TaskFailed("Exception", str(stored))
    module, name = str(stored.get("exc_module") or ""), str(stored.get("exc_type") or "Exception")
    message = stored.get("exc_message")
    args: tuple[Any, ...] = tuple(message) if isinstance(message, list | tuple) else (message,)
    if name == "TimeLimitExceeded":  # the pool killed the body's process: the last resort of our own timeout
        return TaskTimeout(task, args[0], "its timeout and 10 s of grace; its process was killed")
    kind = _error_class(module, name)
    if kind is not None:
        try:
            return kind(*args)
        except Exception:
            pass  # it arrives as a TaskFailed
    return TaskFailed(f"{module}.{name}" if module else name, " ".join(str(part) for part in args))


def _error_class(module: str, name: str) -> type[Exception] | None:
    """The exception class of this name, if it can be imported without running code that this program does not use."""
    if module.partition(".")[0] not in sys.modules:
        return None
    try:
        found: Any = sys.modules.get(module) or import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found if isinstance(found, type) and issubclass(found, Exception) else None
