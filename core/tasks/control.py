"""Remote control: what Celery's commands to workers do beyond Celery's own, and one command of ours."""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from core import config
from core.tasks import bridge, celery_app, runner
from core.tasks.cancellation import cancel_key, mark_all

logger = logging.getLogger("core.tasks")

#: Celery's commands that neither stop nor slow a worker.
SAFE = frozenset((
    "active", "active_queues", "clock", "conf", "disable_events", "dump_active", "dump_conf", "dump_reserved",
    "dump_revoked", "dump_schedule", "dump_tasks", "enable_events", "heartbeat", "hello", "ping", "query_task",
    "registered", "report", "reserved", "revoke", "revoke_by_stamped_headers", "revoked", "scheduled", "stats",
    "terminate",
))  # fmt: skip

#: Requests whose bodies were asked to end: a second time would cut off their cleanup.
_asked: WeakSet[Any] = WeakSet()


def cancel_running(request: Any) -> bool:
    """Cancel the body of a call that this worker has; False when it does not run. Any thread may ask."""
    # A request of this process has a body that has just ended, or that looks for cancellations before it begins.
    elsewhere = request.worker_pid and request.time_start and request.worker_pid != os.getpid()
    if request in _asked:
        return True
    if runner.cancel(request.id) or elsewhere:
        _asked.add(request)
        if elsewhere:
            with suppress(ProcessLookupError):
                os.kill(request.worker_pid, bridge.INTERRUPT)
        return True
    return False


class _Requests(WeakSet[Any]):
    """Celery's sets of the calls that it holds, which one thread lists while calls begin and end in another one."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                return iter(list(super().__iter__()))
            except RuntimeError:  # it was changed meanwhile: the command that asked would be lost
                continue


def add_commands() -> None:
    """Make this worker understand them."""
    from celery.worker import state as worker_state
    from celery.worker.control import (
        Panel,
        autoscale,
        control_command,
        nok,
        ok,
        pool_grow,
        pool_restart,
        pool_shrink,
        revoke,
        time_limit,
    )
    from redis.exceptions import RedisError

    for requests in (worker_state.active_requests, worker_state.reserved_requests, worker_state.scheduled_requests):
        requests.__class__ = _Requests  # Celery's functions keep the sets themselves
    if "cancel_call" in Panel.data:
        return

    @control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]", name="revoke")  # type: ignore[untyped-decorator]
    def revoke_for_good(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any) -> Any:
        """Revoke calls by id, or a list of ids; a restart of the workers does not forget it."""
        ids: list[str] = [task_id] if isinstance(task_id, str) else list(task_id or ())
        try:
            mark_all(state.app, ids)
        except (RedisError, OSError) as error:
            logger.warning("a revocation is kept in this worker alone: %s", error)
        return revoke(state, task_id, terminate, signal, **options)

    @control_command(args=[("task_name", str), ("soft", float), ("hard", float)], name="time_limit")  # type: ignore[untyped-decorator]
    def limit_from_now_on(state: Any, **options: Any) -> Any:
        """Change the time limits of a task."""
        answer = time_limit(state, **options)
        state.consumer.update_strategies()  # which remember what the limits were
        return answer

    @control_command(args=[("task_id", str)], signature="TASK_ID")  # type: ignore[untyped-decorator]
    def cancel_call(state: Any, task_id: str, again: int = 3, **_: Any) -> Any:
        """Cancel one call: it never starts, or its body gets CancelledError."""
        request = worker_state.requests.get(task_id)
        if request not in worker_state.active_requests:
            revoke(state, task_id)
        # Of two deliveries of one call, Celery forgets both when the first ends.
        if cancel_running(request) if request is not None else runner.cancel(task_id):
            return ok(f"cancelling {task_id}")
        if request is not None and again:  # on its way to a body, which has perhaps looked for cancellations already
            state.consumer.timer.call_after(0.2, cancel_call, (state, task_id), {"again": again - 1})
        return ok(f"{task_id} does not run here")

    def resize(command: Any, state: Any, n: int) -> Any:
        if not hasattr(state.consumer.pool, "grow"):
            return nok("this pool keeps its size: start the worker anew, with another --concurrency.")
        try:
            return command(state, n=n)
        except ValueError as error:  # all processes are busy
            return nok(str(error))

    @control_command(args=[("n", int)], signature="[N=1]", name="pool_grow")  # type: ignore[untyped-decorator]
    def grow(state: Any, n: int = 1, **_: Any) -> Any:
        """Let n more calls run at once."""
        return resize(pool_grow, state, n)

    @control_command(args=[("n", int)], signature="[N=1]", name="pool_shrink")  # type: ignore[untyped-decorator]
    def shrink(state: Any, n: int = 1, **_: Any) -> Any:
        """Let n fewer calls run at once."""
        return resize(pool_shrink, state, n)

    @control_command(args=[("max", int), ("min", int)], signature="[max [min]]", name="autoscale")  # type: ignore[untyped-decorator]
    def rescale(state: Any, **limits: Any) -> Any:
        """Change the limits of a pool that grows and shrinks by itself."""
        if not state.consumer.controller.autoscaler:
            return nok("this worker does not scale its pool: one that can is started with --autoscale MAX,MIN.")
        return autoscale(state, **limits)

    @control_command(name="pool_restart")  # type: ignore[untyped-decorator]
    def restart(state: Any, **options: Any) -> Any:
        """Start the processes of the pool anew."""
        if not state.app.conf.worker_pool_restarts:
            return nok("pools are not restarted here: start the worker anew.")
        return pool_restart(state, **options)

    if config.get_settings().remote_control == "safe":
        _refuse_what_is_not_safe(Panel, nok)


def _refuse_what_is_not_safe(panel: Any, nok: Any) -> None:
    """Answer Celery's commands that stop or slow this worker with a refusal. A project's own commands stay."""

    def refused(state: Any, *_: Any, **__: Any) -> Any:
        return nok("this worker refuses it: task_remote_control is safe. Set it to full.")

    for name, command in panel.data.items():
        if name not in SAFE and command.__module__ in ("celery.worker.control", __name__) and name != "cancel_call":
            panel.data[name] = refused


async def look_for_cancellations() -> None:
    """Cancel those of this process's calls that somebody asked to cancel: a signal cannot say which."""
    from core.tasks.listener import listener

    results = await listener()
    for task_id in runner.running():
        if await results.command("EXISTS", cancel_key(celery_app.get_app().conf, task_id)):
            runner.cancel(task_id)
