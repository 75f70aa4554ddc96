"""Where Prometheus reads how a worker does: `core runworker --metrics-port`.

The worker listens before its processes are forked, and whichever of them is free answers for all: what they count is
in memory that they share. What only Redis knows is read for each scrape, and left out where Redis does not answer soon.
"""

import errno
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from core.errors import ConfigurationError
from core.tasks import backlog, celery_app, timetable, watchdog
from core.tasks.figures import ENDS, Figures, Outcome

logger = logging.getLogger("core.tasks")

#: What waits in Redis, where that is the broker, and where the schedule is run from.
Known = tuple[backlog.Backlog | None, timetable.Status]
#: Seconds for which a scrape waits for what Redis knows, and between two looks at how this process does.
PATIENCE, LOOK = 2.0, 0.5
#: What Celery's states are here. What is given back, or ignored because it was cancelled, has not finished.
ENDINGS: dict[str, Outcome] = {"SUCCESS": "success", "FAILURE": "failed", "RETRY": "retried"}


class _Process:
    """What this process counts and answers with; its forks go on with both."""

    figures: Figures | None = None
    listening: socket.socket | None = None


_process = _Process()


def listen(host: str, port: int) -> None:
    """Take the port, and count what this worker does from now on.

    Raises:
        ConfigurationError: prometheus-client is not installed, or the port cannot be had.
    """
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "--metrics-port needs prometheus-client, which is not installed: pip install 'core-tasks[metrics]'."
        ) from error
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=16)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another process has it, perhaps another worker" if taken else error.strerror or str(error)
        raise ConfigurationError(
            f"The metrics cannot be served on {host}:{port}: {why}. Give each worker of a host a --metrics-port of "
            "its own, and a --metrics-host that this host has."
        ) from error
    listening.setblocking(False)  # all processes wait for the next one who asks, and one gets him
    _process.listening, _process.figures = listening, Figures(celery_app.get_app().tasks)
    _count(_process.figures)


def take_row(number: int) -> None:
    """Count as the process of this number from now on: 0 and up."""
    if _process.figures is not None:
        _process.figures.take_row(number)


def serve() -> None:
    """Answer from this process, in a thread of its own."""
    if _process.figures is not None and _process.listening is not None:
        server = _server(_process.listening, _process.figures)
        threading.Thread(target=server.serve_forever, args=(LOOK,), name="core-tasks-metrics", daemon=True).start()


def in_pool_process(index: int) -> None:
    """Count in a process of a pool, which answers nobody."""
    take_row(index + 1)
    if _process.listening is not None:
        _process.listening.close()


def _count(figures: Figures) -> None:
    from billiard.exceptions import TimeLimitExceeded, WorkerLostError
    from celery import signals

    def begin(task: Any = None, **_: Any) -> None:
        task.request.core_began = time.perf_counter()

    def end(task: Any = None, state: str = "", **_: Any) -> None:
        if outcome := ENDINGS.get(state):
            began = getattr(task.request, "core_began", None)
            figures.finished(task.name, outcome, began and time.perf_counter() - began)

    def failed(sender: Any = None, exception: Any = None, **_: Any) -> None:
        if isinstance(exception, WorkerLostError | TimeLimitExceeded):  # its own process could not say so
            figures.finished(sender.name, "failed")

    def revoked(sender: Any = None, **_: Any) -> None:
        figures.finished(sender.name, "cancelled")

    signals.task_prerun.connect(begin, weak=False)
    signals.task_postrun.connect(end, weak=False)
    signals.task_failure.connect(failed, weak=False)
    signals.task_revoked.connect(revoked, weak=False)


def _server(shared: socket.socket, figures: Figures) -> Any:
    """Answers on a socket that several processes share."""
    # A worker without metrics needs none of these, which are a megabyte in memory.
    from http.server import ThreadingHTTPServer

    from prometheus_client import CollectorRegistry, MetricsHandler

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def service_actions(self) -> None:
            """Called between two looks for somebody who asks."""
            _look(figures)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Whoever asks may go away before the answer comes."""
            logger.debug("metrics for %s were not sent", client_address, exc_info=True)

    registry = CollectorRegistry()
    collector: Any = Collector(figures)
    registry.register(collector)
    handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": 10})
    server = Server(shared.getsockname()[:2], handler, bind_and_activate=False)
    server.socket.close()
    server.socket = shared
    return server


def _look(figures: Figures) -> None:
    from celery.worker import state

    figures.now(in_flight=len(state.active_requests), lag=watchdog.lag().get("last", 0.0))


class Collector:
    """The metrics as prometheus-client reads them."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._reading: Future[Known] | None = None

    def collect(self) -> Iterator[Any]:
        """All metrics, as they are now."""
        _look(self._figures)
        yield from self._of_the_worker()
        yield from self._of_redis()

    def _of_the_worker(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        yield _gauge("in_flight", "Calls that this worker runs.", self._figures.in_flight())
        if watchdog.lag():
            yield _gauge("loop_lag_seconds", "What the slowest of its event loops takes to react.", self._figures.lag())
        finished = CounterMetricFamily(
            "core_tasks_finished", "Attempts that have ended, by task and outcome.", labels=["task", "outcome"]
        )
        seconds = HistogramMetricFamily("core_tasks_seconds", "How long attempts ran, by task.", labels=["task"])
        for name, totals in self._figures.totals().items():
            if name.startswith("celery.") and not any(totals.outcomes.values()):
                continue
            for outcome, count in totals.outcomes.items():
                finished.add_metric([name, outcome], count)
            up_to, buckets = 0, []
            for end, count in zip((*map(str, ENDS), "+Inf"), totals.buckets, strict=True):
                up_to += count
                buckets.append((end, up_to))
            if up_to:
                seconds.add_metric([name], buckets, totals.seconds)
        yield finished
        yield seconds

    def _of_redis(self) -> Iterator[Any]:
        waits, schedule = self._read() or (None, None)
        yield _gauge("redis_up", "Whether Redis has answered; where it has not, what follows is missing.",
                     schedule is not None)  # fmt: skip
        if waits is not None:
            yield _gauge("waiting", "Calls that no worker has taken.", waits.waiting, "queue")
            yield _gauge("oldest_seconds", "For how long the oldest of those waits.", waits.oldest, "queue")
            yield _gauge("delayed", "Calls that wait for their time: countdowns and retries.", waits.delayed)
            yield _gauge("dead", "Calls on the dead list.", waits.dead, "kind")
        if schedule is not None:
            leader = schedule.leader
            yield _gauge("scheduler_leads", "Whether a scheduler leads, wherever it is.", leader is not None)
            yield _gauge("scheduler_overdue_seconds", "For how long the next periodic run is due already.",
                         schedule.overdue())  # fmt: skip
            if leader and leader.get("late") is not None:
                yield _gauge("scheduler_last_run_late_seconds", "How late the last periodic run was.", leader["late"])

    def _read(self) -> Known | None:
        """What Redis knows, if it says so soon. Where it hangs one thread waits for it, however often this is asked."""
        if self._reading is None or self._reading.done():
            self._reading = Future()
            # No executor: the end of the process would wait for its threads.
            threading.Thread(
                target=_ask_redis, args=(self._reading,), name="core-tasks-metrics-redis", daemon=True
            ).start()
        try:
            return self._reading.result(PATIENCE)
        except Exception as error:
            logger.debug("what Redis knows is missing in the metrics: %s: %s", type(error).__name__, error)
            return None


def _ask_redis(answer: Future[Known]) -> None:
    try:
        answer.set_result((backlog.read(), timetable.status()))
    except Exception as error:
        answer.set_exception(error)


def _gauge(name: str, text: str, value: Any, label: str | None = None) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    if label is None:
        return GaugeMetricFamily(f"core_tasks_{name}", text, float(value))
    family = GaugeMetricFamily(f"core_tasks_{name}", text, labels=[label])
    for key, each in value.items():
        family.add_metric([key], each)
    return family
