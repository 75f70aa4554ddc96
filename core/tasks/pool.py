"""The asyncio pool: thousands of calls at once on one event loop, under Celery's own tracer.

Celery runs a call as a plain function that returns when the call is done. Here that function runs in a greenlet, on
the thread of the event loop: where it would wait for a body, it is suspended, and the loop goes on. So states, retries,
signals and callbacks are Celery's, and a waiting call costs a few kilobytes. Plain functions run in threads.
"""

import asyncio
import contextvars
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import _state
from celery.concurrency.base import BasePool, apply_target
from celery.concurrency.prefork import _run_ready_callbacks
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.threads import _LocalStack
from greenlet import getcurrent, greenlet

from core import config
from core.tasks import bridge, runner, watchdog

logger = logging.getLogger("core.tasks")


#: Greenlets that wait for calls, at most.
KEPT = 100
#: Seconds for which calls are launched in one turn of the loop: in the next one those come to an end that have nothing
#: to wait for.
TURN = 0.005


class Gone(BaseException):
    """What becomes of this attempt is settled elsewhere, or is to be nothing: its message stays unacknowledged.

    No `Exception`, so that Celery's tracer stores and acknowledges nothing for it.
    """


class _Tracer(greenlet):  # type: ignore[misc]
    """Runs Celery's tracer of one call after the other. A greenlet of its own for each would cost a page of memory."""

    #: The call that it runs; None while it waits for one.
    call: "Call | None" = None

    def __init__(self, idle: list["_Tracer"]) -> None:
        super().__init__(self._run)
        self._idle = idle

    def _run(self, work: Callable[[], Any]) -> None:
        """Run calls for ever; each next one is what the loop switches here with."""
        assert self.parent is not None
        while True:
            try:
                work()
            except Gone:
                pass
            except BaseException:
                logger.exception("a call ended the tracer that ran it")
            del work  # else it would keep the call
            self.call = None
            if len(self._idle) >= KEPT:
                return  # nothing else ends it: the garbage collector does not look into greenlets
            self._idle.append(self)
            work = self.parent.switch()


class Call:
    """One call in the pool; Celery calls it a job, and keeps a weak reference to it."""

    __slots__ = ("__weakref__", "asked", "gone", "pool", "soft", "timers", "tracer")

    def __init__(self, pool: "TaskPool", asked: tuple[Any, ...]) -> None:
        #: Task, id, tracer, hard and soft limit, and whom to tell of a limit that has passed.
        self.pool, self.asked = pool, asked
        #: The greenlet that it runs in; None while it waits for its turn, and where a thread runs it.
        self.tracer: _Tracer | None = None
        self.timers: list[asyncio.TimerHandle] = []
        #: Whether its outcome is not wanted any more, and the soft limit that has passed.
        self.gone, self.soft = False, 0.0

    def terminate(self, signal: int | None = None) -> None:
        """Stop it, since its outcome is settled: its body gets CancelledError. Any thread may ask."""
        self.pool.loop.call_soon_threadsafe(self.pool.stop_call, self)


class _ByCall(_LocalStack):  # type: ignore[misc]
    """Celery's stack, one for each call instead of each thread; it is asked so often that each step in it counts."""

    def push(self, obj: Any) -> None:
        kept, ident = self._local.__storage__, bridge.ident()
        if ident in kept:
            kept[ident]["stack"].append(obj)
        else:
            kept[ident] = {"stack": [obj]}

    def pop(self) -> Any:
        kept, ident = self._local.__storage__, bridge.ident()
        if ident not in kept:
            return None
        stack = kept[ident]["stack"]
        if len(stack) == 1:
            del kept[ident]
        return stack.pop()

    @property
    def top(self) -> Any:
        kept = self._local.__storage__.get(bridge.ident())
        return kept["stack"][-1] if kept else None


def keep_by_call(task: Any = None) -> None:
    """Make Celery's stack of tasks, or a task's of requests, known in coroutines, too."""
    stack = task.request_stack if task else _state._task_stack
    if stack.__class__ is _LocalStack:
        stack.__class__, stack.__ident_func__ = _ByCall, bridge.ident


class TaskPool(BasePool):  # type: ignore[misc]
    """Runs coroutines on this process's event loop, and plain functions in threads."""

    signal_safe = False
    body_can_be_buffer = True

    app: Any
    limit: int
    _hub: Any = None

    def on_start(self) -> None:
        """Begin."""
        keep_by_call()
        bridge.suspend_with(_in_tracer, _wait)
        self.calls: set[Call] = set()
        #: Calls on their way to the loop, and those for which the pool has no room.
        self._arrived: deque[Call] = deque()
        self._waiting: deque[Call] = deque()
        self._idle: list[_Tracer] = []
        self._tasks, self._kept = self.app.tasks, dict[str, Any]()
        self._pid = os.getpid()
        self._awake = self._closing = self._filling = False
        self._ended = threading.Event()
        #: What each call begins in. A call is launched when another one ends, and must not see that one's variables.
        self._context = contextvars.copy_context()
        self._threads = ThreadPoolExecutor(config.get_settings().task_worker_threads, thread_name_prefix="core-tasks")
        #: The transport tells from there how calls end.
        self.loop = bridge.loop()

    def register_with_event_loop(self, loop: Any) -> None:
        """Celery's consumer has its own loop. kombu forgets it when a connection is made anew."""
        self._hub = loop

    def apply_async(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, target: Any, args: Any = (), kwargs: Any = None, callback: Any = None, accept_callback: Any = None,
        timeout: float | None = None, soft_timeout: float | None = None, timeout_callback: Any = None,
        error_callback: Any = None, **_: Any,
    ) -> Call:  # fmt: skip
        """Run Celery's tracer for one call. Called by the consumer's thread."""

        def ended(told: Any) -> None:
            # What is no `Exception` leaves the tracer; of that, `apply_target` tells in place of a result.
            (error_callback if isinstance(told, ExceptionInfo) else callback)(told)

        run = partial(apply_target, target, args, kwargs, ended, accept_callback, self._pid, propagate=(Gone,))
        call = Call(self, (args[0], args[1], run, timeout, soft_timeout, timeout_callback))
        self._arrived.append(call)
        if not self._awake:  # else the loop is about to look
            self._awake = True
            self.loop.call_soon_threadsafe(self._look)
        return call

    # On the loop

    def _look(self) -> None:
        self._awake = False
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        self._fill()

    def _fill(self) -> None:
        """Launch what there is room for, unless that is being done: a call may end while it is launched."""
        if not self._filling:
            self._filling = True
            until = self.loop.time() + TURN
            try:
                while self._may_launch():
                    call = self._waiting.popleft()
                    self.calls.add(call)
                    self._launch(call)
                    if self.loop.time() >= until:
                        break
            finally:
                self._filling = self._may_launch()
                if self._filling:
                    self.loop.call_soon(self._fill_on)
        if self._closing and not self.calls:
            self._ended.set()

    def _fill_on(self) -> None:
        self._filling = False
        self._fill()

    def _may_launch(self) -> bool:
        return bool(self._waiting) and len(self.calls) < self.limit and not self._closing

    def _launch(self, call: Call) -> None:
        name, _, run, timeout, soft_timeout, on_timeout = call.asked
        task = self._tasks[name]
        if self._kept.get(name) is not task:  # the first of its calls, or it was declared again
            self._kept[name] = task
            keep_by_call(task)
        timeout, soft_timeout = timeout or self.options["timeout"], soft_timeout or self.options["soft_timeout"]
        context = self._context.copy()
        context.run(bridge.caller.set, call)
        if not getattr(task, "is_coroutine", False):
            future = self.loop.run_in_executor(self._threads, context.run, run)
            future.add_done_callback(partial(self._ran, call))
            return
        if soft_timeout:
            call.timers.append(
                self.loop.call_later(soft_timeout, self._soft, call, soft_timeout, on_timeout, context=self._context)
            )
        if timeout and timeout != (task.body.limit and task.body.limit.hard):  # else the runner keeps it
            call.timers.append(
                self.loop.call_later(timeout, self._hard, call, timeout, on_timeout, context=self._context)
            )
        call.tracer = tracer = self._idle.pop() if self._idle else _Tracer(self._idle)
        tracer.call, tracer.gr_context = call, context
        self._step(call, tracer.switch, run)

    def _step(self, call: Call, switch: Callable[..., Any], *values: Any) -> None:
        """Run the tracer until it waits, or to its end."""
        switch(*values)
        tracer = call.tracer
        assert tracer is not None
        if tracer.call is None:
            if not tracer.dead:
                tracer.gr_context = None
            self._over(call)

    def resume_from_body(self, call: Call, value: Any, error: BaseException | None) -> None:
        """The body that a suspended tracer waits for has ended."""
        if call.gone:
            error = Gone()
        elif call.soft:
            error = SoftTimeLimitExceeded(call.soft)
        self.resume(call, value, error)

    def resume(self, call: Call, value: Any, error: BaseException | None) -> None:
        """What a suspended tracer waits for has come."""
        tracer = call.tracer
        assert tracer is not None
        if error is None:
            self._step(call, tracer.switch, value)
        else:
            self._step(call, tracer.throw, type(error), error, error.__traceback__)

    def _ran(self, call: Call, future: "asyncio.Future[Any]") -> None:
        error = bridge.outcome(future)[1]
        if error is not None:
            logger.error("a call ended the tracer that ran it", exc_info=error)
        self._over(call)

    def _over(self, call: Call) -> None:
        for timer in call.timers:
            timer.cancel()
        call.tracer = None
        self.calls.discard(call)
        if self._waiting or self._closing:
            self._fill()

    def _soft(self, call: Call, seconds: float, on_timeout: Any) -> None:
        on_timeout(True, seconds)
        call.soft = seconds
        runner.cancel(call.asked[1])

    def _hard(self, call: Call, seconds: float, on_timeout: Any) -> None:
        on_timeout(False, seconds)
        self.stop_call(call)

    def stop_call(self, call: Call) -> None:
        """Stop a call whose outcome is settled. What runs in a thread cannot be stopped."""
        if call.tracer is not None:
            call.gone = True
            runner.cancel(call.asked[1])

    # From the consumer's thread

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Do nothing: the process runs other calls, too. Celery asks the call itself as well."""

    def on_stop(self) -> None:
        """Wait until what runs has ended. What has not begun stays unacknowledged."""
        self._closing = True
        self.loop.call_soon_threadsafe(self._drop)
        while not self._ended.wait(0.1):
            if self._hub is not None:  # acknowledgements that Celery hands to its own loop, which turns no more
                self._hub.fire_timers()
                _run_ready_callbacks(self._hub)
        self._threads.shutdown(cancel_futures=True)

    def _drop(self) -> None:
        self._arrived.clear()
        self._waiting.clear()
        self._fill()

    on_terminate = on_stop

    def grow(self, n: int = 1) -> None:
        """Let *n* more calls run at once."""
        self.limit += n
        self.loop.call_soon_threadsafe(self._fill)

    def shrink(self, n: int = 1) -> None:
        """Let *n* fewer calls run at once; what runs goes on."""
        self.limit = max(self.limit - n, 1)

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "running": len(self.calls),
            "waiting": len(self._waiting) + len(self._arrived),
            "loop-lag": watchdog.lag(),
        }


def _in_tracer() -> bool:
    return isinstance(getcurrent(), _Tracer)


def _wait(begin: bridge.Begin, body: bool) -> Any:
    tracer = getcurrent()
    assert isinstance(tracer, _Tracer)
    assert tracer.parent is not None
    call = tracer.call
    assert call is not None
    begin(partial(call.pool.resume_from_body if body else call.pool.resume, call))
    return tracer.parent.switch()
