"""The one place where threads and the event loop meet.

Celery calls a task as a plain function on a plain thread, and our tasks are coroutines.
`run()` carries a coroutine from that thread to this process's event loop and waits for it;
`in_thread()` goes the other way and keeps Celery's blocking calls off the caller's loop.
Where a pool runs Celery on the loop itself, `wait()` and `aside()` ask it to suspend the call instead.
"""

import asyncio
import contextvars
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from core.errors import SyncInLoop

T = TypeVar("T")

logger = logging.getLogger("core.tasks")

#: Threads for blocking calls. A call that waits for one of them is not lost time: it can still be withdrawn.
THREADS = 8
#: Seconds that a coroutine has for its `finally` where its process is told to exit.
LAST_SECOND = 1.0
#: The signal that reaches a plain function in a main thread. Celery leaves it alone in pool processes.
INTERRUPT = signal.SIGUSR2
#: The signal that tells a pool process to cancel its bodies, since its worker is about to end it. Billiard
#: takes SIGHUP, SIGQUIT and SIGUSR1 for itself in each new process, and would end a plain function with SystemExit.
PUT_BACK = signal.SIGURG


class LoopThread:
    """An event loop in a thread of its own, which lives as long as its process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._closing = False
        ready = threading.Event()
        self.loop.call_soon(ready.set)
        self._thread = threading.Thread(target=self._main, name="core-tasks-loop", daemon=True)
        self._thread.start()
        ready.wait()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._closing:
            try:
                self.loop.run_forever()
            except BaseException:
                # A task that some body started and that raised SystemExit would end the loop for everyone.
                logger.exception("an asyncio task tried to end the event loop; the loop goes on")
        self.loop.close()

    def close(self, grace: float) -> None:
        """Cancel what still runs, wait up to *grace* seconds for it, and close the loop."""

        async def drain() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=grace)
            await self.loop.shutdown_asyncgens()
            await self.loop.shutdown_default_executor()

        try:
            asyncio.run_coroutine_threadsafe(drain(), self.loop).result(grace + 1)
        except TimeoutError:
            logger.warning("the event loop did not end within %g s: a task blocks it", grace)
        self._closing = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(1)


class _Process:
    """What the bridge keeps in this process. A forked child starts with a new one, since `os.fork` copies
    neither the loop's thread nor the executor's, and may copy a lock that nobody is left to release.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop_thread: LoopThread | None = None
        self.executor: ThreadPoolExecutor | None = None


_process = _Process()


def _after_fork() -> None:
    global _process
    _process = _Process()


os.register_at_fork(after_in_child=_after_fork)


def loop() -> asyncio.AbstractEventLoop:
    """This process's event loop, started on first use."""
    process = _process
    if process.loop_thread is None:
        with process.lock:
            if process.loop_thread is None:
                process.loop_thread = LoopThread()
    return process.loop_thread.loop


def close(grace: float = 5.0) -> None:
    """End this process's event loop, if it has one: the last thing a worker process does."""
    with _process.lock:
        thread, _process.loop_thread = _process.loop_thread, None
    if thread is not None:
        thread.close(grace)


def submit(body: Coroutine[Any, Any, T]) -> "Future[T]":
    """Start a coroutine on this process's event loop, with the context variables of the calling thread."""
    return asyncio.run_coroutine_threadsafe(body, loop())


def run(body: Coroutine[Any, Any, T], blocking: str = "this call", instead: str = "its async form") -> T:
    """Run a coroutine on this process's event loop and wait for it, from a thread without a loop.

    Args:
        blocking: What the caller called, for the error message.
        instead: What to await in its place.

    Raises:
        SyncInLoop: This thread runs an event loop, which would stand still meanwhile.
    """
    if not _on_a_loop():
        return submit(body).result()
    body.close()
    raise SyncInLoop(blocking, instead)


#: Called on the loop with what to call at the end, once: with a value, or with an error.
Begin = Callable[[Callable[[Any, BaseException | None], None]], object]


class _Suspending:
    """How a pool that runs Celery's calls on the loop itself lets one of them wait, if this process has such a pool."""

    #: Whether what runs here is such a call; and how it waits.
    here: Callable[[], bool] = staticmethod(lambda: False)
    wait: Callable[[Begin, bool], Any]


_suspending = _Suspending()


#: Whose call runs here, where that is not the thread's.
caller: contextvars.ContextVar[Any] = contextvars.ContextVar("core_tasks_caller", default=None)


def ident() -> Any:
    """What Celery's stacks of tasks and requests are kept by: the call or the thread that it began in."""
    return caller.get() or threading.get_ident()


def suspend_with(here: Callable[[], bool], wait: Callable[[Begin, bool], Any]) -> None:
    """Let calls that run on the loop wait without holding it up.

    Args:
        here: Whether the code that asks runs in such a call.
        wait: Lets it wait; the second argument is whether that is for the task's body, which can be stopped.
    """
    _suspending.here, _suspending.wait = here, wait


def wait(begin: Begin, stop: Callable[[], object] = bool, grace: float = 0.0) -> Any:
    """Call *begin* on this process's event loop, and wait until it says how that ended, from Celery's side.

    Args:
        stop: What to do when something is raised in this thread meanwhile, as a limit of Celery's is.
        grace: Seconds to wait then for the end, before that is raised; where the process is to exit, a second.
    """
    if _suspending.here():
        return _suspending.wait(begin, True)
    future: Future[Any] = Future()

    def done(value: Any, error: BaseException | None) -> None:
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    if _on_a_loop():
        raise SyncInLoop("apply()", "delay()")
    context = contextvars.copy_context()
    context.run(caller.set, ident())
    loop().call_soon_threadsafe(begin, done, context=context)
    try:
        return future.result()
    except BaseException as error:
        if not future.done():
            stop()
            futures.wait([future], grace if isinstance(error, Exception) else LAST_SECOND)
        raise


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def aside(work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Do blocking work on Celery's side; where that is the loop, in a thread, with the context variables of here."""
    if not _suspending.here():
        return work(*args, **kwargs)
    context = contextvars.copy_context()

    def begin(done: Callable[[Any, BaseException | None], None]) -> None:
        future = asyncio.get_running_loop().run_in_executor(_threads(), partial(context.run, work, *args, **kwargs))
        future.add_done_callback(lambda _: done(*outcome(future)))

    result: T = _suspending.wait(begin, False)
    return result


def outcome(future: "asyncio.Future[Any]") -> tuple[Any, BaseException | None]:
    """What a future that is done has come to: a value, or an error."""
    if future.cancelled():
        return None, asyncio.CancelledError()
    error = future.exception()
    return (None, error) if error is not None else (future.result(), None)


class Handoff:
    """A piece of blocking work on its way to a thread. Until it begins it can be withdrawn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = "waiting"

    def begin(self) -> bool:
        """Called by the work right before its first effect; False means that nobody wants it any more."""
        with self._lock:
            if self._state == "waiting":
                self._state = "begun"
            return self._state == "begun"

    def withdraw(self) -> bool:
        """Called by whoever stops waiting; False means that the work has begun and may take effect."""
        with self._lock:
            if self._state == "waiting":
                self._state = "withdrawn"
            return self._state == "withdrawn"


class NotInTime(Exception):
    """The deadline of `in_thread` passed."""

    def __init__(self, begun: bool) -> None:
        super().__init__(begun)
        #: Whether the work had begun, and may still take effect.
        self.begun = begun


async def in_thread(work: Callable[[Handoff], T], timeout: float) -> T:
    """Do blocking work in one of this process's threads while the caller's loop goes on.

    The work has to ask `handoff.begin()` before it does anything that cannot be taken back. When the caller
    is cancelled or the deadline passes before that, the work never happens.

    Args:
        timeout: Seconds to wait, the time spent waiting for a thread included.

    Raises:
        NotInTime: The deadline passed.
    """
    handoff = Handoff()
    future = asyncio.wrap_future(_threads().submit(contextvars.copy_context().run, work, handoff))
    try:
        done, _ = await asyncio.wait({future}, timeout=timeout)
    except asyncio.CancelledError:
        handoff.withdraw()
        future.add_done_callback(_forget)
        raise
    if not done:
        future.add_done_callback(_forget)
        raise NotInTime(begun=not handoff.withdraw())
    return future.result()


def _threads() -> ThreadPoolExecutor:
    process = _process
    with process.lock:
        if process.executor is None:
            process.executor = ThreadPoolExecutor(THREADS, thread_name_prefix="core-tasks")
        return process.executor


def _forget(future: "asyncio.Future[Any]") -> None:
    """Take note of an outcome that nobody waits for, so that asyncio does not report it as lost."""
    if not future.cancelled():
        future.exception()


class _Interrupt:
    """What a signal to this process's main thread is to do, if anything."""

    action: Callable[[], None] | None = None


_interrupt = _Interrupt()


def on_interrupt(action: Callable[[], None] | None) -> None:
    """Set what `interrupt_main` runs in the main thread; it may raise there."""
    _interrupt.action = action


def interrupt_main() -> None:
    """Run what `on_interrupt` set in the main thread, in the middle of whatever it does. Any thread may ask."""
    signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)


def accept_interrupts(ask: Callable[[], object]) -> None:
    """Make this process's main thread listen to `INTERRUPT`.

    Args:
        ask: What a signal from another process does; it runs in the main thread and must not block.
    """

    def handle(_signal: int, _frame: object) -> None:
        if _interrupt.action is not None:
            _interrupt.action()
        ask()

    signal.signal(INTERRUPT, handle)
