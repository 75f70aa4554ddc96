"""This process's Celery application, made on first use.

Declaring a task costs nothing and needs no settings, so tasks are kept here until something needs Celery:
a call, a worker, the scheduler. Then the application is made from the settings, and every task is bound to it.
"""

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from core import config, discovery, embedded
from core.broker_error import broker_error, refuse_what_is_no_server
from core.errors import CoreError, UnknownQueue
from core.redis_url import RedisURL
from core.tasks import bridge, celery_config, correlation
from core.tasks.stand_in import stand_in


class Declared(Protocol):
    """A task as far as this file needs it."""

    @property
    def name(self) -> str: ...
    @property
    def queue(self) -> str | None: ...

    def bind(self, app: Any) -> Any:
        """Register the task with a Celery application and return the Celery task."""


class _Process:
    """What this process has declared and made. A forked child keeps it: Celery's own connections are told of
    the fork, and ours belong to a pid.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.declared: dict[str, Declared] = {}
        self.bound: dict[str, Any] = {}
        self.app: Any = None
        self.discovered = False
        self.producers = threading.local()


_process = _Process()


def _after_fork() -> None:
    # Another thread of the parent may have held the lock, and does not exist here.
    _process.lock = threading.RLock()
    _process.producers = threading.local()


os.register_at_fork(after_in_child=_after_fork)


def declare(task: Declared) -> None:
    """Remember a task, and bind it at once if the application exists already."""
    with _process.lock:
        _process.declared[task.name] = task
        _process.bound.pop(task.name, None)
        if _process.app is not None:
            _process.bound[task.name] = task.bind(_process.app)


def find(name: str) -> Declared | None:
    """The task that was declared under this name, if there is one."""
    return _process.declared.get(name)


def declared() -> Iterator[Declared]:
    """Every task that this process has declared, by name."""
    return iter([task for _, task in sorted(_process.declared.items())])


def bound(task: Declared) -> Any:
    """The Celery task of a declared task, or None as long as there is none."""
    return _process.bound.get(task.name)


def celery_task(task: Declared) -> Any:
    """The Celery task of a declared task; makes the application if need be."""
    made = bound(task)
    if made is None:
        get_app()
        with _process.lock:
            made = bound(task) or _process.bound.setdefault(task.name, task.bind(_process.app))
    return made


def get_app() -> Any:
    """This process's Celery application.

    Raises:
        ConfigurationError: The settings are missing or cannot be used.
    """
    if _process.app is None:
        with _process.lock:
            if _process.app is None:
                app = _make()
                for name, task in list(_process.declared.items()):
                    _process.bound[name] = task.bind(app)
                _process.app = app
                _set_queues()
    return _process.app


def _make() -> Any:
    from celery import Celery

    class App(Celery):  # type: ignore[misc]
        """Celery's; what it sends while it runs a call on the loop, it sends in a thread."""

        def send_task(self, name: str, *args: Any, **options: Any) -> Any:
            if (instead := stand_in()) is not None:
                raise instead.refusal(name)
            if _process.app not in (None, self):
                raise CoreError(
                    f"{name} was not queued: its signature was made with other settings, before `worker_tasks` began. "
                    "Make it inside the test."
                )
            return bridge.aside(super().send_task, name, *args, **options)

    settings, project = config.get_settings(), config.get_project()
    correlation.check()
    generated = celery_config.generate(
        settings, embedded.broker_url(), embedded.result_url(), discovery.project_name(project.root)
    )
    # Another Celery application in this process keeps its `current_app` and its shared tasks.
    app = App("core", amqp="core.tasks.transport.recorder:AMQP", set_as_current=False)
    ours = "core.tasks.transport.backend:"
    app.loader.override_backends = {
        "redis": f"{ours}Backend", "rediss": f"{ours}Backend", "sentinel": f"{ours}SentinelBackend",
    }  # fmt: skip
    app.conf.update(generated)
    return app


@contextmanager
def renewed() -> Iterator[None]:
    """Do without the application for a while, since the settings are others; what is declared stays."""
    with _process.lock:
        before = _process.app, _process.bound, _process.producers
        _process.app, _process.bound, _process.producers = None, {}, threading.local()
    try:
        yield
    finally:
        with _process.lock:
            made = _process.app
            _process.app, _process.bound, _process.producers = before
        if made is not None:
            made.close()


def import_tasks() -> None:
    """Import every module of the project that declares tasks, once.

    Raises:
        ProjectImportError: A module failed.
        TasksNotFound: There is no such module.
    """
    if not _process.discovered:
        settings = config.get_settings()
        discovery.import_tasks(config.get_project().root, settings.task_modules)
        _process.discovered = True
        if _process.app is not None:
            _set_queues()


def queues() -> tuple[str, ...]:
    """The default queue, those in `task_queues` and those that declared tasks name, each once."""
    settings = config.get_settings()
    named = (task.queue for task in declared())
    return tuple(dict.fromkeys([settings.task_default_queue, *settings.task_queues, *filter(None, named)]))


def _set_queues() -> None:
    """Tell Celery the queues: a worker that is given none serves them all."""
    from kombu.entity import Queue

    if "task_queues" not in config.get_settings().celery:
        _process.app.conf.task_queues = [
            Queue(name, routing_key=name)  # type: ignore[no-untyped-call]
            for name in queues()
        ]
        # Celery reads the setting once; what it made of the earlier value goes.
        _process.app.amqp.queues = _process.app.amqp.Queues(_process.app.conf.task_queues)


def check_queue(name: str) -> None:
    """Refuse a queue that no worker would serve.

    A web process may not have imported every task module, so before it refuses, it does.

    Raises:
        UnknownQueue: No task and no setting names it.
    """
    if name not in queues():
        import_tasks()
        if name not in queues():
            raise UnknownQueue(name, queues())


def producer() -> Any:
    """A Celery producer on a connection of this thread's own, which is open.

    Raises:
        BrokerUnreachable, ConfigurationError: It cannot be opened; the cause says why.
    """
    app = get_app()
    held = getattr(_process.producers, "value", None)
    if held is not None and _is_open(held.connection):
        return held
    drop_producer()
    try:
        if embedded.is_default():
            embedded.broker_url()  # it may have been stopped since
        connection = app.connection_for_write()
        connection.ensure_connection(max_retries=0)  # kombu's default tries for 6 s, a wrong password as well
        made = app.amqp.Producer(connection, auto_declare=False)
        client = getattr(made.channel, "client", None)  # the channel is opened here
        if client is not None and isinstance(url := embedded.broker_url(), RedisURL):
            refuse_what_is_no_server(client, url)
    except CoreError:
        raise
    except Exception as error:
        raise broker_error(error, embedded.broker_url()) from error
    _process.producers.value = made
    return made


def _is_open(connection: Any) -> bool:
    """Whether a connection that was open still is, as far as can be seen without asking.

    RabbitMQ says good-bye to what it closes, and nobody reads that on a connection that only sends: the next call
    would be lost on it. The Redis client looks by itself.
    """
    if connection.transport.driver_type != "amqp":
        return True
    try:
        said = select.poll()
        said.register(connection.connection.sock, select.POLLIN)
        while said.poll(0):
            connection.drain_events(timeout=0.1)
    except TimeoutError:
        return True  # a heartbeat, and nothing else
    except (AttributeError, *connection.connection_errors, *connection.channel_errors):
        return False
    return bool(connection.connected)


def event_dispatcher() -> Any:
    """What announces calls to Flower, for this thread alone.

    Celery's own is one for all threads, with a lock around each announcement: calls would wait for each other,
    and a child that is forked while another thread announces one would wait for ever.
    """
    held = getattr(_process.producers, "events", None)
    if held is None:
        held = _process.producers.events = get_app().events.Dispatcher(enabled=False)
    return held


def drop_producer() -> None:
    """Close this thread's connection after an error on it: what it would say next is unknown."""
    held = getattr(_process.producers, "value", None)
    _process.producers.value = None
    if held is not None:
        held.connection.collect()


def masked_configuration() -> dict[str, Any]:
    """The generated configuration with its passwords masked, for people to read.

    It asks for no broker: without a configured one, the development server's address stands in its place.
    """
    settings, project = config.get_settings(), config.get_project()
    here = RedisURL(socket=str(embedded.socket_path(project.root)))
    broker, results = (settings.broker_url or here).masked(), (settings.result_url or here).masked()
    shown = celery_config.generate(settings, broker, results, discovery.project_name(project.root))
    return celery_config.masked(shown)
