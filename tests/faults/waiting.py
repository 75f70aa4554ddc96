"""Rows 9, 10, 25 and 30 to 32: calls that run long, wait long, or are many."""

import time

from faults.messages import Template
from faults.rows import Finding, row
from faults.world import GRACE, LEASE, World, until

BACKLOG = 100_000
PARKED = 10_000


@row(
    9,
    "calls run three times longer than the lease (Celery: the visibility timeout), one of them in a blocked thread",
)
def longer_than_the_lease(world: World) -> str:
    for _ in range(2):
        world.worker()
    calls = [world.call("nap", 3 * LEASE), world.call("block", 3 * LEASE)]
    for call in calls:
        world.await_run(call)
    world.settle(calls, within=3 * LEASE + 8)
    world.ran(calls)
    world.nothing_left()
    return "both run once"


@row(10, "a countdown of two leases (Celery: visibility timeouts), with two workers")
def countdown_longer_than_the_lease(world: World) -> str:
    for _ in range(2):
        world.worker()
    began = time.time()
    calls = [world.call("mark", countdown=2 * LEASE) for _ in range(3)]
    world.settle(calls, within=2 * LEASE + 5)
    world.ran(calls)
    late = max(world.ledger.begun(call.key)[0].at for call in calls) - began - 2 * LEASE
    if late < -0.1:
        raise Finding(f"runs {-late:.1f} s early")
    if late > 2:
        raise Finding(f"runs {late:.1f} s late")
    world.nothing_left()
    return "each runs once, at its time"


@row(25, "a call runs longer than its time limit of 1 s; another one has a header that allows it 999 s")
def longer_than_allowed(world: World) -> str:
    template = Template.of(world)
    world.worker()
    calls = [world.call("brief"), template.push(world, headers={"task": "faults.brief", "timelimit": [999, 999]})]
    for call, which in zip(calls, ("an ordinary one", "the one with the header"), strict=True):
        world.await_run(call)
        world.until(lambda call=call: world.ledger.outcomes([call.id])[call.id], 10, f"{which} is not ended")
    world.settle(calls)
    if any(found != ["failure"] for found in world.ledger.outcomes([call.id for call in calls]).values()):
        raise Finding("does not fail")
    world.fine()
    world.ran(calls)
    world.nothing_left()
    return "both are ended at the limit and have failed; no second run"


@row(30, "a queue of 100,000 calls; the worker is stopped in the midst of it", alone=True)
def backlog(world: World) -> str:
    Template.of(world).push_many(world, BACKLOG)
    worker = world.worker()
    until(lambda: len(world.ledger.keys()) > 500, 15, "does not work on them")
    before = worker.memory()
    world.hold(5)
    more = worker.memory() - before
    worker.terminate()
    if code := worker.wait(GRACE):
        raise Finding(f"a stopped worker exits {code}")
    runs, left = world.ledger.keys(), world.ledger.remaining()
    missing = BACKLOG - len(runs) - left["queued"]
    if missing > 0:
        raise Finding(f"{missing} lost, or left to a lease")
    if missing < 0 or max(runs.values()) > 1:
        raise Finding(f"{max(-missing, 1)} would run twice")
    if more > 50:
        raise Finding(f"grows by {more:.0f} MiB in 5 s")
    return "memory steady, stops at once, each call run once or still queued"


@row(31, "10,000 countdowns of an hour before ordinary calls", alone=True, TASK_LEASE="7200")
def many_countdowns(world: World) -> str:
    later = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 3600))
    template = Template.of(world).changed(headers={"eta": later})
    worker = world.worker()
    world.fine()
    before = worker.memory()
    template.push_many(world, PARKED)
    world.until(lambda: not world.ledger.remaining()["queued"], 30, "the countdowns are not taken in")
    slowest = max(world.fine(within=5) for _ in range(5))
    if slowest > 1:
        raise Finding(f"ordinary calls wait {slowest:.1f} s")
    left = sum(world.ledger.remaining().values())
    if left != PARKED:
        raise Finding(f"{PARKED - left} of {PARKED} countdowns lost")
    if (more := worker.memory() - before) > 50:
        raise Finding(f"the worker grows by {more:.0f} MiB")
    return "ordinary calls run within a second, all countdowns wait"


@row(32, "a waiting call is cancelled, all workers restart, its time comes", TASK_LEASE="60")
def cancelled_before_a_restart(world: World) -> str:
    first = world.worker()
    world.fine()
    cancelled, other = (world.call("mark", countdown=7) for _ in range(2))
    world.cancel(cancelled)
    first.terminate()
    first.wait(GRACE)
    world.worker()
    world.settle([other], within=7 + LEASE + 5)
    world.fine()
    if world.runs(cancelled):
        raise Finding("the cancelled call runs")
    world.settle([cancelled])
    world.nothing_left()
    return "it does not run"
