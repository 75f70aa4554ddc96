"""The lease on a worker's calls, renewed by a thread of its own for as long as the worker turns.

Nothing that a body does to an event loop, or a signal handler to the consumer, keeps the lease from being renewed.
A worker that has stopped to react gives up instead: its lease ends, and others run what it held.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from core import config
from core.tasks import watchdog
from core.tasks.transport.held import Holder
from core.tasks.transport.scripts import script

logger = logging.getLogger("core.tasks")

#: What a worker exits with that was stuck.
STUCK = 70


class Lease:
    """Renews the lease of a holder, and gives away what others held whose lease has ended."""

    def __init__(self, holder: Holder, turns: Callable[[], int | None], running: Callable[[], Iterable[Any]],
                 children: Callable[[], Iterable[int]], lost: Callable[[bytes], None],
                 cancelled: Callable[[Any], object]) -> None:  # fmt: skip
        """
        Args:
            turns: How often the consumer has turned; None while it need not.
            running: The requests that run in this worker.
            children: The pool's processes.
            lost: Called with the message of each call that was set aside.
            cancelled: Called with each request that runs and is marked as cancelled.
        """
        self._holder, self._turns, self._running = holder, turns, running
        self._children, self._lost, self._cancelled = children, lost, cancelled
        self._patience = config.get_settings().task_worker_stuck_after
        self._every = min(holder.lease / 3, 5.0)
        #: Since when this worker's own lease has gone on without a gap. After an outage, others are given the time to
        #: renew theirs before they are taken for lost.
        self._since: float | None = None
        #: Records of calls that had not begun at the last renewal.
        self._idle: set[str] = set()
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._renew_script = script(self._holder.client, "lease")
        threading.Thread(target=self._run, name="core-tasks-lease", daemon=True).start()

    def end(self) -> None:
        """Renew no more."""
        self._ended.set()

    def _run(self) -> None:
        last, turns, still, away = time.monotonic(), self._turns(), 0.0, False
        pause = 0.0
        while not self._ended.wait(pause):
            pause = self._every
            now = time.monotonic()
            # A process that was stopped has not been stuck meanwhile.
            passed, last = min(now - last, self._every * 2), now
            before, turns = turns, self._turns()
            still = still + passed if turns is not None and turns == before else 0.0
            if still >= self._patience and not _may_take_longer(self._running()):
                self._give_up(still)
            blocked, by = watchdog.blocked() if turns is not None else (0.0, None)
            # Only the call that blocks the loop may go on with it: those that stand still cannot even time out.
            if blocked >= self._patience and not _may_take_longer(r for r in self._running() if r.id == by):
                self._give_up(blocked)
            try:
                self._renew()
                self._look_for_cancellations()
                away = False
            except (RedisError, OSError) as error:
                if not away:
                    logger.warning("the lease of this worker could not be renewed: %s. It goes on by itself", error)
                away, self._since = True, None
                pause = min(self._every, 1.0)
            except Exception:
                logger.exception("the lease of this worker could not be renewed")

    def _renew(self) -> None:
        holder = self._holder
        before, self._idle = self._idle, {call.record for call in list(holder.calls.values()) if not call.begun}
        # What was just taken is about to begin: only what waits for longer, as for a rate limit, is not to be counted.
        waiting = " ".join(self._idle & before)
        now = time.monotonic()
        looks = self._since is not None and now - self._since >= min(holder.lease / 2, 4.0)
        words = [holder.worker, holder.lease, holder.prefix, f" {waiting} " if waiting else "", int(looks)]
        goes_on, *lost = self._renew_script(keys=[holder.workers, holder.key], args=words)
        if not goes_on or self._since is None:
            self._since = now
        for worker, back, aside in lost:
            logger.warning("worker %s was lost: %d of its calls put back", worker.decode(), back)
            for raw in aside:
                self._lost(raw)

    def _look_for_cancellations(self) -> None:
        """Workers are told of a cancellation as it happens, unless they have no connection then. Its mark stays."""
        marks, running = self._holder.marks, list(self._running())
        if marks and running:
            found = self._holder.client.mget([f"{marks}{request.id}" for request in running])
            for request, mark in zip(running, found, strict=True):
                if mark:
                    self._cancelled(request)

    def _give_up(self, still: float) -> None:
        stacks = []
        for ident, frame in sys._current_frames().items():
            name = next((thread.name for thread in threading.enumerate() if thread.ident == ident), str(ident))
            stacks.append(f"{name}:\n{''.join(traceback.format_stack(frame))}")
        logger.critical("this worker has not reacted for %.0f s and gives up; its calls run elsewhere when its lease "
                        "ends.\n%s", still, "\n".join(stacks))  # fmt: skip
        for pid in self._children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        logging.shutdown()
        os._exit(STUCK)


def _may_take_longer(running: Iterable[Any]) -> bool:
    """Whether one of these bodies has time left: it may be what keeps the worker from turning."""
    for request in running:
        limit = request.time_limits[0] or request.task.time_limit
        if limit is None or not request.time_start or time.time() < request.time_start + limit:
            return True
    return False
