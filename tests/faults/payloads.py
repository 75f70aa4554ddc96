"""What may lie in a queue and is no ordinary call: the list of row 20, each made from a good message."""

import base64
import json
import pickle
from collections.abc import Iterator
from typing import Any

Envelope = dict[str, Any]

NESTED = "[" * 100_000 + "]" * 100_000


def body(value: Any) -> str:
    """The body of a message, as Celery writes it: JSON in base64."""
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.b64encode(text.encode()).decode()


class Harmful:
    """Unpickling it makes a directory, so that a look at the disk says whether somebody did."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.path,)


def merged(good: Envelope, **changes: Any) -> str:
    """A good message with other values: `headers={"eta": 5}` changes one header, `headers=None` all of them."""
    made = json.loads(json.dumps(good))
    for part, value in changes.items():
        if isinstance(value, dict) and isinstance(made.get(part), dict):
            made[part] = {key: inner for key, inner in {**made[part], **value}.items() if inner is not ABSENT}
        elif value is ABSENT:
            made.pop(part, None)
        else:
            made[part] = value
    return json.dumps(made)


ABSENT = object()
PICKLED = {"content-type": "application/x-python-serialize", "content-encoding": "binary"}


def payloads(good: Envelope, key: str, harmful: str) -> Iterator[tuple[str, str]]:
    """Every payload by its name, made from *good*, a call of faults.mark(*key*)."""
    rest = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

    def of_body(value: Any) -> str:
        return merged(good, body=value)

    # No envelope.
    yield "no JSON", "garbage"
    for name in ("{}", "[]", "123", "null"):
        yield f"just {name}", name
    # An envelope with parts missing.
    yield "no delivery_tag", merged(good, properties={"delivery_tag": ABSENT})
    yield "no properties", merged(good, properties=ABSENT)
    yield "headers null", merged(good, headers=None)
    # Bodies.
    yield "body is no base64", of_body("%%%")
    yield "body is no JSON", of_body(body("{not json"))
    yield "body is an object", of_body(body({"a": 1}))
    yield "body has two parts", of_body(body([1, 2]))
    yield "an unknown __type__", of_body(body([[{"__type__": "nobody", "__value__": 1}], {}, rest]))
    yield "a bad datetime", of_body(body([[{"__type__": "datetime", "__value__": "never"}], {}, rest]))
    yield "kwargs is a number", of_body(body([[key], 5, rest]))
    yield "embed is a number", of_body(body([[key], {}, 5]))
    yield "100,000 brackets", of_body(body(NESTED))
    # Content.
    pickled = base64.b64encode(pickle.dumps([[Harmful(harmful)], {}, rest])).decode()
    yield "a pickle", merged(good, body=pickled, **PICKLED)
    yield "an unknown content type", merged(good, **{"content-type": "application/x-nothing"})
    yield "an unknown compression", merged(good, headers={"compression": "application/x-nothing"})
    # The task.
    yield "an unknown task", merged(good, headers={"task": "faults.nobody"})
    yield "the task is a list", merged(good, headers={"task": ["faults.mark"]})
    yield "no task", merged(good, headers={"task": ABSENT})
    yield "wrong arguments", of_body(body([[key, 2, 3], {}, rest]))
    # Headers.
    yield "eta 'zz'", merged(good, headers={"eta": "zz"})
    yield "eta in the year 9999", merged(good, headers={"eta": "9999-12-31T23:59:59+00:00"})
    yield "eta is a number", merged(good, headers={"eta": 5})
    yield "expires 'zz'", merged(good, headers={"expires": "zz"})
    yield "timelimit 'ab'", merged(good, headers={"timelimit": "ab"})
    yield "timelimit is a number", merged(good, headers={"timelimit": 5})
    yield "retries 'x'", merged(good, headers={"retries": "x"})
    yield "id null", merged(good, headers={"id": None})
    yield "id is an object", merged(good, headers={"id": {"a": 1}})
    callback = {
        "task": "faults.mark",
        "args": [],
        "kwargs": {},
        "options": {},
        "subtask_type": None,
        "immutable": False,
    }
    yield "a callback", of_body(body([[key], {}, {**rest, "callbacks": [callback]}]))
