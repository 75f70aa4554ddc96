"""Rows 23 and 24: calls that take down whatever runs them."""

from faults.crew import Keeper
from faults.rows import NOTICES, Finding, row
from faults.world import RECOVERY, Call, World

#: Runs after which a call that kills its worker is to be set aside.
DELIVERIES = 3
WAYS = ("kill", "segfault", "exit")


@row(
    23,
    "a call that kills its process: SIGKILL (as out of memory does), a segmentation fault, an exit",
    stock_lease=NOTICES,
)
def poison_kills_its_process(world: World) -> str:
    with Keeper(world, 2) as keeper:
        calls = [world.call("poison", how) for how in WAYS]
        bounded(world, calls)
        world.fine(within=10)
        keeper.one()
        world.nothing_left()
    return explained(world, calls)


@row(24, "a call that kills its whole worker, each time", pools=("prefork",))
def poison_kills_its_worker(world: World) -> str:
    with Keeper(world, 1):
        call = world.call("poison", "group")
        bounded(world, [call])
        world.fine(within=15)
        world.nothing_left()
    return explained(world, [call])


def bounded(world: World, calls: list[Call]) -> None:
    """Each of these has an outcome after a few runs."""

    def over() -> bool:
        more = [world.runs(call) for call in calls if world.runs(call) > DELIVERIES + 1]
        if more:
            raise Finding(f"kills {max(more)} times, and goes on")
        return all(world.ledger.outcomes([call.id for call in calls]).values())

    world.until(over, DELIVERIES * RECOVERY + 10, "has no outcome")


def explained(world: World, calls: list[Call]) -> str:
    """How the calls ended; a Finding when it was not as promised."""
    runs = max(world.runs(call) for call in calls)
    reasons = world.ledger.set_aside()
    if all(call.id in reasons for call in calls):
        if runs > DELIVERIES:
            raise Finding(f"runs {runs} times")
        if not all("lost" in str(reasons[call.id].get("reason")) for call in calls):
            raise Finding("set aside without the reason")
        return f"set aside after {DELIVERIES} runs at most, with the reason"
    if world.ours:
        raise Finding(f"not on the dead list after {runs} runs")
    return f"fails after {runs} runs"
