"""What calls, results and processes take of Redis: the figures of docs/scale.md.

python tests/bench/sizing.py
"""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from redis import Redis
from support import Project, project, redis_server, wait_until

COUNT = 20_000
TASKS = """
from core.tasks import task


@task
async def order(number: int, customer: str) -> dict[str, int]:
    return {"number": number}
"""
QUEUED = """
import asyncio
from src.tasks import order

async def main():
    for first in range(0, {count}, 1000):
        calls = [(number, "user@example.com") for number in range(first, first + 1000)]
        await order.options({options}).delay_many(calls)

asyncio.run(main())
"""


def used(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


def queue(made: Project, options: str = "") -> None:
    done = made.python(QUEUED.format(count=COUNT, options=options), timeout=300)
    assert done.returncode == 0, done.stderr


def memory(made: Project, client: Any) -> None:
    """Bytes of Redis a call, in each of its states."""
    print("bytes of Redis a call, with arguments of 20 bytes")
    client.flushall()
    empty = used(client)
    queue(made)
    waiting = used(client) - empty
    pending = sum(client.memory_usage(key) for key in list(client.scan_iter("celery-task-meta-*"))[:1000]) / 1000
    print(
        f"waiting in its queue                 {waiting / COUNT:,.0f}, of which {pending:,.0f} say that it is pending"
    )
    worker = made.worker("--concurrency", "200")
    wait_until(lambda: not client.exists("default") and not _held(client), 300, "all have run")
    print(f"its result, kept for a day           {(used(client) - empty) / COUNT:,.0f}")
    worker.stop()
    client.flushall()
    empty = used(client)
    queue(made, "countdown=86400")
    worker = made.worker()
    wait_until(lambda: client.zcard("core-delayed") == COUNT, 300, "all wait for their time")
    print(f"waiting for its time, with a worker  {(used(client) - empty) / COUNT:,.0f}")
    worker.stop()
    client.flushall()


def _held(client: Any) -> bool:
    return any(client.hlen(key) > 1 for key in client.scan_iter("core-held-*"))


def connections(made: Project, client: Any) -> None:
    """Connections to Redis that processes keep open."""
    print("connections to Redis")
    for options in (("--processes", "1"), ("--processes", "2"), ("--pool", "prefork", "--concurrency", "2"),
                    ("--pool", "threads", "--concurrency", "2")):  # fmt: skip
        before = len(client.client_list())
        worker = made.worker(*options)
        queue(made)
        wait_until(lambda: not client.exists("default") and not _held(client), 300, "all have run")
        print(f"core runworker {' '.join(options):34} {len(client.client_list()) - before}")
        worker.stop()
    before = len(client.client_list())
    scheduler = made.start("core", "scheduler", "start")
    scheduler.wait_for("Acquired lock")
    print(f"core scheduler start {'':28} {len(client.client_list()) - before}")
    scheduler.stop()


def main() -> None:
    with redis_server() as (url, _), project(None) as made, Redis.from_url(url) as client:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.environment["REDIS_URL"] = url
        memory(made, client)
        connections(made, client)


if __name__ == "__main__":
    main()
