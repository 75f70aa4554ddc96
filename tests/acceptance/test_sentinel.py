"""Redis with Sentinel: a server that dies is replaced, and callers, workers and scheduler find the new one."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from redis import Redis
from redis.exceptions import RedisError
from support import Project, project, redis_server, temporary_directory, valkey_binary, wait_until

PASSWORD = "s3cr3t/+@:"
OF_THE_SENTINEL = "0ther;s3cr3t"
SENTINEL = """
port {port}
bind 127.0.0.1
dir {directory}
requirepass "{own}"
sentinel monitor mymaster 127.0.0.1 {master} 1
sentinel auth-pass mymaster {password}
sentinel down-after-milliseconds mymaster 1000
sentinel failover-timeout mymaster 3000
"""


@dataclass
class Watched:
    """A master with a replica, and a sentinel that watches them."""

    url: str
    port: int
    master: "subprocess.Popen[bytes]"

    def client(self) -> "Redis":
        """A client of the sentinel."""
        return Redis(port=self.port, password=OF_THE_SENTINEL, decode_responses=True)

    def master_port(self) -> int:
        """The port of whichever server is the master now."""
        with self.client() as asked:
            return int(asked.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")[1])


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def watched() -> Iterator[Watched]:
    """Two servers and a sentinel of the test's own, in step with each other."""
    secured = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0")
    with ExitStack() as stack:
        url, master = stack.enter_context(redis_server(*secured))
        master_port = url.rpartition(":")[2].partition("/")[0]
        replica_url, _ = stack.enter_context(redis_server(*secured, "--replicaof", "127.0.0.1", master_port))
        directory = Path(stack.enter_context(temporary_directory("core-sentinel-")))
        port = free_port()
        text = SENTINEL.format(port=port, directory=directory, own=OF_THE_SENTINEL, master=master_port,
                               password=PASSWORD)  # fmt: skip
        (directory / "sentinel.conf").write_text(text)
        sentinel = subprocess.Popen(
            [valkey_binary(), str(directory / "sentinel.conf"), "--sentinel"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(sentinel.wait)
        stack.callback(sentinel.kill)
        options = f"master_name=mymaster&sentinel_password={quote(OF_THE_SENTINEL, safe='')}"
        nobody = free_port()  # one of the sentinels is down all the time
        made = Watched(
            f"sentinel://:{quote(PASSWORD, safe='')}@127.0.0.1:{nobody},127.0.0.1:{port}/2?{options}", port, master
        )

        def in_step() -> bool:
            try:
                with made.client() as asked, Redis.from_url(replica_url, password=PASSWORD) as replica:
                    known = asked.execute_command("SENTINEL", "REPLICAS", "mymaster")
                    return bool(known) and replica.info("replication")["master_link_status"] == "up"
            except RedisError:
                return False

        wait_until(in_step, 20, "the sentinel knows both servers, and the replica follows")
        yield made


@pytest.fixture(params=["core", "stock"])
def guarded(request: pytest.FixtureRequest) -> Iterator[tuple[Project, Watched]]:
    """A project whose Redis is watched by a sentinel, with either way of taking calls."""
    with watched() as servers, project() as made:
        made.environment |= {
            "REDIS_URL": servers.url,
            "TASK_BROKER_TRANSPORT": str(request.param),
            "TASK_LEASE": "5",
        }
        yield made, servers


#: Calls across a failover. A call that is refused meanwhile is made again, as anybody would.
ACROSS = """
import asyncio, json, os, signal, sys, time
from core.tasks import PublishError
from src.apps.probe.tasks import add, nap

async def patiently(task, *args):
    refused = 0
    while True:
        try:
            return await task.delay(*args), refused
        except PublishError as error:
            refused += 1
            await asyncio.sleep(0.2)

async def main():
    first, _ = await patiently(add, 1, 1)
    before = await first.get(timeout=20)
    running, _ = await patiently(nap, float(sys.argv[2]))
    awaited = asyncio.create_task(running.get(timeout=40))
    while await running.status() != ("running" if float(sys.argv[2]) else "success"):
        await asyncio.sleep(0.02)
    os.kill(int(sys.argv[1]), signal.SIGKILL)
    began = time.monotonic()
    call, refused = await patiently(add, 2, 2)
    after = await call.get(timeout=30)
    seconds = time.monotonic() - began
    print(json.dumps([before, await awaited, after, seconds, refused]))

asyncio.run(main())
"""


def test_calls_go_on_after_a_failover_and_no_result_is_missed(guarded: tuple[Project, Watched]) -> None:
    made, servers = guarded
    worker = made.worker("--pool", "threads", "--concurrency", "4")
    scheduler = made.start("core", "scheduler", "start")
    scheduler.wait_for("Sending due task")
    old = servers.master_port()
    # Celery's own consumer ends with its connection where a call runs and the server is gone as well.
    seconds = "0" if made.environment["TASK_BROKER_TRANSPORT"] == "stock" else "3"

    done = made.run(sys.executable, "-c", ACROSS, str(servers.master.pid), seconds)

    assert done.returncode == 0, done.stderr + worker.text()
    before, awaited, after, took, _ = json.loads(done.stdout)
    assert (before, awaited, after) == (2, float(seconds), 4)
    assert took < 20
    assert servers.master_port() != old
    assert worker.popen.poll() is None
    told = len(scheduler.text())
    wait_until(lambda: "Sending due task" in scheduler.text()[told:], 30, "the schedule goes on")
    assert scheduler.popen.poll() is None
    assert worker.stop() == 0


#: Waits for the result of a call that nobody made, and asks a silent server after a second instead of ten.
WAITS = """
import asyncio
from core.tasks import TaskResult, listener

listener.SILENCE = listener.ANSWER = 1.0

async def main():
    waiting = asyncio.create_task(TaskResult.from_id("somewhere-else").get(timeout=60))
    await asyncio.sleep(0)
    print("waits", flush=True)
    print(await waiting)

asyncio.run(main())
"""


def test_who_waits_on_a_server_that_is_gone_without_a_word_finds_the_new_one() -> None:
    """A host that loses its power closes no connection: the subscription is just silent."""
    with watched() as servers, project() as made:
        waiter = made.start(sys.executable, "-c", WAITS, REDIS_URL=servers.url)
        waiter.wait_for("waits")
        old = servers.master_port()
        with Redis(port=old, password=PASSWORD) as client:
            wait_until(lambda: client.pubsub_numsub("celery-task-meta-somewhere-else")[0][1], 20, "it has subscribed")
        servers.master.send_signal(signal.SIGSTOP)
        wait_until(lambda: servers.master_port() != old, 30, "there is another master")
        with Redis(port=servers.master_port(), db=2, password=PASSWORD) as client:
            client.set("celery-task-meta-somewhere-else", '{"status": "SUCCESS", "result": "found"}')

        waiter.wait_for("found", timeout=30)

        assert waiter.wait() == 0


def test_no_command_and_no_log_shows_a_password(guarded: tuple[Project, Watched]) -> None:
    made, servers = guarded
    worker = made.worker("--pool", "threads", "--loglevel", "debug")
    scheduler = made.start("core", "scheduler", "start", "--loglevel", "debug")
    scheduler.wait_for("Sending due task")
    shown = []
    for command in (("core", "config"), ("celery", "-A", "core", "report"), ("celery", "-A", "core", "inspect", "conf"),
                    ("core", "scheduler", "list"), ("core", "health", "broker")):  # fmt: skip
        done = made.run(*command)
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout + done.stderr)
    servers.master.send_signal(signal.SIGKILL)
    worker.wait_for("Connection to broker lost", timeout=30)
    wait_until(lambda: "stands still" in scheduler.text(), 30, "the scheduler says that its server is away")

    for text in (*shown, worker.text(), scheduler.text()):
        for password in (PASSWORD, OF_THE_SENTINEL):
            assert password not in text
            assert quote(password, safe="") not in text
            assert "s3cr3t" not in text
