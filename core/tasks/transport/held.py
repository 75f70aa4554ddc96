"""What this worker has taken and not finished yet.

Redis keeps the same record, in one hash a worker: a call is in a list, or held, or finished, and never in none of
them. How a call ends is noted here by whatever thread ends it, and told to Redis by one thread of its own: what ends
during a round trip shares the next one, and what could not be said over one connection is said over the next.
"""

import json
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

from core import config
from core.tasks import celery_config
from core.tasks.cancellation import cancel_key
from core.tasks.dead import DeadList
from core.tasks.envelope import UNIQUE
from core.tasks.transport.scripts import passes, script

logger = logging.getLogger("core.tasks")

#: Why a call is set aside that has lost its worker too often, as in lost.lua.
LOST = "lost its worker 3 times while it ran"
#: Calls that one script ends.
BATCH = 200
LONGEST_PAUSE = 2.0
#: Seconds that an end waits at most for a consumer that was to tell it.
PATIENCE = 0.5
#: Seconds at most for which a call whose task is unknown here is left to other workers before it is looked at again.
UNKNOWN_PAUSE = 15.0


@dataclass(slots=True)
class Held:
    """One call that this worker holds."""

    tag: str
    queue: str
    headers: dict[str, Any] = field(default_factory=dict)
    message: Any = None
    #: Whether it was given to a pool process or thread that has begun with it.
    begun: bool = False
    #: Whether another attempt was sent, so that the call has not ended with this one.
    goes_on: bool = False
    #: Whether it is signed; None where that is not asked for.
    signed: bool | None = None
    #: How it ends, where that is known before it is acknowledged: a verdict and its reason.
    ending: tuple[str, str] | None = None
    #: The result that leaves together with its end: key, seconds to keep, text.
    result: tuple[str, int, Any] | None = None

    @property
    def record(self) -> str:
        """The name of its record in the worker's hash."""
        return self.tag.rpartition("/")[2]


@dataclass(slots=True)
class _End:
    record: str
    verdict: str
    result: tuple[str, int, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    call: Held | None = None

    def words(self) -> tuple[Any, ...]:
        details = json.dumps(self.details) if self.details else ""
        return (self.record, self.verdict, *(self.result or ("", 0, "")), details)


@dataclass(slots=True, eq=False)
class Loan:
    """Ends of calls that go by somebody else's connection."""

    ends: list[_End]
    command: tuple[Any, ...]
    lasting: bool


class Holder:
    """The calls that this process holds, under the name by which Redis knows it."""

    def __init__(self, app: Any, tell: Callable[[Held, str], None]) -> None:
        """
        Args:
            tell: Called in the writing thread for each call that was set aside, with the reason.
        """
        settings = config.get_settings()
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.pid = os.getpid()
        self.lease = settings.task_lease
        self.prefix = str(app.conf.broker_transport_options.get("global_keyprefix", ""))
        self.calls: dict[str, Held] = {}
        self.connection = 0
        #: Lists that its connections have waited for.
        self.waited: set[str] = set()
        self.qos: Any = None
        #: Makes the consumer turn and ask for calls, if it is about to; says whether it is. Any thread calls it.
        self.wake: Callable[[], bool] = lambda: False
        #: Ends what its connections wait for, if they do. Any thread calls it.
        self.hang_up: Callable[[], object] = lambda: None
        self.client: Any = None
        self._hold, self._keep = settings.task_unknown_hold, settings.task_store_arguments
        self._app, self._tell = app, tell
        self._together = celery_config.is_one_database(app.conf)
        #: What the key of a call's cancellation begins with; empty where it cannot be read together with the call.
        self.marks = cancel_key(app.conf, "") if self._together else ""
        self._pending: deque[_End] = deque()
        self._batch = BATCH
        self._wake, self._stopped = threading.Event(), threading.Event()
        #: Locked while Redis is told of ends, or asked what is whose: one of the two at a time.
        self._saying = threading.Lock()
        #: What somebody else tells Redis now, and calls of which somebody is still to be told that they were set aside.
        self._loan: Loan | None = None
        #: Where the calls run on an event loop: tells from there how they end. Else the consumer does, or the thread.
        self.speaker: Any = None
        self._aside: deque[tuple[Held, str]] = deque()

    @property
    def key(self) -> str:
        """The hash in which Redis keeps what this worker holds."""
        return f"{self.prefix}core-held-{self.worker}"

    @property
    def workers(self) -> str:
        """The sorted set of all workers, by the end of their leases."""
        return f"{self.prefix}core-workers"

    def start(self, pool: Any) -> None:
        """Begin to tell Redis, over connections of one's own."""
        self.client = Redis(connection_pool=pool)
        self._finish, self._adopt = script(self.client, "finish"), script(self.client, "adopt")
        threading.Thread(target=self._run, name="core-tasks-finish", daemon=True).start()

    def begin(self, tag: str) -> None:
        """A pool process or thread has begun with a call."""
        if call := self.calls.get(tag):
            call.begun = True

    def ends(self, tag: str, verdict: str, reason: str) -> None:
        """A call is about to be acknowledged or rejected, and this is why."""
        if call := self.calls.get(tag):
            call.ending = verdict, reason

    def keep_result(self, tag: str, result: tuple[str, int, Any]) -> bool:
        """Let a result leave together with the end of its call; False when the call is not held here."""
        call = self.calls.get(tag)
        if call is not None:
            call.result = result
        return call is not None

    def write(self, result: tuple[str, int, Any]) -> None:
        """Store a result alone, soon."""
        self._pending.append(_End("", "done", result))
        self._wake.set()

    def settle(self, tag: str, verdict: str, reason: str = "") -> None:
        """End a call: `done`, `back`, `dead` or `later`. Any thread may ask."""
        call = self.calls.get(tag)
        if call is None:
            return
        if call.ending and (verdict, call.ending[0]) in (("done", "failed"), ("back", "lost")):
            verdict, reason = call.ending
        details: dict[str, Any] = {}
        if verdict not in ("done", "back"):
            details = {
                "id": _readable(call.headers.get("id")) or f"unreadable-{tag}",
                "task": _readable(call.headers.get("task")),
                "queue": call.queue,
                "reason": _readable(reason)[:500],
                "keep": self._keep,
                "record": tag,
                "hold": self._hold,
                "pause": min(UNKNOWN_PAUSE, self._hold / 4),
            }
        if (lock := _readable(call.headers.get(UNIQUE))) and verdict != "back" and not call.goes_on:
            details |= {"unique": lock, "id": _readable(call.headers.get("id"))}
        result = call.result if verdict != "back" else None
        # First the one, then the other: `adopt` must find it in one of the two.
        self._pending.append(_End(call.record, verdict, result, details, call))
        self.calls.pop(tag, None)
        if self.qos is not None:
            self.qos.free(tag)
        if self.speaker is not None:
            self.speaker.soon()
        elif not self.wake():  # else the consumer tells it, with the words by which it asks for more
            self._wake.set()

    def adopt(self) -> int:
        """Say over a new connection what is still held: what runs, and what has ended and is not told yet.

        Everything else goes back into its list. Returns how many calls did.
        """
        self.connection += 1
        for tag in [tag for tag, call in self.calls.items() if not call.begun]:
            del self.calls[tag]
        if self._loan is not None and not self._loan.lasting:
            self.untold(self._loan)  # it went by the connection that was lost
        with self._saying:
            kept = [call.record for call in list(self.calls.values())]
            kept += [end.record for end in list(self._pending) if end.record]
            words = [self.worker, self.lease, self.connection, self.prefix, *kept]
            return int(self._adopt(keys=[self.workers, self.key], args=words))

    def lend(self, lasting: bool = False) -> Loan | None:
        """What Redis is to be told of ends, as a command for somebody else's connection.

        `told` or `untold` has to follow. None when there is nothing to tell, or it is just being told.

        Args:
            lasting: Whether it is on a connection that outlives the consumer's.
        """
        if not (self._pending and self._together and self._saying.acquire(blocking=False)):
            return None
        ends = self._next()
        command = ("EVALSHA", self._finish.sha, 1, self.key, self.prefix, *self._words(ends))
        self._loan = Loan(ends, command, lasting)
        return self._loan

    def tell(self) -> None:
        """Tell Redis what there is to tell: it goes with nobody else's words."""
        if self._pending:
            self._wake.set()

    def told(self, loan: Loan, said: list[bytes]) -> None:
        """Redis has answered what was lent."""
        if loan is self._loan:
            self._loan = None
            self._aside.extend(self._done(loan.ends, said))
            self._release()

    def untold(self, loan: Loan | None) -> None:
        """What was lent did not arrive, or was not understood."""
        if loan is not None and loan is self._loan:
            self._loan = None
            self._saying.release()
            self._wake.set()

    def _release(self) -> None:
        self._saying.release()
        if self._aside or (self._pending and self.speaker is None):
            self._wake.set()
        elif self._pending:
            self.speaker.soon()

    def close(self, timeout: float) -> bool:
        """Tell Redis what has ended, and give everything back that has not. False when Redis was not told.

        Args:
            timeout: Seconds to try.
        """
        self._stopped.set()
        self._wake.set()
        self.untold(self._loan)
        if self.client is None or not self._saying.acquire(timeout=timeout):
            return False
        try:
            while self._pending:
                self._aside.extend(self._say())
            self.hang_up()  # what wakes them from here on is for others
            self._adopt(keys=[self.workers, self.key], args=[self.worker, 0, 0, self.prefix, *self.waited])
        except (RedisError, OSError):
            return False
        finally:
            self._saying.release()
        while self._aside:
            self._tell_of(*self._aside.popleft())
        return True

    def _run(self) -> None:
        pause = 0.0
        while not self._stopped.is_set():
            # What the consumer was to tell and has not, because it hangs or ends, is told all the same.
            self._wake.wait(PATIENCE)
            self._wake.clear()
            while self._aside:
                self._tell_of(*self._aside.popleft())
            if not self._pending or not self._saying.acquire(blocking=False):
                continue  # whoever says something now wakes this thread if more is left
            error = None
            try:
                self._aside.extend(self._say())
            except (RedisError, OSError) as refused:
                error = refused
                if not passes(error):
                    self._single_out(error)
            finally:
                self._release()
            if error is None:
                pause = 0.0
                self.wake()
            elif passes(error):
                if not pause:
                    logger.warning("Redis was not told of %d finished calls yet: %s", len(self._pending), error)
                pause = min(max(pause * 2, 0.05), LONGEST_PAUSE)
                self._stopped.wait(pause)

    def _single_out(self, error: Exception) -> None:
        """Redis does not understand one of a batch: the others must not wait for it. Called under the lock."""
        if self._batch > 1:
            self._batch = 1
            return
        end = self._pending.popleft()
        logger.error("Redis refuses the end of a call (%s); it runs again when this worker is gone: %s",
                     _readable(end.call.headers.get("id")) if end.call else end.record, error)  # fmt: skip

    def _say(self) -> list[tuple[Held, str]]:
        """Tell Redis of some ends, in one round trip; return the calls that were set aside."""
        batch = self._next()
        if not self._together:  # the result first, then the acknowledgement
            for end in batch:
                if end.result is not None:
                    self._app.backend.put(*end.result)
                    end.result = None
        said = self._finish(keys=[self.key], args=[self.prefix, *self._words(batch)])
        return self._done(batch, said)

    def _next(self) -> list[_End]:
        """The ends that are told next. Others may add to what is pending meanwhile; an iterator would not bear that."""
        return [self._pending[at] for at in range(min(len(self._pending), self._batch))]

    @staticmethod
    def _words(batch: list[_End]) -> list[Any]:
        return [word for end in batch for word in end.words()]

    def _done(self, batch: list[_End], said: list[bytes]) -> list[tuple[Held, str]]:
        """Redis knows of these ends; return the calls that were set aside with the reason, and those that others have
        taken for lost without one.
        """
        for _ in batch:
            self._pending.popleft()
        self._batch = BATCH
        aside = []
        for end, word in zip(batch, said, strict=True):
            if word == b"dead" and end.call is not None:
                aside.append((end.call, str(end.details["reason"])))
            elif word == b"gone" and end.verdict == "done" and end.call is not None:
                aside.append((end.call, ""))
            elif word == b"first" and end.call is not None:
                logger.warning("%s[%s] waits for another worker: %s", *map(end.details.get, ("task", "id", "reason")))
        return aside

    def set_aside(self, call: Held, reason: str) -> None:
        """Say of a call that it was set aside, soon. Any thread may ask."""
        self._aside.append((call, reason))
        self._wake.set()

    def _tell_of(self, call: Held, reason: str) -> None:
        if not reason:
            self._take_back(call)
            return
        logger.error("%s[%s] from %s was set aside: %s. See `core dead list`",
                     _readable(call.headers.get("task")), _readable(call.headers.get("id")), call.queue,
                     _readable(reason))  # fmt: skip
        try:
            self._tell(call, reason)
        except Exception:
            logger.exception("who waits for %s could not be told", _readable(call.headers.get("id")))
        if call.headers.get("id"):
            self._take_back(call)  # a worker that was only away may have ended it just before

    def _take_back(self, call: Held) -> None:
        """A call that was taken for lost has come to its end here after all: a success is not to be retried."""
        try:
            if self._app.backend.get_task_meta(call.headers["id"])["status"] == "SUCCESS":
                DeadList(self.client, self.prefix).purge(ids=[call.headers["id"]])
        except Exception as error:
            logger.warning("whether %s is on the dead list is not known: %s", _readable(call.headers["id"]), error)


def _readable(text: Any) -> Any:
    """Text that Redis can read as JSON: half a character, as in the name of a file, it cannot."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else None


class _Process:
    holder: Holder | None = None


_process = _Process()
os.register_at_fork(after_in_child=lambda: setattr(_process, "holder", None))


def current() -> Holder | None:
    """What this process holds; None where it takes no calls, as in a pool's child."""
    return _process.holder


def hold(holder: Holder) -> None:
    """Make *holder* this process's own."""
    _process.holder = holder
