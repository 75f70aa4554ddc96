"""Rows 11 to 19: Redis is gone, frozen, read-only, full, or has forgotten everything."""

from faults.rows import Finding, row
from faults.world import LEASE, RECOVERY, Call, World


def back_to_normal(world: World, calls: list[Call], within: float = 5) -> None:
    """The calls ran once and have one outcome, the workers live, and the next call runs in time."""
    world.settle(calls)
    world.fine(within)
    world.ran(calls)
    world.alive()
    world.nothing_left()


def busy(world: World, *seconds: float) -> list[Call]:
    """Calls that run in the workers, each for so many seconds."""
    calls = [world.call("nap", length) for length in seconds]
    for call in calls:
        world.await_run(call)
    return calls


@row(11, "Redis is killed and starts again later than a lease (append-only file on), while calls run")
def server_restarts(world: World) -> str:
    for _ in range(2):
        world.worker()
    calls = busy(world, 2, 2, 2, 2)
    world.server.kill()
    world.hold(LEASE + 1)
    world.server.start()
    back_to_normal(world, calls)
    return "the calls run once, the workers go on"


@row(12, "Redis is killed and starts again 3 s later, while a worker is idle")
def server_restarts_idle(world: World) -> str:
    world.worker()
    world.fine()
    world.server.kill()
    world.hold(3)
    world.server.start()
    world.fine(within=5)
    world.alive()
    return "the next call runs within 5 s"


@row(13, "every connection is cut while a call runs")
def connections_cut(world: World) -> str:
    world.worker()
    call = world.call("nap", 2)
    world.await_run(call)
    world.server.cut()
    back_to_normal(world, [call])
    return "the call runs once"


@row(14, "Redis freezes for 10 s, longer than a lease, while calls run")
def server_freezes(world: World) -> str:
    for _ in range(2):
        world.worker()
    # Celery would run the longer ones twice for their length alone: that is row 9.
    calls = busy(world, *((2, 2, 12, 12) if world.ours else (2, 2)))
    with world.server.frozen():
        _, answer = world.begin("mark")
        world.hold(10)
        try:
            refused = answer(0)
        except Finding:
            raise Finding("delay() does not return while it is frozen") from None
    if refused.error is None:
        raise Finding("delay() says nothing")
    if refused.seconds > 6:
        raise Finding(f"delay() raises after {refused.seconds:.0f} s only")
    back_to_normal(world, calls)
    return "calls run once; `delay()` raises within 6 s meanwhile"


@row(15, "Redis is a replica for 4 s (a failover), while a call runs")
def server_demoted(world: World) -> str:
    world.worker()
    call = world.call("nap", 2)
    world.await_run(call)
    with world.server.demoted():
        world.hold(4)
    back_to_normal(world, [call])
    return "the call runs once, the worker goes on"


@row(16, "Redis is full for 6 s (`noeviction`) with calls in the queue")
def server_full(world: World) -> str:
    world.worker(concurrency=1)
    first = world.call("nap", 2)
    world.await_run(first)
    calls = [first, *(world.call("nap", 0.5) for _ in range(5))]
    with world.server.full():
        refused = world.attempt("mark")
        world.hold(6)
    if refused.error is None:
        raise Finding("delay() says nothing")
    if not any(word in refused.error for word in ("full", "memory")):
        raise Finding("delay() does not say that Redis is full")
    back_to_normal(world, calls)
    return "all calls run, once; `delay()` says that Redis is full"


@row(17, "Redis may throw keys away (`allkeys-lru`)", server=("--maxmemory-policy", "allkeys-lru"))
def server_evicts(world: World) -> str:
    worker = world.worker()
    world.fine()
    if not any(word in worker.text() for word in ("allkeys-lru", "noeviction")):
        raise Finding("not checked at start")
    return "a worker warns at its start"


@row(18, "Redis cannot write to its disk for 4 s", server=("--appendfsync", "everysec"))
def server_cannot_write(world: World) -> str:
    world.worker()
    call = world.call("nap", 2)
    world.await_run(call)
    accepted: list[Call] = []
    with world.server.limited_disk():

        def refused() -> str | None:
            key, answer = world.begin("mark")
            said = answer(10)
            if said.error is None:
                accepted.append(Call(said.id, key))
            return said.error

        errors: list[str] = []
        world.until(lambda: errors.extend(filter(None, [refused()])) or errors, 10, "delay() says nothing")
        world.hold(4)
    back_to_normal(world, [call, *accepted])
    if not any(word in errors[0] for word in ("MISCONF", "disk")):
        raise Finding("nothing is lost, but delay() does not say why it is refused")
    return "the call runs once, the worker goes on; `delay()` says why it is refused"


@row(19, "Redis forgets everything (`FLUSHALL`, `SCRIPT FLUSH`) while a call runs")
def server_forgets(world: World) -> str:
    world.worker()
    call = world.call("nap", 2)
    world.await_run(call)
    world.server.client.flushall()
    world.server.client.script_flush()
    world.fine()
    world.until(lambda: world.ended(call), RECOVERY, "the running call does not end")
    world.ran([call])
    world.fine()
    world.alive()
    world.nothing_left()
    return "the worker goes on; what was queued is gone with the data"
