"""What a message has to be before a worker acts on it. Pure."""

import json
import time
from datetime import datetime
from typing import Any

from pydantic_core import from_json

#: Seconds. A countdown of more than a century is a mistake.
FARTHEST = 100 * 365.25 * 86400
#: The types that a limit has in JSON.
NUMBERS = {type(None), int, float}


class Unreadable(ValueError):
    """A message that no worker can make a call of; the text says why."""


def read(raw: bytes) -> dict[str, Any]:
    """A message as kombu wants it.

    Raises:
        Unreadable: It is not one.
    """
    from kombu.utils.json import loads

    try:
        # kombu's decoder is a Python call for every object, and only values that it made need it.
        payload = loads(raw) if b'"__type__"' in raw else parsed(raw)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise Unreadable(f"the message is not JSON ({_said(error)})") from None
    if not isinstance(payload, dict):
        raise Unreadable("the message is not an object")
    for name, kind in (("headers", dict), ("properties", dict), ("body", str)):
        if not isinstance(payload.get(name), kind):
            raise Unreadable(f"the message's {name} is not {'an object' if kind is dict else 'text'}")
    if not isinstance(payload["properties"].get("delivery_info"), dict):
        raise Unreadable("the message does not say where it was sent (delivery_info)")
    if "task" in payload["headers"]:  # else a message of Celery's first protocol, with everything in its body
        _check_headers(payload["headers"])
    return payload


def parsed(text: bytes) -> Any:
    """What the standard library makes of JSON, in less time. It also reads what the faster decoder will not.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


def _check_headers(headers: dict[str, Any]) -> None:
    for name in ("task", "id"):
        if not isinstance(headers.get(name), str) or not headers[name]:
            raise Unreadable(f"the header {name!r} is not a name")
    limits = headers.get("timelimit")
    if limits is not None and not (isinstance(limits, list) and len(limits) == 2 and set(map(type, limits)) <= NUMBERS):
        raise Unreadable("the header 'timelimit' is not two numbers")
    if not isinstance(headers.get("retries") or 0, int):
        raise Unreadable("the header 'retries' is not a number")
    for name in ("eta", "expires"):
        if headers.get(name) is not None:
            _check_time(name, headers[name])


def _check_time(name: str, value: Any) -> None:
    try:
        seconds = datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise Unreadable(f"the header {name!r} is not a time") from None
    if seconds > time.time() + FARTHEST:
        raise Unreadable(f"the header {name!r} is more than a century away")


def is_past(eta: Any) -> bool:
    """Whether a message's eta names a moment that has passed. Without a time zone it is the worker's to judge."""
    try:
        moment = datetime.fromisoformat(eta)
    except (TypeError, ValueError):
        return False
    return moment.tzinfo is not None and moment.timestamp() <= time.time()


def names(raw: bytes) -> dict[str, Any]:
    """The headers of a message as far as they can be read: the dead list shows its id and task."""
    try:
        headers = json.loads(raw)["headers"]
        return {name: value for name, value in headers.items() if isinstance(value, str) and value}
    except Exception:
        return {}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
