"""What a worker keeps open for its bodies: `@worker_lifespan`.

A lifespan is an async generator. Each process that runs bodies holds it in an asyncio task of its own, on the loop that
runs the bodies: from before the first call, where the task stands at the `yield`, until after the last one.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from core import config
from core.errors import TaskDefinitionError
from core.tasks import bridge

F = TypeVar("F", bound=Callable[[], AsyncIterator[object]])

logger = logging.getLogger("core.tasks")

DAY = 86_400
#: Seconds at the start after which the log says what a process waits for.
SLOW_START = 10.0
#: How much a pool process passes on of what went wrong. What goes into a pipe with one write must fit into 4096 bytes.
LINE, TRACEBACK = 200, 2500
#: What `contextlib` says of a generator, in the words of whoever wrote it.
SAID = {"generator didn't yield": "it ended before its `yield`", "generator didn't stop": "it has yielded twice"}


class LifespanFailed(Exception):
    """A lifespan did not get to its `yield`, or did not stay there: its process cannot run bodies."""


class _Lifespan:
    """A declared lifespan."""

    def __init__(self, function: Callable[[], Any], location: str) -> None:
        self.function = function
        self.location = location
        #: Another object after each import of the module.
        self.imported_by = function.__globals__.get("__spec__")

    def __str__(self) -> str:
        return f"{self.function.__qualname__} ({self.location})"

    def failure(self, when: str, error: BaseException | None) -> str:
        """One line that says everything, then the traceback."""
        known = SAID.get(str(error))
        what = known or f"{type(error).__name__}: {error}".rstrip(": ").partition("\n")[0][:LINE]
        trace = b"" if known or error is None else "".join(traceback.format_exception(error)).rstrip().encode()
        return f"the lifespan {self} {when}: {what}" + "\n" * bool(trace) + trace[-TRACEBACK:].decode(errors="replace")


class _Held:
    """A lifespan in this process, and the task that holds it."""

    def __init__(self, lifespan: _Lifespan) -> None:
        self.lifespan = lifespan
        loop = asyncio.get_running_loop()
        #: Done when the lifespan stands at its `yield`: with None, or with the text of why it does not.
        self.begun: asyncio.Future[str | None] = loop.create_future()
        self.end = asyncio.Event()
        self.task = loop.create_task(self._hold())

    async def _hold(self) -> None:
        # One task for both halves: cancel scopes, task groups and context variables belong to the task that made them.
        error: BaseException | None = None
        try:
            async with contextlib.asynccontextmanager(self.lifespan.function)():
                self.begun.set_result(None)
                await self.end.wait()
        except BaseException as raised:  # SystemExit would end the loop for everyone
            error = raised
        if not self.begun.done():
            self.begun.set_result(self.lifespan.failure("failed at its start", error))
        elif not self.end.is_set():
            _process.lost(self.lifespan.failure("ended while the worker runs", error))
        elif error is not None and not isinstance(error, asyncio.CancelledError):
            logger.error("%s", self.lifespan.failure("failed at its end", error))


class _Process:
    """The lifespans that this process has declared, and those that it holds. A forked child enters its own."""

    def __init__(self) -> None:
        self.declared: dict[tuple[str, str], _Lifespan] = {}
        self.held: list[_Held] = []
        #: Told of a lifespan that ended too early.
        self.lost: Callable[[str], None] = logger.error
        #: How pool processes report to the worker's own: with their pid, then with what failed if anything did.
        self.reports: tuple[Any, Any] | None = None
        self.reports_to: int | None = None


_process = _Process()


def _after_fork() -> None:
    _process.held = []


os.register_at_fork(after_in_child=_after_fork)


def worker_lifespan(function: F, /) -> F:
    """Keep resources for a worker's bodies: what stands before the `yield` runs first, what stands behind it last.

    It runs once in each process that runs bodies, on the loop that runs them, on every pool. Several are entered in
    the order of their declaration and left in reverse. A worker in which one fails at its start takes no call and
    exits with 1. For the second half a process has `task_shutdown_timeout` seconds at most.

    Args:
        function: An `async def` without parameters and with one `yield`; it is returned as it is.

    Raises:
        TaskDefinitionError: It is no such function, or its module has another lifespan of this name (a TypeError).
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    caller = sys._getframe(1)
    file, line = (code.co_filename, code.co_firstlineno) if code else (caller.f_code.co_filename, caller.f_lineno)
    location = f"{file.removeprefix(os.getcwd() + os.sep)}:{line}"
    wrapped, fits = (inspect.isasyncgenfunction(f) for f in (inspect.unwrap(function), function))
    if not fits:
        hint = " Take the decorator below it away." if wrapped else ""
        raise TaskDefinitionError(f"{location}: @worker_lifespan goes on an `async def` that has one `yield`.{hint}")
    if parameters := ", ".join(inspect.signature(function).parameters):
        raise TaskDefinitionError(
            f"{location}: nobody fills the parameters of a lifespan: {parameters}. Take them away."
        )
    made = _Lifespan(function, location)
    name = (os.path.realpath(file), function.__qualname__)
    before = _process.declared.get(name)
    if before and before.imported_by is made.imported_by and before.location != location:
        raise TaskDefinitionError(f"{location}: {before} has this name, so only one of them could run. Rename one.")
    _process.declared[name] = made
    return function


def enter() -> None:
    """Enter this process's lifespans; returns when bodies may run.

    Raises:
        LifespanFailed: One failed; what was entered before is to be left.
    """
    if _process.declared and not _process.held:
        bridge.submit(_enter()).result()


async def _enter() -> None:
    for lifespan in list(_process.declared.values()):
        held = _Held(lifespan)
        _process.held.append(held)
        if not (await asyncio.wait({held.begun}, timeout=SLOW_START))[0]:
            logger.warning("the lifespan %s has not reached its `yield` for %g s", lifespan, SLOW_START)
        if failed := await held.begun:
            raise LifespanFailed(failed)


def leave(within: float | None = None) -> None:
    """Leave this process's lifespans, the last one first. Calling it again while it runs only waits.

    Args:
        within: Seconds for all of them; None is `task_shutdown_timeout`.
    """
    seconds = config.get_settings().task_shutdown_timeout if within is None else within
    if _process.held:
        # The loop is blocked, or ends in this moment.
        with contextlib.suppress(TimeoutError, CancelledError):
            bridge.submit(_leave(seconds)).result(seconds + 0.1)


async def _leave(seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    for held in reversed(_process.held):
        held.end.set()
        if not held.begun.done():
            held.task.cancel()
        left = deadline - asyncio.get_running_loop().time()
        if not (await asyncio.wait({held.task}, timeout=max(left, 0)))[0]:
            logger.error("the lifespan %s did not end within %g s", held.lifespan, seconds)
            break
    for held in _process.held:
        held.end.set()
    _process.held = []


def declared() -> bool:
    """Whether this project has a lifespan at all."""
    return bool(_process.declared)


def expect_children(conf: Any) -> None:
    """Get ready for the reports of pool processes, before they are forked."""
    from multiprocessing import Pipe

    if _process.declared:
        _process.reports, _process.reports_to = Pipe(duplex=False), os.getpid()
        conf.worker_proc_alive_timeout = DAY  # Celery kills a pool process that takes longer to its first call


def enter_in_child() -> None:
    """Enter the lifespans of a pool process. Where one fails, the worker is told and this process ends."""
    if _process.reports is None or _process.reports_to == os.getpid():
        return
    pipe = _process.reports[1]

    def report(failed: str = "") -> None:
        pipe.send_bytes(f"{os.getpid()} {failed}".encode())

    _process.lost = report
    try:
        enter()
    except LifespanFailed as failed:
        leave()
        report(str(failed))
        os._exit(1)
    report()


def boot_step(after: type[Any]) -> type[Any]:
    """A step of Celery's worker that lets its consumer, which is the last one, begin when bodies may run."""
    from celery.bootsteps import StartStopStep

    class Resources(StartStopStep):  # type: ignore[misc]
        requires = (after, "celery.worker.components:Pool")

        def start(self, parent: Any) -> None:
            try:
                _begin({*parent.pool.info.get("processes", ())} - {os.getpid()})
            except LifespanFailed as failed:
                logger.critical("%s", failed)
                raise SystemExit(1) from None

    return Resources


def _begin(children: set[int]) -> None:
    _process.lost = _end_worker
    if not children:
        enter()
    elif _process.reports is not None:
        _wait_for(children, _process.reports[0])
        threading.Thread(target=_watch, args=_process.reports[:1], name="core-tasks-resources", daemon=True).start()


def _end_worker(failed: str) -> None:
    """Stop this worker as a signal does, and let it exit with 1."""
    from celery.worker import state

    logger.critical("%s", failed)
    if state.should_stop is None:
        state.should_stop = 1
        os.kill(os.getpid(), signal.SIGTERM)


def _wait_for(children: set[int], reports: Any) -> None:
    while children:
        if reports.poll(0.1):
            pid, failed = _report(reports)
            if failed:
                raise LifespanFailed(failed)
            children.discard(pid)
        elif ended := [pid for pid in children if _has_ended(pid)]:
            raise LifespanFailed(f"the pool process {ended[0]} ended before it could take a call")


def _watch(reports: Any) -> None:
    failed = ""
    while not failed:
        _, failed = _report(reports)
    _end_worker(failed)


def _report(reports: Any) -> tuple[int, str]:
    pid, _, failed = reports.recv_bytes().decode(errors="replace").partition(" ")
    return int(pid), failed


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
