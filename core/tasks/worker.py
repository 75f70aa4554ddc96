"""Run a worker: import the tasks, start Celery's worker, stop well.

Everything that makes a worker ours is hung on Celery's own signals and boot steps, so that
`celery -A core worker` is the same worker as `core runworker`.
"""

import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

from core import config, discovery, embedded
from core.errors import BrokerUnreachable, ConfigurationError, OptionError, TasksDisabled
from core.tasks import (
    bridge,
    burst,
    celery_app,
    celery_config,
    checks,
    control,
    correlation,
    heartbeat,
    log,
    metrics,
    resources,
    stop,
    supervisor,
    watchdog,
)
from core.tasks.celery_worker import CeleryWorker
from core.tasks.definition import SyncPeriodicTask, SyncTask
from core.tasks.together import Together

logger = logging.getLogger("core.tasks")

#: What every process of a worker needs, and shares when it was imported before they were forked.
BEFORE_THE_FORK = (
    "celery.app.control", "celery.app.events", "celery.app.log", "celery.apps.worker", "celery.bin.worker",
    "celery.events.dispatcher", "celery.worker.autoscale", "celery.worker.components",
    "celery.worker.consumer.delayed_delivery", "celery.worker.control", "celery.worker.heartbeat",
    "celery.worker.loops", "celery.worker.pidbox", "celery.worker.strategy", "concurrent.futures.thread",
    "core.tasks.pool", "core.tasks.transport.backend", "core.tasks.transport.consumer",
    "core.tasks.transport.request", "kombu.asynchronous.hub", "kombu.matcher", "kombu.pidbox",
)  # fmt: skip
#: Celery's loggers that say too much, and the least level that they may say.
QUIET = {
    "celery.worker.strategy": logging.WARNING,
    "celery.pool": logging.INFO,  # it shows the arguments, sensitive ones as well
    "celery.app.trace": logging.WARNING,
    "celery.worker.consumer.mingle": logging.WARNING,
    "celery.worker.consumer.connection": logging.WARNING,
    "celery.apps.worker": logging.WARNING,
}
#: Calls at once, by pool; a pool of processes has one for each core.
AT_ONCE = {"asyncio": 100, "threads": 50}
#: Python's own thresholds for collecting garbage, and how many objects are made for each call at once before a process
#: looks for some: a hundred of each call that it has taken are none, and come and go.
PYTHONS, EACH = gc.get_threshold(), 200


def prepared_app() -> Any:
    """The Celery application with the project's tasks, as a worker, the scheduler and Celery's commands need it.

    Raises:
        ConfigurationError: The settings or a task module cannot be used, or there are no tasks.
    """
    log.begin()
    celery_app.import_tasks()
    app = celery_app.get_app()
    if not getattr(app, "core_tasks_prepared", False):
        app.core_tasks_prepared, app.core_tasks_together = True, None
        _prepare(app)
    return app


def run(
    *,
    queues: Sequence[str] = (),
    concurrency: int | None = None,
    pool: str | None = None,
    processes: int | None = None,
    loglevel: str = "INFO",
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
    once: bool = False,
    extra: Sequence[str] = (),
) -> int:
    """Run a worker in this process until it is stopped, and return its exit code.

    Args:
        queues: What it serves; empty is every queue that the project knows.
        concurrency: Calls at once; None takes the setting, then the pool's default.
        pool: `asyncio`, `prefork` or `threads`; None takes the setting.
        processes: How many the calls are spread over, on `asyncio`; None takes the setting, then the cores.
        loglevel: The least level that is logged.
        metrics_port: Where Prometheus reads; None counts nothing.
        metrics_host: The address of this host that it reads from.
        once: Whether it ends when it has worked off what is there.
        extra: More options, as `celery worker` takes them.

    Raises:
        TasksDisabled: `task_enabled` is False.
        ConfigurationError: The project, the broker's URL or password, or the port of the metrics cannot be used.
        OptionError: *processes* is given for a pool that has none to choose.
        UnknownQueue: A queue that no task and no setting names.
        BrokerUnreachable: The broker does not answer, and *once* is set: nobody waits for it then.
    """
    settings = config.get_settings()
    if not settings.task_enabled:
        raise TasksDisabled("The worker does not start")
    pool = pool or settings.task_worker_pool
    if processes is not None and pool != "asyncio":
        raise OptionError(f"processes={processes} is for the asyncio pool; on {pool} it is concurrency that counts.")
    log.begin()
    celery_app.import_tasks()
    for queue in queues:
        celery_app.check_queue(queue)
    app = prepared_app()
    gc.freeze()  # all of this stays, and each collection would look through it
    gc.enable()
    end_while_starting()
    log.log_to_stderr(loglevel)
    _warn_of_root()
    if metrics_port is not None:
        metrics.listen(metrics_host, metrics_port)
    if own := discovery.own_core(config.get_project().root):
        logger.warning("%s has the name of the installed package `core`: `celery -A core` would load yours", own)
    if once:
        celery_app.producer()  # whoever waits for the end of a burst shall see that there is no broker
    heartbeat.begin(config.get_project().root)
    if not wait_for_broker():
        heartbeat.end()
        return 0
    # Celery takes `--pool prefork` for the default, and the setting instead.
    app.conf.worker_pool = celery_config.POOL if pool == "asyncio" else pool
    # Gossip tells workers of each other, which nothing here asks for, and fails loudly when a connection is lost.
    options = ["--loglevel", loglevel, "--without-gossip"]
    if settings.task_broker_transport == "core":
        options.append("--without-mingle")  # a second at start, for cancellations that are read from Redis here
    if queues:
        options += ["--queues", ",".join(queues)]
    count = concurrency or settings.task_worker_concurrency or AT_ONCE.get(pool)
    if pool == "asyncio":
        assert count is not None
        processes = min(processes or settings.task_worker_processes or supervisor.cores(), count)
    together = Together(count, processes) if count and processes and processes > 1 else None
    if once:
        app.steps["consumer"].add(burst.boot_step(together))
    command = CeleryWorker(app, [*options, *extra])
    if together is None:
        return _node(command, count)
    share, more = divmod(together.concurrency, together.processes)
    _share(app)
    heartbeat.end()  # each process has its own
    return supervisor.supervise(
        lambda number: _node(command, share + (number <= more), together, number),
        together.processes,
        grace=settings.task_shutdown_timeout,
    )


def _share(app: Any) -> None:
    """Make what each process would make for itself, before they are forked."""
    for module in BEFORE_THE_FORK:
        importlib.import_module(module)
    app.loader.import_default_modules()
    control.add_commands()
    _quieten()


def _node(command: CeleryWorker, concurrency: int | None, together: Together | None = None, number: int = 0) -> int:
    """Run Celery's worker in this process.

    Args:
        together: The worker that it is one of the processes of.
        number: Which one.
    """
    app = celery_app.get_app()
    app.core_tasks_together = together
    metrics.take_row(max(number - 1, 0))
    if together:
        together.join(number)
        heartbeat.begin(config.get_project().root, os.getppid(), number, together.processes)
    try:
        return command.run(concurrency, number)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        heartbeat.end()


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
            heartbeat.beat()
            try:
                celery_app.producer()
                celery_app.drop_producer()
                checks.warn()
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

        def __init__(self, parent: Any, autoscale: Any = None, **options: Any) -> None:
            super().__init__(parent, **options)
            pool = _pool_name(parent.pool_cls)
            if pool == "asyncio":
                _refuse("--autoscale", autoscale, pool, "a call that waits costs no process. Use --concurrency.")
                per_child = "a process runs all its calls at once."
                _refuse("--max-tasks-per-child", parent.max_tasks_per_child, pool, per_child)
                _refuse("--max-memory-per-child", parent.max_memory_per_child, pool, per_child)
            elif pool == "threads":
                _refuse("--autoscale", autoscale, pool, "it keeps its size. Use --concurrency.")

        def start(self, parent: Any) -> None:
            stop.Stop(parent).listen()
            if embedded.is_default():
                threading.Thread(target=_keep_server, name="core-tasks-server", daemon=True).start()

    app.steps["worker"].update((Stopping, resources.boot_step(Stopping)))
    app.steps["consumer"].add(heartbeat.boot_step())
    signals.celeryd_init.connect(_at_init, weak=False)
    signals.worker_init.connect(_choose_pool, weak=False)
    signals.worker_ready.connect(_at_ready, weak=False)
    signals.worker_process_init.connect(_in_child, weak=False)
    signals.worker_process_shutdown.connect(_end_loop, weak=False)
    signals.worker_shutdown.connect(_end_loop, weak=False)
    signals.after_setup_logger.connect(_quieten, weak=False)
    for set_up in (signals.after_setup_logger, signals.after_setup_task_logger):
        set_up.connect(log.keep_format, weak=False)
    correlation.follow()


def _refuse(option: str, given: Any, pool: str, why: str) -> None:
    from click import UsageError  # `celery worker` ends with this one's message and exit code, and no other's

    if given:
        raise UsageError(f"{option} is not for the {pool} pool: {why}")


def _at_init(conf: Any = None, options: Any = None, **_: Any) -> None:
    from celery.exceptions import CPendingDeprecationWarning

    from core.tasks.pool import keep_by_call

    control.add_commands()
    if not heartbeat.is_kept():  # it was started by `celery -A core worker`
        heartbeat.begin(config.get_project().root)
    for task in (None, *celery_app.get_app().tasks.values()):
        keep_by_call(task)
    _quieten()
    resources.expect_children(conf)
    conf.worker_concurrency = conf.worker_concurrency or AT_ONCE.get(_pool_name((options or {}).get("pool")))
    # Celery advises to end what runs when a connection is lost. Here it keeps its message instead.
    warnings.filterwarnings("ignore", r"\s*In Celery 5.1 we introduced", CPendingDeprecationWarning)


def _pool_name(pool: Any) -> str:
    """A pool class by the name that users know."""
    name = celery_config.pool_name(getattr(pool, "__module__", ""))
    return "prefork" if name == "asyncio" and _asks_for_prefork() else name


def _asks_for_prefork() -> bool:
    """Whether `celery worker --pool prefork` was called, which Celery takes for its default and the setting instead."""
    from click import get_current_context
    from click.core import ParameterSource

    context = get_current_context(silent=True)
    return context is not None and context.get_parameter_source("pool") is ParameterSource.COMMANDLINE


def _choose_pool(sender: Any = None, **_: Any) -> None:
    if _pool_name(sender.pool_cls) == "prefork":
        sender.pool_cls = "prefork"


def _quieten(**_: Any) -> None:
    """One line a finished call is ours; Celery's own three say the same with the arguments in them."""
    for name, level in QUIET.items():
        if logging.getLogger(name).level != level:  # setting it empties what all loggers have cached
            logging.getLogger(name).setLevel(level)
    trace = logging.getLogger("celery.app.trace")
    if not trace.filters:
        trace.addFilter(lambda record: celery_app.find(getattr(record, "data", {}).get("name", "")) is None)


def _at_ready(sender: Any = None, **_: Any) -> None:
    worker = sender.controller
    names = ", ".join(sender.task_consumer.queues and [q.name for q in sender.task_consumer.queues])
    count, kind = worker.pool.num_processes, _pool_name(worker.pool_cls)
    together = celery_app.get_app().core_tasks_together
    processes = count if kind == "prefork" else 1
    if together:
        count, processes = together.concurrency, together.processes
    only_plain = all(isinstance(task, SyncTask | SyncPeriodicTask) for task in celery_app.declared())
    if kind == "asyncio" or (kind == "threads" and not only_plain):
        watchdog.watch(bridge.loop(), config.get_settings().task_slow_callback)
    metrics.serve()
    gc.collect()
    gc.freeze()  # what a worker is made of stays, too
    if kind == "asyncio" and gc.get_threshold() == PYTHONS:  # else somebody has chosen
        gc.set_threshold(max(PYTHONS[0], EACH * worker.pool.num_processes), *PYTHONS[1:])
    if together and not together.is_complete():
        return
    if kind != "prefork":
        _warn_of_limits(kind)
    logger.info("serving %s · %d at once · %s, %d process%s", names, count, kind, processes, "es" * (processes > 1))


def _warn_of_root() -> None:
    """Say once what each process would say in eight lines of Celery's."""
    from celery.exceptions import SecurityWarning

    if os.geteuid() == 0:
        logger.warning("this worker runs as root, which no task should need: give it a user of its own")
        warnings.filterwarnings("ignore", r"You're running the worker with superuser", SecurityWarning)


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
    bridge.accept_interrupts(lambda: bridge.submit(control.look_for_cancellations()))
    # In a thread, since the handler may have interrupted whoever holds a lock that this takes.
    signal.signal(bridge.PUT_BACK, lambda *_: threading.Thread(target=stop.quit_child, daemon=True).start())
    from billiard.process import current_process

    metrics.in_pool_process(getattr(current_process(), "index", 0))
    resources.enter_in_child()


def _end_loop(**_: Any) -> None:
    resources.leave()
    bridge.close()


def _keep_server() -> None:
    """Start the development server again if it dies while this worker needs it."""
    while True:
        time.sleep(1)
        try:
            embedded.broker_url()
        except ConfigurationError as error:
            logger.error("%s", error)
