"""A worker whose connection to Redis is lost while a call runs: the call runs once, and the worker goes on."""

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from marks import (
    core_transport,
    transport_pool,  # noqa: F401
)
from support import Project, held, redis_server, wait_until

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


class Swallowing:
    """A way to the server on which, from a moment on, what it says on the connections of then is lost."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port, self._target = self._server.getsockname()[1], port
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._deaf: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self) -> None:
        """From now on nothing comes back on the connections that are open."""
        self._deaf = {there for _, there in self._pairs}

    def _accept(self) -> None:
        while True:
            here, _ = self._server.accept()
            with suppress(OSError):  # the server has ended before its visitors
                there = socket.create_connection(("127.0.0.1", self._target))
                self._pairs.append((here, there))
                threading.Thread(target=self._pass, args=(here, there), daemon=True).start()
                threading.Thread(target=self._pass, args=(there, here), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source not in self._deaf:
                    sink.sendall(data)
        if source not in self._deaf:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)


@core_transport
def test_a_call_whose_taking_was_answered_into_the_void_runs(fresh: Project, pool: str) -> None:
    """Redis has recorded it as held by this worker, and this worker has never heard of it."""
    with redis_server() as (url, _), redis.Redis.from_url(url) as client:
        way = Swallowing(int(url.rpartition(":")[2].partition("/")[0]))
        fresh.environment |= {
            "REDIS_URL": f"redis://127.0.0.1:{way.port}/0",
            "CELERY": json.dumps({"broker_transport_options": {"health_check_interval": 1, "socket_timeout": 2}}),
        }
        worker = fresh.worker("--pool", pool, "--concurrency", "1", "--queue", "default")
        wait_until(lambda: client.info("clients")["blocked_clients"], 20, "it waits for calls")
        way.swallow()
        done = fresh.python("import asyncio\nfrom src.apps.probe.tasks import add\nasyncio.run(add.delay(1, 2))")
        assert done.returncode == 0, done.stderr

        wait_until(lambda: held(client), 10, "it is recorded as held")
        worker.wait_for("probe.tasks.add", 40)
        wait_until(lambda: not held(client), 20, "it is acknowledged")
        assert worker.popen.poll() is None
