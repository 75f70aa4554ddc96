"""A worker whose connection to Redis is lost while a call runs: the call runs once, and the worker goes on."""

import json
from pathlib import Path

import pytest
import redis
from support import Project, core_transport, held, wait_until

from core import embedded

LOSES = """
import asyncio, json, os, signal, sys
from pathlib import Path
import redis
from core import embedded
from src.apps.probe.tasks import add, nap

async def main():
    root = Path.cwd()
    call = await nap.delay(2, str(root / "marks"))
    while not (root / "marks").exists():
        await asyncio.sleep(0.02)
    server = embedded.find(root)
    {lose}
    said = [await call.get(timeout=30), await (await add.delay(1, 1)).get(timeout=30)]
    print(json.dumps([*said, await call.status()]))

asyncio.run(main())
"""
CONNECTION = 'redis.Redis(unix_socket_path=str(server.socket)).client_kill_filter(_type="normal", skipme=True)'
SERVER = "os.kill(server.pid, signal.SIGKILL)"


@core_transport
@pytest.mark.parametrize("lose", [CONNECTION, SERVER], ids=["connections closed", "server killed"])
def test_a_running_call_outlives_its_connection_and_runs_once(fresh: Project, pool: str, lose: str) -> None:
    worker = fresh.worker("--pool", pool, "--concurrency", "2")

    done = fresh.python(LOSES.format(lose=lose))

    assert done.returncode == 0, done.stderr + worker.text()
    assert json.loads(done.stdout) == [2, 2, "success"]
    assert (fresh.root / "marks").read_text().splitlines() == ["begun", "cleaned up"]
    assert worker.popen.poll() is None
    wait_until(lambda: not unacknowledged(fresh.root), 20, "the call is acknowledged over the next connection")
    assert worker.stop() == 0


def test_a_worker_that_cannot_go_on_says_so_with_its_exit_code(fresh: Project) -> None:
    """Whoever restarts workers looks at nothing else. What is no message at all still ends Celery's own consumer."""
    worker = fresh.worker("--pool", "threads", TASK_BROKER_TRANSPORT="stock")
    server = embedded.find(fresh.root)
    assert server is not None
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        client.lpush("default", "garbage")

    assert worker.wait() == 1


def unacknowledged(root: Path) -> int:
    """How many messages workers hold."""
    server = embedded.find(root)
    assert server is not None
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        return len(held(client))
