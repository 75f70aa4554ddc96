"""The Lua scripts that change what Redis knows of calls, each in one step."""

from functools import cache
from pathlib import Path
from typing import Any

from redis.exceptions import (
    DataError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from core.tasks import dead

#: What a script begins with: functions that several scripts need.
PRELUDES = {
    "take": ("calls",),
    "result": ("store",),
    "finish": ("dead", "calls", "store", "lost"),
    "lease": ("dead", "calls", "lost"),
    "adopt": ("calls",),
}


@cache
def text(name: str) -> str:
    """A script's whole text."""
    parts = [dead.PRELUDE if part == "dead" else _read(part) for part in (*PRELUDES[name], name)]
    return "\n".join(parts)


def _read(name: str) -> str:
    return Path(__file__).with_name(f"{name}.lua").read_text()


#: How the answers of a server begin that will answer otherwise in a while, where they have no class of their own.
PASSING = ("MISCONF", "BUSY", "NOREPLICAS", "UNBLOCKED", "UNKILLABLE", "NOSCRIPT", "CLUSTERDOWN", "TRYAGAIN")


def passes(error: Exception) -> bool:
    """Whether the same words may be accepted later: the server is away, full, or about to be another one's replica."""
    if isinstance(error, OutOfMemoryError | ReadOnlyError | MasterDownError | NoScriptError):
        return True
    return not isinstance(error, ResponseError | DataError) or str(error).startswith(PASSING)


def script(client: Any, name: str) -> Any:
    """A script that *client* runs by its digest; it is loaded again when the server has lost it."""
    return client.register_script(text(name))
