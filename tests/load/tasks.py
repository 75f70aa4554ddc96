"""Tasks that end in every way there is, for loads of calls. They are copied into a project.

What happens to a call is written down as lines of its id, a word and the process in the file `MARKS`.
"""

import asyncio
import contextlib
import gc
import os
import random
import threading
import time
from collections import Counter
from typing import Any

from celery import signals
from celery.worker.control import inspect_command

from core.tasks import TaskError, bridge, current, runner, task

_marks = os.open(os.environ["MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def mark(word: str, id: str | None = None) -> None:
    """Write down that something happened to a call."""
    os.write(_marks, f"{id or current().id} {word} {os.getpid()}\n".encode())


def _connect(word: str) -> None:
    def receive(sender: Any = None, request: Any = None, task_id: str | None = None, **_: Any) -> None:
        mark(word, task_id or (request or sender.request).id)

    getattr(signals, f"task_{word}").connect(receive, weak=False)


for _word in ("success", "failure", "retry", "revoked"):
    _connect(_word)


@task
async def nap(seconds: float, value: int) -> int:
    mark("begun")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        mark("cancelled")
        raise
    mark("ended")
    return value


@task
async def computes(seconds: float) -> None:
    """Hold up the loop, as what computes does."""
    mark("begun")
    time.sleep(seconds)  # noqa: ASYNC251  on purpose


@task
def plain(seconds: float, value: int) -> int:
    mark("begun")
    time.sleep(seconds)
    mark("ended")
    return value


@task
async def fails(seconds: float) -> None:
    mark("begun")
    await asyncio.sleep(seconds)
    raise ValueError("as planned")


@task(max_retries=2, retry_delay=0.05)
async def retried(seconds: float, times: int) -> int:
    """Fail so many times, and return the number of the attempt that did not."""
    mark("begun")
    await asyncio.sleep(seconds)
    if current().attempt <= times:
        raise TaskError(f"attempt {current().attempt}")
    return current().attempt


@task(timeout=0.3)
async def slow() -> None:
    mark("begun")
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0.01)
        mark("cleaned")


@task(timeout=0.3)
async def stubborn() -> str:
    """Return all the same."""
    mark("begun")
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(600)
    mark("cleaned")
    return "went on"


@task
async def parent(seconds: float, value: int) -> int:
    """Add up what three other calls return, one of which is tried twice."""
    mark("begun")
    calls = [await nap.delay(seconds, value), await plain.delay(0.001, value), await retried.delay(0.01, 1)]
    return sum(await asyncio.gather(*(call.get(timeout=60) for call in calls)))


@task
async def orphan(seconds: float) -> None:
    """Wait for a call that fails."""
    mark("begun")
    await (await fails.delay(seconds)).get(timeout=60)


# What waits until it is let go: by a file, which each process looks at once for all its calls.

_gates: dict[str, asyncio.Event] = {}
_now: Counter[str] = Counter()
_most: Counter[str] = Counter()


def _look_at(file: str) -> None:
    """Open the gate when its file is there."""
    if os.path.exists(file):
        _gates[file].set()
    else:
        asyncio.get_running_loop().call_later(0.05, _look_at, file)


@task
async def gated(file: str) -> None:
    """Wait for a file, and for up to a second more; how many do so at once is told by `look`."""
    mark("begun")
    _now[file] += 1
    _most[file] = max(_most[file], _now[file])
    try:
        if file not in _gates:
            _gates[file] = asyncio.Event()
            _look_at(file)
        await _gates[file].wait()
        await asyncio.sleep(random.random())
        mark("ended")
    finally:
        _now[file] -= 1


@inspect_command()
def look(state: Any) -> dict[str, Any]:
    """What this process is made of, by number."""
    from greenlet import greenlet

    gc.collect()
    loop = bridge.loop()
    found = gc.get_objects()
    return {
        "pid": os.getpid(),
        "most": dict(_most),
        "asyncio tasks": len(asyncio.all_tasks(loop)),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "bodies": len(runner.running()),
        "tracers": sum(isinstance(each, greenlet) and getattr(each, "call", None) is not None for each in found),
        "objects": len(found),
        "kinds": dict(Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in found).most_common(400)),
    }
