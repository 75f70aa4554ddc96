"""`make bench-waiting`: what it costs when ten thousand callers wait for their results on one event loop."""

import asyncio
import os
import resource
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from redis.asyncio import Redis
from support import eventually, redis_server

from core.config import Settings, configure
from core.tasks import TaskResult
from core.tasks.listener import listener

WAITERS = 10_000
#: Stores results from a process of its own, so that its work is not counted here.
STORE = """
import json, sys
from redis import Redis

sys.stdin.read(1)
with Redis.from_url(sys.argv[1]) as client:
    for start in range(0, int(sys.argv[2]), 100):
        with client.pipeline(transaction=False) as together:
            for number in range(start, start + 100):
                key = f"celery-task-meta-{number}"
                meta = json.dumps({"status": "SUCCESS", "result": number, "task_id": str(number)})
                together.set(key, meta)
                together.publish(key, meta)
            together.execute()
"""


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def longest_gap(over: asyncio.Event) -> float:
    """Seconds between two turns of a 10 ms ticker, at most."""
    longest, last = 0.0, time.perf_counter()
    while not over.is_set():
        await asyncio.sleep(0.01)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest


async def subscribed(client: Redis) -> None:
    """Wait until every waiter's channel is subscribed to."""
    waits = await listener()

    async def all_are() -> bool:
        return len(await client.pubsub_channels()) >= WAITERS and not waits._sent

    await eventually(all_are, 30, "they are subscribed")


async def main(url: str) -> None:
    await TaskResult.from_id("warm").status()
    client = Redis.from_url(url)
    others = len(await client.client_list())  # what asks here, and the listener
    before, began = resident(), time.perf_counter()
    waiting = [asyncio.create_task(TaskResult.from_id(str(n)).get(timeout=60)) for n in range(WAITERS)]
    await asyncio.sleep(0)
    await subscribed(client)
    took = time.perf_counter() - began
    print(f"{WAITERS:,} waiters subscribed in           {took:8.2f} s")
    print(f"memory of each                          {(resident() - before) / WAITERS / 1024:8.2f} KiB   < 5 KiB")
    print(f"connections that they share             {len(await client.client_list()) - others + 1:8}       1")
    storing = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STORE, url, str(WAITERS), stdin=asyncio.subprocess.PIPE
    )
    together = asyncio.gather(*waiting)
    over = asyncio.Event()
    ticker = asyncio.create_task(longest_gap(over))
    began, cpu = time.perf_counter(), time.process_time()
    await storing.communicate(b"!")
    assert await together == list(range(WAITERS))
    took = time.perf_counter() - began
    print(f"stored, and all returned in             {took:8.2f} s")
    print(f"processor time of each result           {(time.process_time() - cpu) / WAITERS * 1e6:8.0f} µs")
    over.set()
    print(f"longest gap of a 10 ms ticker           {await ticker * 1e3:8.0f} ms    < 50 ms")
    await client.aclose()


if __name__ == "__main__":
    with redis_server() as (server, _):
        os.environ["REDIS_URL"] = server
        configure(Settings)
        asyncio.run(main(server))
