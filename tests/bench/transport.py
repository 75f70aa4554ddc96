"""`make bench-transport`: a drain of no-op calls with our transport and with Celery's own, in one run.

For each pool: calls a second, as a ratio too, with the server here and behind a proxy that adds a millisecond to each
round trip; commands and round trips a call, as the server counts them. Absolute numbers are this machine's.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from drains import Crew, Drained, Proxy, drain
from redis import Redis
from support import Project, project, redis_server
from table import median

POOLS = {"asyncio": 200, "prefork": 2, "threads": 100}
QUEUED = """
from src.apps.probe.tasks import add

add.delay_many_sync([(1, 2)] * {calls})
"""


def drained(made: Project, client: Any, pool: str, transport: str, calls: int) -> Drained:
    """What it takes to drain queued calls with a worker of this pool."""
    worker = made.worker(
        "--pool", pool, "--concurrency", str(POOLS[pool]), "--queue", "default", TASK_BROKER_TRANSPORT=transport
    )

    def fill() -> None:
        done = made.python(QUEUED.format(calls=calls), timeout=120)
        assert done.returncode == 0, done.stderr

    crew = Crew(client, "default", worker)
    crew.stand_still()
    try:
        return drain(crew, fill, calls)
    finally:
        crew.kill()
        client.flushall()


@contextmanager
def world(delay: float, events: bool) -> Iterator[tuple[Project, Any]]:
    with redis_server() as (url, _), project() as made:
        port = int(url.rpartition(":")[2].partition("/")[0])
        made.environment["CELERY"] = json.dumps({"worker_send_task_events": events, "task_send_sent_event": events})
        made.environment["REDIS_URL"] = f"redis://127.0.0.1:{Proxy(port, delay).port}/0" if delay else url
        with Redis(port=port) as client:
            yield made, client


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--pools", default=",".join(POOLS))
    options.add_argument("--events", action="store_true", help="with the events that Flower asks for")
    options.add_argument("--delays", default="0,1", help="milliseconds")
    chosen = options.parse_args()
    print(f"{'pool':8} {'network':>8} {'transport':>9} {'calls/s':>8} {'ratio':>6} {'commands':>9} {'round trips':>11}")
    for delay in map(float, chosen.delays.split(",")):
        for pool in chosen.pools.split(","):
            runs: dict[str, list[Drained]] = {"stock": [], "core": []}
            with world(delay / 1000, chosen.events) as (made, client):
                for _ in range(chosen.rounds):
                    for transport, results in runs.items():
                        results.append(drained(made, client, pool, transport, chosen.calls))
            base = median(run.wall for run in runs["stock"])
            for transport, results in runs.items():
                took, commands, trips = (
                    median(getattr(run, name) for run in results) for name in ("wall", "commands", "trips")
                )
                print(
                    f"{pool:8} {f'+{delay:g} ms':>8} {transport:>9} {1 / took:8.0f} {base / took:6.2f} "
                    f"{commands:9.1f} {trips:11.2f}", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
