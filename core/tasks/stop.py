"""How a worker stops: well at first, then at once, and never with a call lost.

The first signal lets calls finish. A second one, or the end of the grace time, cancels them and puts them back.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable
from typing import Any

from core import config
from core.tasks import bridge, heartbeat, resources, runner, supervisor

logger = logging.getLogger("core.tasks")

#: Seconds that bodies have for their `finally` when the worker quits, then lifespans for their second half.
CLEAN_UP = 0.8


class Stop:
    """How a worker stops: the first signal lets calls finish, the second or the grace time puts them back."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._grace = config.get_settings().task_shutdown_timeout
        self._stopping = False

    def listen(self) -> None:
        """Take the signals to stop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked)
        supervisor.leave_group_signals()

    def _asked(self, number: int, _frame: object) -> None:
        from celery.worker import state

        if self._stopping:
            self._quit(130, "a second signal")
        self._stopping = True
        if active := len(state.active_requests):
            logger.info(
                "stopping: %d running call%s may finish within %g s; again to quit now",
                active, "s" * (active != 1), self._grace,
            )  # fmt: skip
        else:
            logger.info("stopping: nothing runs")
        heartbeat.beat(ahead=self._grace)
        state.should_stop = state.should_stop or 0  # 1 when a lifespan has failed
        timer = threading.Timer(self._grace, self._quit, (state.should_stop, f"{self._grace:g} s passed"))
        timer.daemon = True
        timer.start()

    def _quit(self, code: int, why: str) -> None:
        """Put unfinished calls back into their queues and end this process and its children now."""
        from celery.worker import state

        calls = [request for request in list(state.active_requests) if not request.acknowledged]
        children = self._worker.pool.info.get("processes", ())
        _signal(children, bridge.PUT_BACK)
        runner.put_back()
        if calls or resources.declared():
            _clean_up(children)
        # A Redis that does not answer must not hold us.
        closing = threading.Thread(target=self._give_back, daemon=True)
        closing.start()
        resources.leave(CLEAN_UP / 2)
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


def quit_child() -> None:
    """End what runs in a pool's process, whose worker is about to end it."""
    runner.put_back()
    _clean_up()
    resources.leave(CLEAN_UP)


def _clean_up(children: Iterable[int] = ()) -> None:
    """Let cancelled bodies run their `finally`; of those in other processes nobody knows here."""
    deadline = time.monotonic() + CLEAN_UP
    while (children or runner.running()) and time.monotonic() < deadline:
        time.sleep(0.01)
