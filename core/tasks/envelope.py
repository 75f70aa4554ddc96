"""The message of a call: Celery makes it once for a task and its options, and each call fills in what is its own."""

import json
import os
import time
from base64 import b64encode
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

from core.tasks import celery_app, celery_config, correlation, signing
from core.tasks.context import CurrentTask

#: The header that names a call's lock.
UNIQUE = "core-unique"

#: Stands in a template for what each call fills in; JSON writes the zero so that no text of Celery's looks like it.
_MARK = "\0{}\0"
_HEADERS = {"id": "id", "root_id": "root", "parent_id": "parent", "eta": "eta", "expires": "expires",
            "argsrepr": "args", "kwargsrepr": "kwargs"}  # fmt: skip
_PROPERTIES = {"correlation_id": "id", "delivery_tag": "tag", "expiration": "expiration", "timestamp": "sent"}


@dataclass(frozen=True, slots=True)
class Call:
    """One call, complete: checked, encoded, and with an id before anything is sent."""

    task: celery_app.Declared
    id: str
    args: list[Any]
    kwargs: dict[str, Any]
    #: Celery's options for this call: countdown, eta, expires, queue, priority.
    options: dict[str, Any]
    #: The task that made it, if one did.
    caller: CurrentTask | None = None
    #: A key of Redis: where it exists, the call was sent before, and is not sent again.
    once: str = ""
    #: The lock that it takes where it is to be the only one of its kind, and the seconds after which that ends.
    lock: str = ""
    lock_seconds: int = 0
    #: What travels with it, as it was where the call was made.
    context: dict[str, str] = field(default_factory=correlation.values)

    def lineage(self) -> dict[str, str]:
        """What Celery is told of where the call comes from."""
        return {"parent_id": self.caller.id, "root_id": self.caller.root_id} if self.caller else {}


class Message(NamedTuple):
    """What is sent of one call."""

    #: The list that it is pushed to.
    queue: str
    text: str
    #: The key of its result, and what is stored there until a worker knows better; empty for none.
    result: str
    pending: str
    #: As of its call; *holder* is what the lock says of it: its id, and when it expires.
    once: str = ""
    lock: str = ""
    holder: str = ""
    lock_seconds: int = 0


class Envelope:
    """The message of every call of one task that has these options."""

    def __init__(self, celery_task: Any, queue: str, message: dict[str, Any]) -> None:
        app = celery_task.app
        self._app, self._queue = app, queue
        self._limits = app.amqp.argsrepr_maxsize, app.amqp.kwargsrepr_maxsize, app.conf.task_repr_maxlevels
        self._embed = json.dumps(json.loads(_decoded(message))[2])
        headers, properties = dict(message["headers"]), dict(message["properties"])
        for words, marks in ((headers, _HEADERS), (properties, _PROPERTIES)):
            words |= {name: _MARK.format(mark) for name, mark in marks.items() if name in words}
        text = json.dumps({**message, "body": _MARK.format("body"), "headers": headers, "properties": properties})
        text = text.replace("%", "%%")
        for mark in {"body", *_HEADERS.values(), *_PROPERTIES.values()}:
            text = text.replace(json.dumps(_MARK.format(mark)), f"%({mark})s")
        self._text = text
        self._shown = celery_task.body.arguments.shown
        self._is_signed = signing.is_on()
        kept = celery_config.is_one_database(app.conf) and app.backend.expires and not celery_task.ignore_result
        self._prefix = str(app.conf.broker_transport_options.get("global_keyprefix", ""))
        self._result = _text(app.backend.get_key_for_task("id")).removesuffix("id") if kept else ""

    def message(self, call: Call) -> Message:
        """The message of one call."""
        return self._message(call, self._fill(call, b64encode(self._body(call).encode()).decode()))

    def announced(self, call: Call, before: Any) -> tuple[Message, Callable[[Any], None]]:
        """The message of one call as the receivers of a signal want it, and what sends them another one.

        Args:
            before: Celery's `before_task_publish`.
        """
        from kombu.utils.json import dumps

        whole = json.loads(self._fill(call, ""))
        told = {
            "sender": call.task.name,
            "body": (call.args, call.kwargs, json.loads(self._embed)),
            "headers": whole["headers"],
            "exchange": "",
            "routing_key": whole["properties"]["delivery_info"]["routing_key"],
        }
        context = copy_context()  # what a receiver enters when a call begins and leaves when it is sent

        def tell(signal: Any, **more: Any) -> None:
            context.run(self._app.amqp.tell, signal, **told, **more)

        tell(before, declare=[], properties=whole["properties"], retry_policy={})
        whole["body"] = b64encode(dumps(told["body"]).encode()).decode()  # type: ignore[no-untyped-call]
        return self._message(call, dumps(whole)), tell  # type: ignore[no-untyped-call]

    def _message(self, call: Call, text: str) -> Message:
        pending = _PENDING % json.dumps(call.id) if self._result else ""
        result = self._result and self._result + call.id
        once = call.once and self._prefix + call.once
        if call.lock:
            text = _with_header(text, UNIQUE, call.lock)
        if self._is_signed:
            text = _with_header(text, signing.SIGNATURE, signing.of_message(json.loads(text)))
        if not call.lock:
            return Message(self._queue, text, result, pending, once)
        lock = self._prefix + call.lock
        return Message(self._queue, text, result, pending, once, lock, holder(call), call.lock_seconds)

    def _body(self, call: Call) -> str:
        return f"{json.dumps([call.args, call.kwargs])[:-1]}, {self._embed}]"

    def _fill(self, call: Call, body: str) -> str:
        call_id, caller = json.dumps(call.id), call.caller
        args, kwargs = self._shown(call.args, call.kwargs)
        eta, expires, expiration = self._times(call.options) if call.options else ("null", "null", "")
        most_args, most_kwargs, levels = self._limits
        text = self._text % {
            "body": f'"{body}"',
            "id": call_id,
            "root": json.dumps(caller.root_id) if caller else call_id,
            "parent": json.dumps(caller.id) if caller else "null",
            "eta": eta,
            "expires": expires,
            "expiration": expiration,
            "args": json.dumps(as_text(args, most_args, levels)) if call.args else '"()"',
            "kwargs": json.dumps(as_text(kwargs, most_kwargs, levels)),
            "tag": f'"{new_id()}"',
            "sent": int(time.time()),
        }
        return _with_header(text, correlation.HEADER, call.context) if call.context else text

    def _times(self, options: dict[str, Any]) -> tuple[str, str, str]:
        """The headers `eta` and `expires`, and the property `expiration`, as Celery counts them."""
        from celery.utils.time import add_seconds_to_datetime

        now, eta, expires = self._app.now(), options.get("eta"), options.get("expires")
        if options.get("countdown"):
            eta = add_seconds_to_datetime(now, options["countdown"])
        left: float = 0
        if isinstance(expires, datetime):
            left = max((expires - now).total_seconds(), 0)
        elif expires is not None:
            left, expires = expires, add_seconds_to_datetime(now, expires)
        return _time(eta), _time(expires), f'"{int(left * 1000)}"'


def _with_header(text: str, name: str, value: Any) -> str:
    return text.replace('"headers": {', f'"headers": {{"{name}": {json.dumps(value)}, ', 1)


def holder(call: Call) -> str:
    """What a lock says of the call that has it: its id, and when it expires as a Unix time."""
    expires = call.options.get("expires")
    until = expires.timestamp() if isinstance(expires, datetime) else expires and time.time() + expires
    return f"{call.id}\n{until or ''}"


def envelope(celery_task: Any, call: Call) -> Envelope | None:
    """Have Celery make the message of a call, and make of it that of every such call.

    None when a call of this task does more than push one message to one list, or its message is not what ours would
    be: such a call goes through `apply_async`.
    """
    options = {name: value for name, value in call.options.items() if name in ("queue", "priority")}
    if "expires" in call.options:
        options["expires"] = 1
    recorded = celery_task.app.amqp.recorded(
        celery_task, call.args, call.kwargs, task_id=call.id, **call.lineage(), **options
    )
    if recorded is None:
        return None
    queue, message = recorded
    try:
        made = Envelope(celery_task, queue, message)
        filled = json.loads(made.message(replace(call, options=options, lock="", context={})).text)
        filled["headers"].pop(signing.SIGNATURE, None)
        varies = ("headers", "expires"), *(("properties", name) for name in ("expiration", "delivery_tag", "timestamp"))
        for words, name in varies:
            if name in message[words]:  # a moment, or random: different in any two messages
                filled[words][name] = message[words][name]
    except (KeyError, ValueError, TypeError, IndexError):
        return None  # another protocol or serializer
    return made if filled == json.loads(json.dumps(message)) else None


#: As Celery stores a result; Celery itself stores nothing before a worker has the call.
_PENDING = '{"status": "PENDING", "result": null, "traceback": null, "children": [], "date_done": null, "task_id": %s}'


def as_text(values: list[Any] | dict[str, Any], most: int | None, levels: int | None) -> str:
    """Arguments as text for people: what Celery's `saferepr` makes of them, and faster where they are plain."""
    if isinstance(values, dict):
        words = [f"{_plain(name)}: {_plain(value)}" for name, value in values.items()]
        text = "{" + ", ".join(words) + "}"
    else:
        text = "[" + ", ".join(map(_plain, values)) + "]"
    if most is not None and len(text) < most - 2 and "\0" not in text:
        return text
    from celery.utils.saferepr import saferepr

    limits: Any = {"maxlen": most, "maxlevels": levels}
    return str(saferepr(values, **limits))


def _plain(value: Any) -> str:
    kind = type(value)
    if kind is str:
        quoted: str = value.replace("'", "\\'")
        return f"'{quoted}'"
    return str(value) if kind in _PLAIN else "\0"


_PLAIN = frozenset({int, float, bool, type(None)})


def new_id() -> str:
    """A random id as `uuid.uuid4` makes it, in a third of its time."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _time(moment: datetime | None) -> str:
    return "null" if moment is None else f'"{moment.isoformat()}"'


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _decoded(message: dict[str, Any]) -> bytes:
    from base64 import b64decode

    return b64decode(message["body"])
