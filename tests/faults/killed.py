"""Rows 1 to 8: workers are killed, frozen and stopped."""

import os
import signal
import time
from contextlib import suppress

from faults.crew import Keeper, Load
from faults.rows import NOTICES, Finding, row
from faults.world import RECOVERY, Call, Worker, World, until

#: Seconds within which an idle worker, or one with short calls, stops.
STOPS = 10


def running(world: World, seconds: float, *, workers: int = 2) -> tuple[Call, Worker, int]:
    """A call that runs for so many seconds, the worker that has it, and the process in which it runs."""
    for _ in range(workers):
        world.worker()
    call = world.call("nap", seconds)
    return call, *world.runner(call)


@row(1, "`kill -9` of the pool process that runs a call", pools=("prefork",), stock_lease=NOTICES)
def process_killed(world: World) -> str:
    call, _, process = running(world, 2, workers=1)
    os.kill(process, signal.SIGKILL)
    world.await_run(call, times=2, within=RECOVERY)
    world.settle([call])
    world.ran([call], times=2)
    world.fine()
    world.nothing_left()
    return "runs again, the worker goes on"


@row(2, "`kill -9` of a worker that runs a call, beside another worker")
def worker_killed(world: World) -> str:
    call, worker, _ = running(world, 2)
    worker.kill()
    world.await_run(call, times=2, within=RECOVERY)
    world.settle([call])
    world.ran([call], times=2)
    world.fine()
    world.nothing_left()
    return "runs again in the other worker"


@row(3, "`kill -9` of a worker's main process alone", pools=("prefork",))
def parent_killed(world: World) -> str:
    call, worker, _ = running(world, 2)
    children = set(worker.children())
    worker.kill_parent()

    def gone() -> bool:
        for child in list(children):
            with suppress(ProcessLookupError):
                os.kill(child, 0)
                return False
            children.discard(child)
        return True

    world.await_run(call, times=2, within=RECOVERY)
    world.settle([call])
    world.ran([call], times=2)
    until(gone, RECOVERY, f"{len(children)} orphaned processes stay")
    world.fine()
    world.nothing_left()
    return "its processes end, the call runs again once"


@row(4, "eight `kill -9` of workers under load (60 calls a second)")
def workers_killed_under_load(world: World) -> str:
    with Keeper(world, 2) as keeper:
        load = Load(world, 600, 60, "nap", 0.02)
        for number in range(1, 9):
            until(lambda due=number * 60: load.sent() >= due, 60, "calls cannot be made")
            keeper.one().kill()
        calls = load.accepted()
        world.settle(calls, within=RECOVERY + 20)
        world.nothing_left()
    return f"{'all' if len(calls) == 600 else len(calls)} calls run"


@row(5, "an idle worker freezes, calls come, and it is killed")
def frozen_worker_killed(world: World) -> str:
    first = world.worker()
    world.fine()
    first.freeze()
    calls = [world.call("mark") for _ in range(3)]
    first.kill()
    world.worker()
    world.settle(calls)
    world.ran(calls)
    world.nothing_left()
    return "all three run, once"


@row(6, "six rolling restarts (SIGTERM) under load (60 calls a second)")
def rolling_restarts(world: World) -> str:
    slowest = 0.0
    with Keeper(world, 2) as keeper:
        load = Load(world, 600, 60, "nap", 0.02)
        for number in range(1, 7):
            until(lambda due=number * 80: load.sent() >= due, 60, "calls cannot be made")
            worker, began = keeper.one(), time.monotonic()
            worker.terminate()
            if code := worker.wait(STOPS):
                raise Finding(f"a stopped worker exits {code}")
            slowest = max(slowest, time.monotonic() - began)
        calls = load.accepted()
        world.settle(calls, within=RECOVERY + 20)
        world.ran(calls)
        world.nothing_left()
    return "all calls run, once"


@row(
    7,
    "a worker is stopped (SIGTERM) whose call takes longer than the time to stop",
    TASK_SHUTDOWN_TIMEOUT="1",
    TASK_LEASE="15",  # at once is not because a lease ended
    REMAP_SIGTERM="SIGQUIT",  # Celery's own way to a stop that is bounded; core.tasks does not look at it
)
def stopped_in_time(world: World) -> str:
    call, worker, _ = running(world, 5)
    worker.terminate()
    code = worker.wait(1 + 3)
    world.await_run(call, times=2, within=2)
    if code:
        raise Finding(f"the call is put back, but the worker exits {code}")
    world.settle([call])
    world.ran([call], times=2)
    world.nothing_left()
    return "the call is put back at once and runs again, exit code 0"


@row(8, "a worker is asked to stop (SIGTERM) and killed a second later")
def stopped_then_killed(world: World) -> str:
    call, worker, _ = running(world, 2.5)
    worker.terminate()
    world.hold(1)
    worker.kill()
    world.await_run(call, times=2, within=RECOVERY)
    world.settle([call])
    world.ran([call], times=2)
    world.nothing_left()
    return "runs again in another worker"
