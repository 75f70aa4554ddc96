"""Signed messages: what a worker runs was sent by somebody who has a key, and has not been changed since.

Whoever can write to Redis can queue calls. With `task_signing_keys` set, workers run those alone that carry an HMAC
(SHA-256) of everything that they act on.
"""

import hmac
import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from core import config

#: The header with the signature.
SIGNATURE = "core-signature"
#: The properties that a signature covers beside headers and body.
COVERED = ("content_type", "content_encoding", "routing_key", "correlation_id", "reply_to")
#: What a signature begins with: how it was made.
_METHOD = "sha256:"


def is_on() -> bool:
    """Whether this process signs what it sends."""
    return bool(config.get_settings().task_signing_keys)


def signature(headers: Mapping[str, Any], body: bytes, properties: Mapping[str, Any]) -> str:
    """The signature of a message that is about to be sent, by the first of the keys.

    Args:
        headers: Its headers; a signature among them does not count.
        body: Its body before that is encoded for the way.
        properties: What else there is of it; `COVERED` of that counts.
    """
    return _made(_keys()[0], _text(_plain(headers), body, properties))


def of_message(message: Mapping[str, Any]) -> str:
    """The signature of a message as it is in Redis, by the first of the keys."""
    return _made(_keys()[0], _text_of(message))


def is_signed(message: Mapping[str, Any]) -> bool | None:
    """Whether one of the keys has signed a message as it is in Redis now; None where that is not asked for.

    Args:
        message: As kombu has it, with `body`, `headers` and `properties` of their types.
    """
    settings, signed = config.get_settings(), message["headers"].get(SIGNATURE)
    if not settings.task_signing_keys or (signed is None and settings.task_accept_unsigned):
        return None
    if not isinstance(signed, str):
        return False
    try:
        text = _text_of(message)
    except ValueError:  # a body that is no base64
        return False
    return any(hmac.compare_digest(signed.encode(), _made(key, text).encode()) for key in _keys())


def _keys() -> list[bytes]:
    return [key.get_secret_value().encode() for key in config.get_settings().task_signing_keys]


def _made(key: bytes, text: bytes) -> str:
    return _METHOD + hmac.digest(key, text, "sha256").hex()


def _text_of(message: Mapping[str, Any]) -> bytes:
    properties, body = message["properties"], message["body"].encode()
    if properties.get("body_encoding") == "base64":
        body = b64decode(body)
    more = {
        "content_type": message.get("content-type"),
        "content_encoding": message.get("content-encoding"),
        "routing_key": properties["delivery_info"].get("routing_key"),
    }
    return _text(message["headers"], body, {**properties, **more})


def _text(headers: Mapping[str, Any], body: bytes, properties: Mapping[str, Any]) -> bytes:
    counted = {name: value for name, value in headers.items() if name != SIGNATURE}
    try:
        text = json.dumps([counted, *(properties.get(name) or "" for name in COVERED)], sort_keys=True)
    except TypeError:  # kombu has made dates and ids of some
        return _text(_plain(headers), body, properties)
    return text.encode() + b"\0" + body


def _plain(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers as they are on the way."""
    from kombu.utils.json import dumps

    plain: dict[str, Any] = json.loads(dumps(headers))  # type: ignore[no-untyped-call]
    return plain
