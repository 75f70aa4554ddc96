"""The Lua scripts that change what Redis knows of calls, each in one step."""

from functools import cache
from importlib.resources import files
from typing import Any

from core.tasks import dead

#: What a script begins with: functions that several scripts need.
PRELUDES = {
    "take": (),
    "result": ("store",),
    "finish": ("dead", "store", "lost"),
    "lease": ("dead", "lost"),
    "adopt": (),
}


@cache
def text(name: str) -> str:
    """A script's whole text."""
    parts = [dead.PRELUDE if part == "dead" else _read(part) for part in (*PRELUDES[name], name)]
    return "\n".join(parts)


def _read(name: str) -> str:
    return (files(__package__) / f"{name}.lua").read_text()


def script(client: Any, name: str) -> Any:
    """A script that *client* runs by its digest; it is loaded again when the server has lost it."""
    return client.register_script(text(name))
