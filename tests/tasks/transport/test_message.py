"""What a message has to be before a worker acts on it."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.tasks.transport.message import FARTHEST, Unreadable, is_past, names, read

#: The prefix of the keys does not matter here.
once = pytest.mark.parametrize("prefix", [""], indirect=True)


def soon(**after: float) -> str:
    return (datetime.now(UTC) + timedelta(**after)).isoformat()


def short(value: object) -> str:
    """A name for a test of long or odd bytes."""
    return repr(value)[:30]


@pytest.fixture
def sent(send: Any) -> bytes:
    """A call as Celery sends it."""
    return bytes(send("a"))


@pytest.fixture
def altered(sent: bytes) -> Any:
    """A call in which somebody has changed something: parts of the message, or headers."""

    def made(part: str, value: Any) -> bytes:
        message = json.loads(sent)
        where = message if part in message else message["properties"] if part == "delivery_info" else message["headers"]
        where[part] = value
        return json.dumps(message).encode()

    return made


# Messages that are calls


@once
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"countdown": 30},
        {"eta": datetime(2020, 1, 1)},
        {"expires": 60},
        {"time_limit": 10, "soft_time_limit": 5.5},
        {"args": ("é\0", [1, {"a": None}], 1.5, float("nan"))},
        {"priority": 3},
        {"headers": {"x": {"y": [1]}}, "shadow": "another"},
        {"retries": 2},
        {"args": (datetime(2020, 1, 1),)},
        {"headers": {"at": datetime(2020, 1, 1, tzinfo=UTC)}},
    ],
)
def test_what_celery_sends_is_read_as_kombu_reads_it(send: Any, options: dict[str, Any]) -> None:
    from kombu.utils.json import loads

    raw = send("a", **options)

    assert read(raw) == loads(raw.decode())


@once
def test_a_message_of_celerys_first_protocol_is_read(altered: Any) -> None:
    """Everything is in its body there."""
    assert read(altered("headers", {}))["headers"] == {}


@once
def test_header_that_do_without_may_be_missing(sent: bytes) -> None:
    message = json.loads(sent)
    message["headers"] = {"task": "t", "id": "a"}

    assert read(json.dumps(message).encode())["headers"] == {"task": "t", "id": "a"}


@once
@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("timelimit", None),
        ("timelimit", [None, None]),
        ("timelimit", [5, 1.5]),
        ("retries", None),
        ("retries", 3),
        ("eta", "2080-01-01T00:00:00Z"),
        ("eta", "2080-01-01T00:00:00"),
        ("eta", "2120-01-01T00:00:00Z"),
        ("expires", "1999-01-01T00:00:00+05:30"),
        ("argsrepr", 5),
        ("unheard of", {"a": [1]}),
    ],
)
def test_headers_that_a_worker_can_use_are_left_as_they_are(altered: Any, header: str, value: Any) -> None:
    assert read(altered(header, value))["headers"][header] == value


# Messages that are none


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not JSON"),
        (b"garbage", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (bytes(range(256)), "not JSON"),
        (b'{"headers": ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"__type__": "datetime", "__value__": "zz"}', "not JSON"),
        (b"null", "not an object"),
        (b"123", "not an object"),
        (b"[]", "not an object"),
        (b'"text"', "not an object"),
        (b"{}", "headers is not an object"),
        (b'{"headers": {}}', "properties is not an object"),
        (b'{"headers": {}, "properties": {}}', "body is not text"),
        (b'{"headers": {}, "properties": {}, "body": ""}', "delivery_info"),
    ],
    ids=short,
)
def test_bytes_that_are_no_message_are_refused_with_the_reason(raw: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said) as caught:
        read(raw)

    assert len(str(caught.value)) < 300


@once
@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("headers", None, "headers is not an object"),
        ("headers", [], "headers is not an object"),
        ("properties", "x", "properties is not an object"),
        ("body", None, "body is not text"),
        ("body", {"a": 1}, "body is not text"),
        ("delivery_info", None, "delivery_info"),
        ("delivery_info", "x", "delivery_info"),
        ("task", None, "'task' is not a name"),
        ("task", ["t"], "'task' is not a name"),
        ("task", "", "'task' is not a name"),
        ("id", None, "'id' is not a name"),
        ("id", {"a": 1}, "'id' is not a name"),
        ("id", 5, "'id' is not a name"),
        ("id", "", "'id' is not a name"),
        ("timelimit", "ab", "'timelimit' is not two numbers"),
        ("timelimit", 5, "'timelimit' is not two numbers"),
        ("timelimit", [1], "'timelimit' is not two numbers"),
        ("timelimit", [1, 2, 3], "'timelimit' is not two numbers"),
        ("timelimit", ["1", None], "'timelimit' is not two numbers"),
        ("timelimit", {}, "'timelimit' is not two numbers"),
        ("retries", "x", "'retries' is not a number"),
        ("retries", [1], "'retries' is not a number"),
        ("retries", 1.5, "'retries' is not a number"),
        ("eta", "zz", "'eta' is not a time"),
        ("eta", 5, "'eta' is not a time"),
        ("eta", "", "'eta' is not a time"),
        ("eta", [], "'eta' is not a time"),
        ("eta", "2080-13-01T00:00:00Z", "'eta' is not a time"),
        ("eta", "0001-01-01T00:00:00", "'eta' is not a time"),
        ("eta", "9999-12-31T23:59:59", "'eta' is (more than a century away|not a time)"),
        ("eta", "9999-12-31T23:59:59Z", "'eta' is more than a century away"),
        ("eta", "2200-01-01T00:00:00+05:30", "'eta' is more than a century away"),
        ("expires", "zz", "'expires' is not a time"),
        ("expires", 5, "'expires' is not a time"),
        ("expires", "9999-01-01T00:00:00Z", "'expires' is more than a century away"),
    ],
)
def test_a_call_that_cannot_be_one_is_refused_with_the_reason(altered: Any, part: str, value: Any, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        read(altered(part, value))


@once
def test_a_type_that_nobody_knows_is_refused(sent: bytes) -> None:
    odd = sent.replace(b'"shadow": null', b'"shadow": {"__type__": "datetime", "__value__": "zz"}')

    with pytest.raises(Unreadable, match="not JSON"):
        read(odd)


@once
@pytest.mark.parametrize("header", ["eta", "expires", "task", "id", "retries", "timelimit"])
@pytest.mark.parametrize("value", [b"1e999", b"-1e999", b"NaN", b"9" * 400, b"true", b'"\\ud800"', b"{}", b"[[]]"])
def test_nothing_else_than_unreadable_is_raised(sent: bytes, header: str, value: bytes) -> None:
    message = json.loads(sent)
    message["headers"][header] = "@"
    raw = json.dumps(message).encode().replace(b'"@"', value)

    try:
        found = read(raw)
    except Unreadable:
        return
    assert found["headers"].keys() == message["headers"].keys()


# What a message says of its time


@pytest.mark.parametrize(
    ("eta", "past"),
    [
        ("1999-01-01T00:00:00Z", True),
        ("1999-01-01T00:00:00+00:00", True),
        ("2080-01-01T00:00:00Z", False),
        ("1999-01-01T00:00:00", False),  # whose time zone this is, Celery judges
        (None, False),
        ("", False),
        ("zz", False),
        (5, False),
        ([], False),
    ],
)
def test_whether_an_eta_has_passed(eta: Any, past: bool) -> None:
    assert is_past(eta) is past


def test_an_offset_counts() -> None:
    here = datetime.now(UTC).replace(tzinfo=None)

    assert is_past(f"{(here + timedelta(hours=5, minutes=29)).isoformat()}+05:30")
    assert not is_past(f"{(here + timedelta(hours=5, minutes=31)).isoformat()}+05:30")


def test_a_moment_passes() -> None:
    assert is_past(soon(seconds=-1))
    assert not is_past(soon(seconds=60))


@once
def test_a_century_is_the_farthest(altered: Any) -> None:
    assert timedelta(seconds=FARTHEST) == timedelta(days=36_525)

    read(altered("eta", soon(days=36_524)))
    with pytest.raises(Unreadable, match="century"):
        read(altered("eta", soon(days=36_526)))


# What a message calls itself


@once
def test_the_names_of_a_call(sent: bytes) -> None:
    found = names(sent)

    assert (found["id"], found["task"], found["lang"]) == ("a", "t.work", "py")
    assert "retries" not in found


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"", {}),
        (b"garbage", {}),
        (bytes(range(256)), {}),
        (b"[" * 100_000, {}),
        (b"null", {}),
        (b"[]", {}),
        (b"{}", {}),
        (b'{"headers": null}', {}),
        (b'{"headers": [1]}', {}),
        (b'{"headers": {"id": "a", "task": 5, "root_id": "", "x": {}}}', {"id": "a"}),
        (b'{"headers": {"id": {"a": 1}, "task": "t"}}', {"task": "t"}),
    ],
    ids=short,
)
def test_names_are_read_as_far_as_they_can_be(raw: bytes, found: dict[str, str]) -> None:
    assert names(raw) == found
