"""A signature covers a message as it is on its way, whatever kombu makes of it at either end."""

import json
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from kombu.utils.json import dumps, loads

from core.config import Settings, configure
from core.tasks import signing

KEY, OTHER = "k" * 32, "o" * 32


def keys(*some: str, accept: bool = False) -> None:
    class Signed(Settings):
        task_signing_keys: Any = some
        task_accept_unsigned: bool = accept
        redis_url: Any = "redis://127.0.0.1:1"

    configure(Signed)


def sent(headers: dict[str, Any], body: str = "[[], {}, {}]", **properties: Any) -> bytes:
    """A message as kombu pushes it, signed with the first key."""
    given = {"content_type": "application/json", "content_encoding": "utf-8", "routing_key": "q", **properties}
    headers = {**headers, signing.SIGNATURE: signing.signature(headers, body.encode(), given)}
    properties = {"body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": "q"}, **properties}
    message = {
        "body": b64encode(body.encode()).decode(), "headers": headers, "properties": properties,
        "content-type": "application/json", "content-encoding": "utf-8",
    }  # fmt: skip
    return str(dumps(message)).encode()


@pytest.mark.parametrize(
    ("headers", "readers"),
    [
        ({"id": "1", "task": "a", "timelimit": [300.0, None], "stamps": {}}, [json.loads, loads]),
        ({"stamps": {10: "x", 9: "y"}, "list": (1, 2), "id": "ü\u2028\ud800", "n": 1e22}, [json.loads, loads]),
        ({"eta": datetime(2030, 1, 1, tzinfo=UTC), "key": UUID(int=1)}, [loads]),
    ],
)
def test_what_is_sent_is_signed_where_it_is_read(
    headers: dict[str, Any], readers: list[Callable[[bytes], Any]]
) -> None:
    keys(KEY)
    raw = sent(headers, correlation_id="1")

    for read in readers:
        keys(KEY)
        message = read(raw)
        assert signing.is_signed(message)
        assert signing.of_message(message) == message["headers"][signing.SIGNATURE]
        keys(OTHER)
        assert signing.is_signed(message) is False
        keys(OTHER, KEY)
        assert signing.is_signed(message)


def test_without_keys_nothing_is_asked_for() -> None:
    keys(KEY)
    signed, unsigned = json.loads(sent({"id": "1"})), json.loads(sent({"id": "1"}))
    del unsigned["headers"][signing.SIGNATURE]

    assert (signing.is_on(), signing.is_signed(signed), signing.is_signed(unsigned)) == (True, True, False)
    keys(KEY, accept=True)
    assert (signing.is_signed(signed), signing.is_signed(unsigned)) == (True, None)
    keys()
    assert (signing.is_on(), signing.is_signed(signed), signing.is_signed(unsigned)) == (False, None, None)
