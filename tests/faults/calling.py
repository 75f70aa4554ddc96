"""Rows 26 to 29: calls that cannot be made, as their caller sees it, and workers that come before Redis does."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from faults.callers import Answer
from faults.rows import ONCE, Finding, row
from faults.world import World

PASSWORD = "s3cret-word"
#: Values that have no place in JSON, or none in a message, by what they are.
BAD_VALUES = {
    "an object": "object()",
    "NaN": "float('nan')",
    "a key that is a number": "{1: 2}",
    "50 MB": "'x' * 50_000_000",
    "100,000 lists in each other": "__import__('functools').reduce(lambda inner, _: [inner], range(100_000), [])",
}


@row(26, "an argument that JSON cannot carry, or that is too large", pools=ONCE)
def bad_arguments(world: World) -> str:
    caller = world.caller()
    silent, vague = [], []
    for name, code in BAD_VALUES.items():
        said = caller.ask(task="echo", args=[world.key("bad")], code=code)(30)
        if said.error is None:
            silent.append(name)
        elif "value" not in said.error:
            vague.append(name)
    if silent or vague:
        both = [f"{', '.join(silent)}: sent"] * bool(silent) + [f"{len(vague)} errors name no argument"] * bool(vague)
        raise Finding("; ".join(both))
    return "an error that names the argument; nothing is sent"


@row(27, "a queue that nobody serves, in a call", pools=ONCE, alone=True)
def queue_typo(world: World) -> str:
    world.call("mark")
    said = world.attempt("mark", queue="defualt")
    if said.error is None:
        raise Finding("sent, and never run")
    if "defualt" not in said.error or said.seconds > 0.1:
        raise Finding(f"an unclear error after {said.seconds:.2f} s")
    return "an error at once that names the queue"


@row(28, "Redis refuses, freezes, cannot be reached, or only the results' Redis is away, in a call",
     pools=ONCE, alone=True)  # fmt: skip
def redis_away_in_a_call(world: World) -> str:
    where = world.server.where
    found = []
    with world.server.frozen():
        found += judged("frozen", attempt(world, where), 6, where)
    with black_hole() as hole:
        found += judged("out of reach", attempt(world, hole), 7, hole)
    results = f"redis://:{PASSWORD}@127.0.0.1:1/0"
    said = world.caller(TASK_RESULT_BACKEND_URL=results).ask(task="mark", args=["backend"])(25)
    if said.error is not None or said.seconds > 1:
        found.append(f"results away: {'refused' if said.error else 'taken'} after {said.seconds:.1f} s")
    world.server.kill()
    found += judged("refused", attempt(world, where), 1, where)
    if found:
        raise Finding("; ".join(found))
    return "one line that names the host, in time, without the password; results away: the call is taken"


def attempt(world: World, where: str) -> Answer | None:
    """One call from a process of its own, whose URL has a password; None when it did not come back."""
    caller = world.caller(REDIS_URL=f"redis://:{PASSWORD}@{where}/0")
    try:
        return caller.ask(task="mark", args=["away"])(12)
    except Finding:
        return None


def judged(what: str, said: Answer | None, within: float, where: str) -> list[str]:
    """What is wrong with the answer."""
    if said is None:
        return [f"{what}: hangs"]
    if said.error is None:
        return [f"{what}: no error"]
    if PASSWORD in said.error:
        return [f"{what}: the error tells the password"]
    if said.seconds > within:
        return [f"{what}: {said.seconds:.1f} s"]
    if where not in said.error or "\n" in said.error.strip():
        return [f"{what}: the error does not name the host"]
    return []


@contextmanager
def black_hole() -> Iterator[str]:
    """A listener whose queue of connections is full: an attempt to connect gets no answer at all."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield "{}:{}".format(*full.getsockname())
        for filler in fillers:
            filler.close()


@row(29, "a worker starts before Redis does")
def worker_before_redis(world: World) -> str:
    world.caller()  # a process of the project that is there already
    world.server.kill()
    worker = world.worker(ready=False)
    world.until(lambda: world.server.where in worker.text(), 15, "says nothing")
    world.hold(3)
    told = [line for line in worker.text().splitlines() if world.server.where in line]
    world.server.start()
    world.fine(within=12)
    if "Traceback" in worker.text():
        raise Finding("joins by itself, after a traceback")
    if world.ours and len(told) > 1:
        raise Finding(f"joins by itself, after {len(told)} lines in 3 s")
    return f"says so{' once' if world.ours else ''}, and joins by itself"
