"""A call in Celery's consumer, which says how it ended and needs no other thread to do so."""

from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.app.task import Context
from celery.exceptions import Ignore, InvalidTaskError, Reject, Retry, Terminated, WorkerLostError
from celery.worker import request, state

from core.tasks import runner
from core.tasks.transport import callbacks, held

#: What a request has under the names of Celery's own; the rest are the message's own headers.
CELERYS = frozenset({*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"})


def is_watched(events: Any) -> bool:
    """Whether somebody wants to see what becomes of calls, as Flower does. A worker's own events go on without."""
    return bool(events and events.enabled and not (events.groups and "task" not in events.groups))


class Request(request.Request):  # type: ignore[misc]
    """Celery's request, for calls that a holder holds."""

    acknowledged: bool
    time_limits: Any
    _app: Any
    _body: Any
    _eventer: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        headers, payload = self._request_dict, self._body if self._decoded else self._message.payload
        given, named, embedded = payload
        if eta := headers.pop("core-eta", None):
            headers["eta"] = eta
        if not isinstance(given, list | tuple) or not isinstance(named, dict):
            raise InvalidTaskError("the arguments are not a list and an object")
        if not (embedded is None or isinstance(embedded, dict)):
            raise InvalidTaskError("what goes with the arguments (callbacks, chord) is not an object")
        if body := getattr(self._task, "body", None):
            hard, soft = self.time_limits
            if body.limit and hard and hard > self._task.time_limit:
                self.time_limits = self._task.time_limit, soft  # whoever sent it has no say in how long it may take
            if body.arguments.sensitive:
                self._hide(body)
        # Read already: the tracer need not do it again.
        self._body, self._content_type = payload, None
        # Celery would look for these once more, by way of each name that it has itself.
        every = {**headers, **(embedded or {})}
        headers.setdefault("headers", {name: every[name] for name in every.keys() - CELERYS})
        follows = embedded and any(map(embedded.get, callbacks.KEYS))
        if follows and not self._is_signed() and (name := callbacks.unknown(embedded, self.app)):
            raise callbacks.Unknown(f"a call of {name} is to follow it, which is no task of this project "
                                    "(task_foreign_callbacks)")  # fmt: skip

    def _hide(self, body: Any) -> None:
        """Whoever sent it may have shown what is sensitive. Events and logs of this worker do not."""
        texts = self._app.amqp.shown(body.arguments, self.args, self.kwargs)
        self._request_dict |= texts
        self._argsrepr, self._kwargsrepr = texts["argsrepr"], texts["kwargsrepr"]

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What this worker says of the call to whoever inspects it."""
        body = getattr(self.task, "body", None)
        told: dict[str, Any] = super().info(safe=safe or bool(body and body.arguments.sensitive))
        return told

    def _is_signed(self) -> bool:
        holder = held.current()
        call = holder.calls.get(self.tag) if holder else None
        return bool(call and call.signed)

    @property
    def tag(self) -> str:
        """The name of this delivery."""
        return str(self._message.delivery_tag)

    def send_event(self, type: str, **fields: Any) -> None:
        """Tell whoever watches."""
        if is_watched(self._eventer):
            super().send_event(type, **fields)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A process or thread of the pool has begun."""
        if holder := held.current():
            holder.begin(self.tag)
        super().on_accepted(pid, time_accepted)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Stop the call. Where its pool has no processes, its body is asked to end."""
        if hasattr(self.task, "is_coroutine") and not pool.uses_semaphore:
            state.revoked.add(self.id)  # a body that has not begun looks there
            runner.cancel(self.id)
        else:
            super().terminate(pool, signal)

    def acknowledge(self) -> None:
        """Say that the call is done, in this thread."""
        if not self.acknowledged:
            self._message.ack()
            self.acknowledged = True

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The attempt ended with an error, or its process was lost."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt):
            self._ends("lost", held.LOST)
        elif isinstance(error, Retry) and (holder := held.current()) and (call := holder.calls.get(self.tag)):
            call.goes_on = True
        elif not isinstance(error, Ignore | Reject | Retry | Terminated):
            self._ends("failed", f"failed: {type(error).__name__}: {error}")
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def on_retry(self, exc_info: Any) -> None:
        """The attempt ended, and another one follows."""
        if isinstance(exc_info.exception, ExceptionWithTraceback):
            # Pickling unwraps it; Celery reckons with that alone, and would tell of the Retry, not of the error.
            exc_info.exception = exc_info.exception.exc
        super().on_retry(exc_info)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """The attempt has run for too long."""
        if not soft:
            self._ends("failed", f"failed: it was ended after {timeout:g} s, its timeout and the grace")
        super().on_timeout(soft, timeout)

    def _ends(self, verdict: str, reason: str) -> None:
        if holder := held.current():
            holder.ends(self.tag, verdict, reason)
