"""`make bench-transport`: a drain of no-op calls with our transport and with Celery's own, in one run.

For each pool: calls a second, as a ratio too, with the server here and behind a proxy that adds a millisecond to each
round trip; commands and round trips a call, as the server counts them. Absolute numbers are this machine's.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from redis import Redis
from support import Project, project, redis_server, wait_until

POOLS = {"prefork": 2, "threads": 100}
QUEUED = """
import asyncio
from src.apps.probe.tasks import add

async def main():
    await asyncio.gather(*(add.delay(1, 2) for _ in range({calls})))

asyncio.run(main())
"""


class Proxy:
    """Passes bytes between a port of its own and the server, each way half of a round trip late."""

    def __init__(self, port: int, delay: float) -> None:
        self._target, self._delay = port, delay / 2
        self._loop = asyncio.new_event_loop()
        self.port = 0
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        self._loop.run_until_complete(serve())
        self._loop.run_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self._loop.call_later(self._delay, writer.write, data)
        self._loop.call_later(self._delay, writer.close)


def drain(made: Project, client: Any, pool: str, transport: str, calls: int) -> tuple[float, float, float]:
    """Seconds, commands and reads of the server that *calls* queued calls took."""
    worker = made.worker(
        "--pool", pool, "--concurrency", str(POOLS[pool]), "--queue", "default", TASK_BROKER_TRANSPORT=transport
    )
    os.killpg(worker.pid, signal.SIGSTOP)
    done = made.python(QUEUED.format(calls=calls), timeout=120)
    assert done.returncode == 0, done.stderr
    before = counted(client)
    began = time.perf_counter()
    os.killpg(worker.pid, signal.SIGCONT)

    def drained() -> bool:
        return bool(not client.llen("default") and not client.hlen("unacked") and stored(client) >= calls)

    wait_until(drained, 120, "all calls are done")
    took = time.perf_counter() - began
    after = counted(client)
    worker.stop()
    client.flushall()
    looks = (after[2] - before[2]) * 3  # ours: three commands, each in a round trip of its own, a look
    return took, (after[0] - before[0] - looks) / calls, (after[1] - before[1] - looks) / calls


def stored(client: Any) -> int:
    """How many keys there are: one a result."""
    return int(client.dbsize())


def counted(client: Any) -> tuple[int, int, int]:
    """Commands that the server has run, reads that it has made, and how often we looked."""
    commands = client.info("commandstats")
    total = sum(stats["calls"] for name, stats in commands.items() if not name.startswith("cmdstat_info"))
    return total, client.info("stats")["total_reads_processed"], commands.get("cmdstat_dbsize", {"calls": 0})["calls"]


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
    options.add_argument("--pools", default="prefork,threads")
    options.add_argument("--events", action="store_true", help="with the events that Flower asks for")
    options.add_argument("--delays", default="0,1", help="milliseconds")
    chosen = options.parse_args()
    print(f"{'pool':8} {'network':>8} {'transport':>9} {'calls/s':>8} {'ratio':>6} {'commands':>9} {'round trips':>11}")
    for delay in map(float, chosen.delays.split(",")):
        for pool in chosen.pools.split(","):
            runs: dict[str, list[tuple[float, float, float]]] = {"stock": [], "core": []}
            with world(delay / 1000, chosen.events) as (made, client):
                for _ in range(chosen.rounds):
                    for transport, results in runs.items():
                        results.append(drain(made, client, pool, transport, chosen.calls))
            base = statistics.median(run[0] for run in runs["stock"])
            for transport, results in runs.items():
                took, commands, trips = (statistics.median(run[i] for run in results) for i in range(3))
                print(
                    f"{pool:8} {f'+{delay:g} ms':>8} {transport:>9} {chosen.calls / took:8.0f} {base / took:6.2f} "
                    f"{commands:9.1f} {trips:11.2f}", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
