"""Celery's Redis result backend, with one outcome for each call.

The keys and messages are Celery's own. A final state stays, whoever else comes with another one; a worker's result
leaves together with the acknowledgement of its call; and who waits for a result subscribes when it waits.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend
from celery.backends.redis import SentinelBackend as Watched
from redis.exceptions import RedisError

from core.tasks import bridge, celery_config, progress, runner
from core.tasks.stand_in import stand_in
from core.tasks.transport import held
from core.tasks.transport.scripts import passes, script
from core.tasks.transport.speak import STARTED_AFTER

LONGEST_PAUSE = 2.0
#: States that end an attempt: they leave together with the acknowledgement of their message.
ENDS = states.READY_STATES | {states.RETRY}


#: As `json.dumps`, which makes one for each call where it is given any option.
_json = json.JSONEncoder()


class Backend(RedisBackend):  # type: ignore[misc]
    """Where results are stored."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing. Whoever waits for a result subscribes then.

        Celery subscribes here on every call and reads nothing: two blocking commands a call, and a
        server buffer that grows for as long as the sending process lives.
        """

    def put(self, key: str, ttl: int, text: Any, tag: str = "") -> None:
        """Store a result, unless a final state stays.

        Args:
            ttl: Seconds to keep it; 0 is for ever.
            tag: The delivery that it is the result of; empty counts as one that is still held.
        """
        worker, _, record = tag.rpartition("/")
        keys = [key]
        if worker and celery_config.is_one_database(self.app.conf):
            keys.append(f"{self.app.conf.broker_transport_options.get('global_keyprefix', '')}core-held-{worker}")
        script(self.client, "result")(keys=keys, args=[ttl, text, record])

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> None:
        """Store a state and its result; a final one leaves together with the acknowledgement of its call."""
        tag = str((getattr(request, "properties", None) or {}).get("delivery_tag") or "")
        if "/" not in tag:  # not taken by a worker of ours
            bridge.aside(super().store_result, task_id, result, state, traceback, request, **options)
            return

        def entry() -> tuple[str, int, Any]:
            meta = self._get_result_meta(self.encode_result(result, state), state, traceback, request)
            meta["task_id"] = _text(task_id)
            ttl = int((self.failure_expires if state == states.FAILURE else self.expires) or 0)
            return self._keys + _text(task_id), ttl, self.encode(meta)

        if state == progress.STATE:  # at once: while Redis is away, what is only news must not pile up
            self.put(*entry(), tag)
            return
        holder = held.current()
        starts = holder.speaker.starts if holder and holder.speaker and holder.speaker.is_here() else _starts()
        if state == states.STARTED:
            starts.add(tag, lambda: holder.write(entry()) if holder else self.put(*entry(), tag))
            return
        starts.drop(tag)
        stored = entry()
        if holder and (request.chord or request.errbacks) and state in states.READY_STATES:
            bridge.aside(self._put_patiently, stored, tag)  # what follows reads it, before the acknowledgement
        elif holder and state in ENDS and holder.keep_result(tag, stored):
            return
        elif holder:
            holder.write(stored)
        else:
            self._put_patiently(stored, tag)

    def encode(self, data: Any) -> Any:
        """What is stored, as text."""
        if self.serializer == "json" and not self.compression:
            try:
                return _json.encode(data)
            except (TypeError, ValueError):  # kombu's encoder is needed for values that it knows alone
                pass
        return super().encode(data)

    # What Celery makes anew for each result, or looks for in its configuration.

    @cached_property
    def _keys(self) -> str:
        """What the keys of results begin with."""
        return _text(self.get_key_for_task("-")).removesuffix("-")

    @cached_property
    def _tasks(self) -> Any:
        return self.app.tasks

    @cached_property
    def _extended(self) -> bool:
        return bool(self.app.conf.find_value_for_key("extended", "result"))

    @cached_property
    def _zone(self) -> Any:
        return self.app.timezone

    def _get_result_meta(
        self, result: Any, state: str, traceback: Any, request: Any, format_date: bool = True, encode: bool = False
    ) -> Any:
        if encode or not format_date or not request or getattr(request, "stamps", None):
            meta = super()._get_result_meta(result, state, traceback, request, format_date, encode)
            return meta | self._arguments(request) if "args" in meta else meta
        meta = {
            "status": state,
            "result": result,
            "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": datetime.now(self._zone).isoformat() if state in states.READY_STATES else None,
        }
        if request.group:
            meta["group_id"] = request.group
        if request.parent_id:
            meta["parent_id"] = request.parent_id
        if self._extended:
            meta |= {
                "name": request.task,
                **self._arguments(request),
                "worker": request.hostname,
                "retries": request.retries,
                "queue": request.delivery_info.get("routing_key") if request.delivery_info else None,
            }
        return meta

    def _arguments(self, request: Any) -> dict[str, Any]:
        body = getattr(self._tasks.get(request.task), "body", None)
        if body is None or not body.arguments.sensitive:
            return {"args": request.args, "kwargs": request.kwargs}
        args, kwargs = body.arguments.shown(request.args or (), request.kwargs or {})
        return {"args": args, "kwargs": kwargs}

    def apply_chord(self, header_result_args: Any, body: Any, **options: Any) -> Any:
        """Begin a chord: Celery subscribes to its results before it sends a call."""
        if (instead := stand_in()) is not None:
            raise instead.refusal(body.task)
        return super().apply_chord(header_result_args, body, **options)

    def on_chord_part_return(self, *args: Any, **options: Any) -> Any:
        """Count a finished call of a chord."""
        return bridge.aside(super().on_chord_part_return, *args, **options)

    def _put_patiently(self, stored: tuple[str, int, Any], tag: str) -> None:
        """Store a result however long Redis is away: the call is not done before."""
        pause = 0.05
        while True:
            try:
                return self.put(*stored, tag)
            except (RedisError, OSError) as error:
                if not passes(error) or runner.putting_back():
                    raise
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)


class SentinelBackend(Backend, Watched):  # type: ignore[misc]
    """The same, for the server that Sentinel names."""


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class _Starts:
    """Calls that have begun a moment ago, and are stored as started if they go on."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, Callable[[], object]]] = {}
        self._lock = threading.Condition()
        self._idle = True
        threading.Thread(target=self._run, name="core-tasks-started", daemon=True).start()

    def add(self, tag: str, write: Callable[[], object]) -> None:
        with self._lock:
            self._begun[tag] = time.monotonic() + STARTED_AFTER, write
            if self._idle:  # else it looks by itself in a moment: waking a thread for every call would cost more
                self._idle = False
                self._lock.notify()

    def drop(self, tag: str) -> None:
        """Forget a call that has ended. If it is just being written, this waits."""
        with self._lock:
            self._begun.pop(tag, None)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._begun:
                    self._idle = True
                    self._lock.wait()
                for tag, (due, write) in list(self._begun.items()):  # by time
                    if due > time.monotonic():
                        break
                    del self._begun[tag]
                    with suppress(RedisError, OSError):  # it is only news
                        write()
                first = next(iter(self._begun.values()), None)
            if first is not None:
                time.sleep(max(first[0] - time.monotonic(), 0.001))


_process: list[_Starts] = []
os.register_at_fork(after_in_child=_process.clear)  # a child inherits the record, but not the thread


def _starts() -> _Starts:
    """This process's own."""
    if not _process:
        _process.append(_Starts())
    return _process[0]
