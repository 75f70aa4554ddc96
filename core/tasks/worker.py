"""Run a worker: import the tasks, start Celery's worker, stop well.

Everything that makes a worker ours is hung on Celery's own signals and boot steps, so that
`celery -A core worker` is the same worker as `core runworker`.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from core import config, discovery, embedded
from core.errors import BrokerUnreachable, ConfigurationError, TasksDisabled
from core.tasks import bridge, celery_app, runner
from core.tasks.cancellation import cancel_key, mark_all
from core.tasks.definition import SyncPeriodicTask, SyncTask

logger = logging.getLogger("core.tasks")

THREADS_AT_ONCE = 50
#: Seconds that bodies have for their `finally` when the worker quits.
CLEAN_UP = 0.8


def prepared_app() -> Any:
    """The Celery application with the project's tasks, as a worker, the scheduler and Celery's commands need it.

    Raises:
        ConfigurationError: The settings or a task module cannot be used, or there are no tasks.
    """
    celery_app.import_tasks()
    app = celery_app.get_app()
    if not getattr(app, "core_tasks_prepared", False):
        app.core_tasks_prepared, app.core_tasks_worker = True, None
        _prepare(app)
    return app


def run(
    *,
    queues: Sequence[str] = (),
    concurrency: int | None = None,
    pool: str | None = None,
    loglevel: str = "INFO",
    extra: Sequence[str] = (),
) -> int:
    """Run a worker in this process until it is stopped, and return its exit code.

    Args:
        queues: What it serves; empty is every queue that the project knows.
        concurrency: Calls at once; None takes the setting, then the pool's default.
        pool: `prefork` or `threads`; None takes the setting.
        loglevel: The least level that is logged.
        extra: More options, as `celery worker` takes them.

    Raises:
        TasksDisabled: `task_enabled` is False.
        ConfigurationError: The project, the broker's URL or password cannot be used.
        UnknownQueue: A queue that no task and no setting names.
    """
    settings = config.get_settings()
    if not settings.task_enabled:
        raise TasksDisabled("The worker does not start")
    celery_app.import_tasks()
    for queue in queues:
        celery_app.check_queue(queue)
    app = prepared_app()
    end_while_starting()
    log_to_stderr(loglevel)
    if own := discovery.own_core(config.get_project().root):
        logger.warning("%s has the name of the installed package `core`: `celery -A core` would load yours", own)
    if not wait_for_broker():
        return 0
    pool = pool or settings.task_worker_pool
    # Gossip tells workers of each other, which nothing here asks for, and fails loudly when a connection is lost.
    options = ["--pool", pool, "--loglevel", loglevel, "--without-gossip"]
    if settings.task_broker_transport == "core":
        options.append("--without-mingle")  # a second at start, for cancellations that are read from Redis here
    if count := concurrency or settings.task_worker_concurrency or _default_concurrency(pool):
        options += ["--concurrency", str(count)]
    if queues:
        options += ["--queues", ",".join(queues)]
    if not any(option.startswith(("-n", "--hostname")) for option in extra):
        # Two workers on one host are ordinary, and two nodes of one name answer for each other.
        options += ["--hostname", f"worker-{os.getpid()}@%h"]
    try:
        app.start(argv=["--quiet", "worker", *options, *extra])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    # Celery's own command drops what its worker ended with.
    return getattr(app.core_tasks_worker, "exitcode", None) or 0


def _default_concurrency(pool: str) -> int | None:
    return THREADS_AT_ONCE if pool == "threads" else None


def log_to_stderr(loglevel: str) -> None:
    """Send log lines to stderr, unless the project has set up logging itself."""
    if not logging.getLogger().handlers:
        logging.basicConfig(
            stream=sys.stderr,
            level=loglevel.upper(),
            format="%(asctime)s %(levelname)s %(message)s",
        )


def end_while_starting() -> None:
    """Until Celery's own handlers are in place, a signal to stop ends this process, and that is no failure."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))


def wait_for_broker() -> bool:
    """Wait until the broker answers, however long that takes; False when a signal ended the wait.

    Raises:
        ConfigurationError: It answers, and refuses the password or the database.
    """
    ended = threading.Event()
    before = {s: signal.signal(s, lambda *_: ended.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    pause, told = 0.5, False
    try:
        while not ended.is_set():
            try:
                celery_app.producer()
                celery_app.drop_producer()
                return True
            except BrokerUnreachable as error:
                if not told:
                    logger.warning("%s Waiting for it, and joining by itself.", error)
                    told = True
            ended.wait(pause)
            pause = min(pause * 2, 5.0)
        return False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepare(app: Any) -> None:
    from celery import bootsteps, signals

    class Stopping(bootsteps.StartStopStep):  # type: ignore[misc]
        """Takes the signals from Celery once it has set its own handlers."""

        def start(self, parent: Any) -> None:
            app.core_tasks_worker = parent
            _Stop(parent).listen()
            if embedded.is_default():
                threading.Thread(target=_keep_server, name="core-tasks-server", daemon=True).start()

    app.steps["worker"].add(Stopping)
    signals.celeryd_init.connect(_at_init, weak=False)
    signals.worker_ready.connect(_at_ready, weak=False)
    signals.worker_process_init.connect(_in_child, weak=False)
    signals.worker_process_shutdown.connect(_end_loop, weak=False)
    signals.worker_shutdown.connect(_end_loop, weak=False)
    signals.after_setup_logger.connect(_quieten, weak=False)


def _at_init(conf: Any = None, options: Any = None, **_: Any) -> None:
    from celery.exceptions import CPendingDeprecationWarning

    _add_control_command()
    _quieten()
    pool = (options or {}).get("pool_cls") or (options or {}).get("pool") or conf.worker_pool
    if "thread" in str(pool):
        conf.worker_concurrency = conf.worker_concurrency or THREADS_AT_ONCE
    # Celery advises to end what runs when a connection is lost. Here it keeps its message instead.
    warnings.filterwarnings("ignore", r"\s*In Celery 5.1 we introduced", CPendingDeprecationWarning)


def _quieten(**_: Any) -> None:
    """One line a finished call is ours; Celery's own three say the same with the arguments in them."""
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    trace = logging.getLogger("celery.app.trace")
    trace.setLevel(logging.WARNING)
    if not trace.filters:
        trace.addFilter(lambda record: celery_app.find(getattr(record, "data", {}).get("name", "")) is None)
    for name in ("celery.worker.consumer.mingle", "celery.worker.consumer.connection", "celery.apps.worker"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _at_ready(sender: Any = None, **_: Any) -> None:
    worker = sender.controller
    names = ", ".join(sender.task_consumer.queues and [q.name for q in sender.task_consumer.queues])
    count = worker.pool.num_processes
    kind = worker.pool_cls.__module__.rpartition(".")[2].replace("thread", "threads")
    processes = count if kind == "prefork" else 1
    if kind == "threads":
        _warn_of_limits(kind)
    logger.info(
        "serving %s · %d at once · %s, %d process%s", names, count, kind, processes, "es" * (processes > 1)
    )  # fmt: skip


def _warn_of_limits(pool: str) -> None:
    """Say which timeouts this pool cannot keep: nothing interrupts a plain function in a thread."""
    plain = [
        task.name for task in celery_app.declared() if isinstance(task, SyncTask | SyncPeriodicTask) and task.limit()
    ]
    if plain:
        logger.warning(
            "on %s a plain `def` cannot be interrupted: it runs past its timeout and fails when it ends: %s",
            pool, ", ".join(plain),
        )  # fmt: skip


def _in_child(**_: Any) -> None:
    bridge.accept_interrupts(lambda: bridge.submit(_look_for_cancellations()))
    # In a thread, since the handler may have interrupted whoever holds a lock that this takes.
    signal.signal(bridge.PUT_BACK, lambda *_: threading.Thread(target=runner.put_back, daemon=True).start())


async def _look_for_cancellations() -> None:
    """Cancel those of this process's calls that somebody asked to cancel: a signal cannot say which."""
    from core.tasks.listener import listener

    results = await listener()
    for task_id in runner.running():
        if await results.command("EXISTS", cancel_key(celery_app.get_app().conf, task_id)):
            runner.cancel(task_id)


def _end_loop(**_: Any) -> None:
    bridge.close()


def _keep_server() -> None:
    """Start the development server again if it dies while this worker needs it."""
    while True:
        time.sleep(1)
        try:
            embedded.broker_url()
        except ConfigurationError as error:
            logger.error("%s", error)


def _add_control_command() -> None:
    from celery.worker import state as worker_state
    from celery.worker.control import Panel, control_command, ok, revoke
    from redis.exceptions import RedisError

    if "cancel_call" in Panel.data:
        return

    @control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]", name="revoke")  # type: ignore[untyped-decorator]
    def revoke_for_good(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any) -> Any:
        """Revoke calls by id, or a list of ids; a restart of the workers does not forget it."""
        try:
            mark_all(state.app, [task_id] if isinstance(task_id, str) else list(task_id or ()))
        except (RedisError, OSError) as error:
            logger.warning("a revocation is kept in this worker alone: %s", error)
        return revoke(state, task_id, terminate, signal, **options)

    @control_command(args=[("task_id", str)], signature="TASK_ID")  # type: ignore[untyped-decorator]
    def cancel_call(state: Any, task_id: str, again: int = 3, **_: Any) -> Any:
        """Cancel one call: it never starts, or its body gets CancelledError."""
        if not any(request.id == task_id for request in worker_state.active_requests):
            revoke(state, task_id)
        if runner.cancel(task_id):
            return ok(f"cancelling {task_id}")
        for request in list(worker_state.reserved_requests):
            if request.id == task_id:
                # In a pool of threads this process runs it: the body has just ended, or asks before it begins.
                if request.worker_pid and request.time_start and request.worker_pid != os.getpid():
                    os.kill(request.worker_pid, bridge.INTERRUPT)
                    return ok(f"cancelling {task_id}")
                if again:  # on its way to a pool process, which has perhaps looked for cancellations already
                    state.consumer.timer.call_after(0.2, cancel_call, (state, task_id), {"again": again - 1})
        return ok(f"{task_id} does not run here")


class _Stop:
    """How a worker stops: the first signal lets calls finish, the second or the grace time puts them back."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._grace = config.get_settings().task_shutdown_timeout
        self._stopping = False

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked)

    def _asked(self, number: int, _frame: object) -> None:
        from celery.worker import state

        if self._stopping:
            self._quit(130, "a second signal")
        self._stopping = True
        active = len(state.active_requests)
        logger.info(
            "stopping: %d running call%s may finish within %g s; again to quit now",
            active, "s" * (active != 1), self._grace,
        )  # fmt: skip
        state.should_stop = 0
        timer = threading.Timer(self._grace, self._quit, (0, f"{self._grace:g} s passed"))
        timer.daemon = True
        timer.start()

    def _quit(self, code: int, why: str) -> None:
        """Put unfinished calls back into their queues and end this process and its children now."""
        from celery.worker import state

        calls = [request for request in list(state.active_requests) if not request.acknowledged]
        children = self._worker.pool.info.get("processes", ())
        _signal(children, bridge.PUT_BACK)
        runner.put_back()
        deadline = time.monotonic() + CLEAN_UP
        while calls and (children or runner.running()) and time.monotonic() < deadline:
            time.sleep(0.01)  # cancelled bodies run their `finally`
        # A Redis that does not answer must not hold us.
        closing = threading.Thread(target=self._give_back, daemon=True)
        closing.start()
        closing.join(CLEAN_UP)
        if closing.is_alive():
            logger.warning("Redis does not answer: what was not put back comes back by itself")
        _signal(children, signal.SIGTERM)
        logger.warning("%s: quit, %d unfinished call%s put back", why, len(calls), "s" * (len(calls) != 1))
        logging.shutdown()
        os._exit(code)

    def _give_back(self) -> None:
        """Put back what is not finished. Celery's own consumer does that when its connection is closed."""
        consumer: Any = getattr(self._worker, "consumer", None)
        if hasattr(consumer, "give_back"):
            consumer.give_back(CLEAN_UP)
        elif connection := getattr(consumer, "connection", None):
            connection.close()


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
