"""What a call names to follow it: whoever can write a message is not to call whatever task there is by way of it."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from celery.exceptions import InvalidTaskError

from core import config

#: Where a message names what follows: callbacks, what is called after an error, the rest of a chain, a chord's body.
KEYS = ("callbacks", "errbacks", "chain", "chord")
#: Where a signature of Celery's own holds others.
_INNER = ("tasks", "header", "body", "task")


class Unknown(InvalidTaskError):  # type: ignore[misc]
    """A call is followed by a task that this project does not know."""


def unknown(embedded: Any, app: Any) -> str | None:
    """The first task that is to follow a call and is none that this worker's calls may name.

    Args:
        embedded: What a message has beside its arguments, or what Celery has made of that.
    """
    allowed = config.get_settings().task_foreign_callbacks
    for name in _named([embedded.get(key) for key in KEYS]):
        if name not in app.tasks and not any(fnmatchcase(name, pattern) for pattern in allowed):
            return name
    return None


def _named(value: Any) -> Iterator[str]:
    """The tasks in a signature, or in a list of them, with what follows them in turn."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from _named(one)
    elif isinstance(value, dict) and "task" in value:
        name, options, kwargs = str(value["task"]), value.get("options"), value.get("kwargs")
        yield name
        if isinstance(options, dict):
            yield from _named([options.get(key) for key in ("link", "link_error", "chord", "chain")])
        if name.startswith("celery.") and isinstance(kwargs, dict):
            yield from _named([kwargs.get(key) for key in _INNER])
