"""How far a running call is: what its body says of it, and when that leaves the process.

A body may say so as often as it likes. One thread for all calls takes the latest word of each, a few times a second,
so that saying it costs nothing, and neither a loop nor a body waits for Redis.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from core.errors import OptionError

logger = logging.getLogger("core.tasks")

#: The state that a call is stored in, as Celery's documentation names it.
STATE = "PROGRESS"
#: Seconds between two that leave of one call, and between two looks at what is due.
INTERVAL, TURN = 0.2, 0.01
MOST = 1e300


@dataclass(frozen=True)
class Progress:
    """How far a call is, in the task's own measure.

    Raises:
        OptionError: A number is none, or below 0; the message is no text (a ValueError).
    """

    #: How much is done.
    done: float
    #: How much there is; None where that is not known.
    total: float | None = None
    #: What it is about, for people.
    message: str = ""

    def __post_init__(self) -> None:
        for name, value in (("done", self.done), ("total", self.total)):
            numeric = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST
            if not numeric and (name == "done" or value is not None):
                unless = "" if name == "done" else ", or None where nobody knows it"
                raise OptionError(f"progress({name}={value!r}): {name} is a number from 0 on{unless}.")
        if not isinstance(self.message, str):
            raise OptionError(f"progress(message={self.message!r}): the message is text.")

    @property
    def percent(self) -> float | None:
        """How much of the total is done, from 0 to 100; None without a total."""
        return min(100 * self.done / self.total, 100.0) if self.total else None


def progress_of(meta: dict[str, Any]) -> Progress | None:
    """The progress in what is stored of a call, if that is what is stored. Others may store anything there."""
    stored = meta.get("result")
    if meta.get("status") != STATE or not isinstance(stored, dict):
        return None
    try:
        return Progress(stored["done"], stored.get("total"), stored.get("message", ""))
    except (KeyError, OptionError):
        return None


class Reports:
    """What one attempt says of its progress, on its way out."""

    def __init__(self, store: Callable[[dict[str, Any]], object]) -> None:
        """
        Args:
            store: Stores one; it may block, and may raise anything.
        """
        self._store = store
        #: One at most. Whoever takes it and whoever brings another do so in different threads, without a lock.
        self._latest: deque[Progress] = deque(maxlen=1)
        #: Held while one is stored, so that none is when the attempt has ended.
        self._storing = threading.Lock()
        self._closed = self._failed = False
        #: Whether there was any.
        self.used = False
        #: When the next one may leave, by the monotonic clock.
        self.due = 0.0

    def add(self, progress: Progress) -> None:
        """Let this one leave when it is time, unless another one comes before. Any thread may ask."""
        if not self._closed:
            self.used = True
            self._latest.append(progress)
            _outbox().put(self)

    def send(self) -> None:
        """Store the latest one."""
        with self._storing:
            if not self._closed:
                self._send()

    def close(self) -> None:
        """Store the last one, and none that comes after this."""
        with self._storing:
            self._closed = True
            self._send()

    def _send(self) -> None:
        if not self._latest:
            return
        try:
            self._store(asdict(self._latest.pop()))
        except Exception as error:  # each store has errors of its own, and this is only news
            if not self._failed:
                logger.warning("progress could not be stored: %s", type(error).__name__)
            self._failed = True
        self.due = time.monotonic() + INTERVAL


class _Outbox:
    """What is to leave this process, and the thread that sends it."""

    def __init__(self) -> None:
        self._waiting: set[Reports] = set()
        self._changed = threading.Condition()
        #: When the thread looks next.
        self._looks = 0.0
        threading.Thread(target=self._run, name="core-tasks-progress", daemon=True).start()

    def put(self, reports: Reports) -> None:
        with self._changed:
            self._waiting.add(reports)
            if reports.due < self._looks:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                self._looks = min((reports.due for reports in self._waiting), default=float("inf"))
                if self._looks > now:
                    self._changed.wait(self._looks - now if self._waiting else None)
                    continue
                ready = {reports for reports in self._waiting if reports.due <= now}
                self._waiting -= ready
            for reports in ready:
                reports.send()
            time.sleep(TURN)


class _Process:
    """This process's own outbox: a forked child inherits it without its thread."""

    lock = threading.Lock()
    outbox: _Outbox | None = None


_process = _Process()


def _after_fork() -> None:
    _process.lock, _process.outbox = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)


def _outbox() -> _Outbox:
    if _process.outbox is None:
        with _process.lock:
            _process.outbox = _process.outbox or _Outbox()
    return _process.outbox
