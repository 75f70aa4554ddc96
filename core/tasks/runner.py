"""The worker's side: one attempt, from Celery's call of a plain function to the task's body and back."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NoReturn

from core.errors import TaskTimeout
from core.tasks import bridge, progress, timeout
from core.tasks.arguments import Arguments
from core.tasks.cancellation import cancel_key, client
from core.tasks.celery_config import is_one_database
from core.tasks.context import CurrentTask, enter
from core.tasks.outcome import Log, Outcome, as_failure, from_the_body, portable
from core.tasks.retry import RetryPolicy
from core.tasks.timeout import Limit

logger = logging.getLogger("core.tasks")


@dataclass(frozen=True)
class Body:
    """What a worker has to know of a task to run it."""

    name: str
    function: Callable[..., Any]
    is_coroutine: bool
    arguments: Arguments
    policy: RetryPolicy
    limit: Limit | None
    queue: str | None
    priority: int | None
    ignore_result: bool

    def result(self, value: Any) -> Any:
        """What is kept of what the function returned, as JSON's own values.

        Raises:
            ArgumentsError: It would not come back equal.
        """
        return None if self.ignore_result else self.arguments.encode_result(value)


#: Seconds after which a process that was told to put its calls back ends by itself.
LAST_MOMENT = 5.0


class Stopped(BaseException):
    """A running body is to end: its call was cancelled, or its worker puts it back."""


class _Running:
    """The bodies that run in this process, by call id."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bodies: dict[str, _RunningBody] = {}
        self.putting_back = False


class _RunningBody:
    """One of them, while it is entered."""

    def __init__(self, task_id: str) -> None:
        self._id = task_id
        self.stop: Callable[[], object] | None = None
        self.cancelled = False

    def __enter__(self) -> "_RunningBody":
        with _running.lock:
            _running.bodies[self._id] = self
        return self

    def __exit__(self, *_: object) -> None:
        with _running.lock:
            if _running.bodies.get(self._id) is self:  # Redis may have given the call out twice
                del _running.bodies[self._id]


_running = _Running()


def cancel(task_id: str) -> bool:
    """Cancel the body of this call if it runs in this process; say whether it does. Any thread may ask."""
    with _running.lock:
        body = _running.bodies.get(task_id)
        if body is None:
            return False
        body.cancelled = True
        stop = body.stop
    if stop is not None:
        stop()
    return True


def running() -> list[str]:
    """The ids of the calls whose bodies run in this process."""
    with _running.lock:
        return list(_running.bodies)


def put_back() -> None:
    """Cancel every body in this process and leave its message unacknowledged, for another worker."""
    _running.putting_back = True
    for task_id in running():
        cancel(task_id)


def putting_back() -> bool:
    """Whether `put_back` was called in this process."""
    return _running.putting_back


def register(app: Any, body: Body) -> Any:
    """Make the Celery task for *body* and register it with *app*; return it."""
    task = _task_class()()
    task.name = body.name
    task.body = body
    task.reads_cancellations = is_one_database(app.conf)
    task.is_coroutine = body.is_coroutine
    task.__doc__ = body.function.__doc__
    task.queue = body.queue
    task.priority = body.priority
    task.ignore_result = body.ignore_result
    task.max_retries = body.policy.max_retries
    task.default_retry_delay = 10  # after a worker was lost; our own retries name their delay
    task.time_limit = body.limit.hard if body.limit else None
    task.__header__ = body.arguments.signature.bind  # what stock producers check a call against
    app.tasks.pop(body.name, None)  # declared again: a reload
    return app.register_task(task)


def _task_class() -> type[Any]:
    from celery import Task

    class CoreTask(Task):  # type: ignore[misc]
        """A task of core.tasks, as Celery sees it: a plain function."""

        abstract = True
        body: Body
        #: Whether its body runs on an event loop.
        is_coroutine = False
        #: Whether a worker reads the mark of a cancellation in the same step in which it takes the call.
        reads_cancellations = False

        def run(self, *args: Any, **kwargs: Any) -> Any:
            return _attempt(self, self.body, args, kwargs)

    return CoreTask


def _attempt(task: Any, body: Body, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one attempt. What it returns is stored, what it raises is Celery's to handle."""
    request = task.request
    stored = not (body.ignore_result or request.ignore_result or request.called_directly or request.is_eager)
    reports = progress.Reports(_progress_store(task, request) if stored else lambda _: None)
    here = _current_task(request, body, reports.add)
    log = Log(here, body.policy, stored)
    with _RunningBody(here.id) as mine:
        try:
            if _cancelled_before(task, here.id):
                mine.cancelled = True
                raise Stopped
            given, named = body.arguments.decode(args, kwargs)
            try:
                value = _run_body(body, mine, here, given, named)
            finally:
                if reports.used:  # the last one is stored before the outcome is
                    bridge.aside(reports.close)
            value = body.result(value)
        except Stopped:
            _leave(task, here, log)
        except Exception as error:
            error.__traceback__ = from_the_body(error)
            delay = log.failed(error)
            if delay is not None:
                _retry(task, error, delay)
            told = portable(error)
            if told is error:
                raise  # with the cause that it has
            raise told from error
    log(logging.INFO, "success in %.3f s")
    return value


async def attempt(body: Body, here: CurrentTask, args: list[Any], kwargs: dict[str, Any]) -> Outcome:
    """Run one attempt on the running loop, without Celery: all that a worker does with a body, and nobody to tell."""
    log = Log(here, body.policy)
    try:
        with _RunningBody(here.id) as mine:
            given, named = body.arguments.decode(args, kwargs)
            value = body.result(await _on_this_loop(body, mine, here, given, named))
    except Stopped:
        log(logging.INFO, "cancelled after %.3f s")
        return Outcome(cancelled=True)
    except Exception as error:
        told, delay = portable(error), log.failed(error)
        if told is not error:
            told.__cause__ = error
        return Outcome(error=told, retry_in=delay)
    log(logging.INFO, "success in %.3f s")
    return Outcome(value)


async def _on_this_loop(
    body: Body, mine: _RunningBody, here: CurrentTask, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    ended: asyncio.Future[Any]
    if body.is_coroutine:
        ended = loop.create_future()

        def done(value: Any, error: BaseException | None) -> None:
            if error is None:
                ended.set_result(value)
            else:
                ended.set_exception(error)

        context.run(_begin, body, mine, here, args, kwargs, done)
    else:
        # A thread of its own: one that waits in `delay_sync` for another such body must not take that one's place.
        thread = ThreadPoolExecutor(1, thread_name_prefix="core-tasks-body")
        ended = loop.run_in_executor(thread, context.run, partial(_run_body, body, mine, here, args, kwargs))
        thread.shutdown(wait=False)
    try:
        await asyncio.wait({ended})
    except asyncio.CancelledError:
        cancel(here.id)
        await asyncio.wait({ended})
        ended.exception()
        raise
    return ended.result()


def _progress_store(task: Any, request: Any) -> Callable[[dict[str, Any]], object]:
    """What stores the progress of this attempt, in any thread."""
    backend = task.backend
    return lambda said: backend.store_result(request.id, said, progress.STATE, request=request)


def _current_task(request: Any, body: Body, report: Callable[[progress.Progress], object]) -> CurrentTask:
    deadline = datetime.now(UTC) + timedelta(seconds=body.limit.seconds) if body.limit else None
    own = request.headers if isinstance(request.headers, dict) else {}
    return CurrentTask(
        id=request.id,
        name=body.name,
        attempt=(request.retries or 0) + 1,
        queue=(request.delivery_info or {}).get("routing_key") or body.queue or "",
        headers=dict(own),
        deadline=deadline,
        parent_id=request.parent_id,
        root_id=request.root_id or request.id,
        _report=report,
    )


def _run_body(body: Body, mine: _RunningBody, here: CurrentTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if body.is_coroutine:
        return bridge.wait(partial(_begin, body, mine, here, args, kwargs), partial(cancel, here.id), timeout.GRACE)
    context = contextvars.copy_context()
    context.run(enter, here)
    try:
        with _interruptible(mine), timeout.interrupting(body.limit, body.name):
            value = context.run(body.function, *args, **kwargs)
        if mine.cancelled:
            raise Stopped  # in a thread it could not be interrupted, but what it returns is not wanted
        return value
    except (Stopped, Exception):
        raise
    except BaseException as error:
        from billiard.common import terminate_handler_fired

        if terminate_handler_fired():
            raise  # the worker ends this process, and has said what becomes of the call
        raise as_failure(error) from error


def _begin(
    body: Body,
    mine: _RunningBody,
    here: CurrentTask,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    done: Callable[[Any, BaseException | None], None],
) -> None:
    """Start a coroutine on the running loop, and say how it ended."""
    enter(here)

    def ended(value: Any, error: BaseException | None) -> None:
        if timed.cancelled and mine.cancelled and not isinstance(error, TaskTimeout):
            error = Stopped()  # also where it swallowed the cancellation
        elif isinstance(error, asyncio.CancelledError):
            error = as_failure(error)
        done(value, error)

    timed = timeout.Timed(_guarded(body.function, args, kwargs), body.limit, body.name, ended)
    mine.stop = partial(asyncio.get_running_loop().call_soon_threadsafe, timed.cancel)
    if mine.cancelled:  # asked for before there was anything to cancel
        timed.cancel()


async def _guarded(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # SystemExit or KeyboardInterrupt in an asyncio task would stop the loop for everyone.
    try:
        return await function(*args, **kwargs)
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise as_failure(error) from error


class _interruptible:
    """Lets `cancel` interrupt a plain function where it runs in the main thread."""

    def __init__(self, mine: _RunningBody) -> None:
        self._mine = mine

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._mine.stop = bridge.interrupt_main
            bridge.on_interrupt(self._raise)
            if self._mine.cancelled:
                raise Stopped

    def _raise(self) -> None:
        if self._mine.cancelled:
            raise Stopped

    def __exit__(self, *_: object) -> None:
        if self._mine.stop is not None:
            bridge.on_interrupt(None)
            self._mine.stop = None


def _cancelled_before(task: Any, task_id: str) -> bool:
    """Whether somebody cancelled this call while no worker had it, which workers cannot remember."""
    from celery.worker import state

    if task_id in state.revoked:  # while it waited in this worker
        return True
    if task.reads_cancellations:
        return False  # that was read when the call was taken
    try:
        return bool(bridge.aside(client(task.app).exists, cancel_key(task.app.conf, task_id)))
    except Exception as error:
        logger.warning("whether %s was cancelled could not be read (%s); it runs", task_id, type(error).__name__)
        return False


def _leave(task: Any, here: CurrentTask, log: Log) -> NoReturn:
    """End an attempt whose body was stopped."""
    from celery.exceptions import Ignore, WorkerTerminate
    from celery.signals import task_revoked

    if _running.putting_back:
        # Whatever left this function now would be an outcome. The worker ends this process in a moment.
        with _running.lock:
            _running.bodies.pop(here.id, None)
        bridge.wait(lambda done: asyncio.get_running_loop().call_later(LAST_MOMENT, done, None, None))
        raise WorkerTerminate
    log(logging.INFO, "cancelled after %.3f s")
    how = {"terminated": True, "signum": None, "expired": False}
    task.backend.mark_as_revoked(
        here.id, "cancelled", request=task.request, store_result=not (task.request.ignore_result or task.ignore_result)
    )
    bridge.aside(task.send_event, "task-revoked", **how)
    task_revoked.send(sender=task, request=task.request, **how)
    raise Ignore("cancelled")


def _retry(task: Any, error: Exception, delay: float) -> NoReturn:
    """Send the next attempt; always raises."""
    from celery.exceptions import Reject

    try:
        raise task.retry(exc=portable(error), countdown=delay)
    except Reject as reject:
        # The next attempt could not be sent. This one is not done, so its message goes back instead.
        raise Reject(reject.reason, requeue=True) from error
