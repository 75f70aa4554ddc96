"""A worker's own resources, `@worker_lifespan`: real clients that live as long as a process, on every pool."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import Process, Project, project, wait_until

CALLS = 50
WAYS = ("http", "database", "cache")

CLIENTS = """
import asyncio
import os

import httpx
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from core.tasks import task, worker_lifespan
from src.marks import mark

clients = {}


@worker_lifespan
async def outer():
    mark("outer begins")
    yield
    mark("outer ends")


@worker_lifespan
async def resources():
    engine = create_async_engine("sqlite+aiosqlite:///:memory:")
    async with httpx.AsyncClient(base_url=os.environ["HTTP"]) as http, Redis.from_url(os.environ["CACHE"]) as cache:
        clients.update(http=http, database=engine, cache=cache, loop=asyncio.get_running_loop())
        mark("resources begins")
        yield
        mark("resources ends")
    await engine.dispose()


def body(way):
    mark(way)
    assert asyncio.get_running_loop() is clients["loop"]
    return clients[way]


@task
async def through_http(number: int) -> int:
    return int((await body("http").get(f"/{number}")).text)


@task
async def through_database(number: int) -> int:
    async with body("database").connect() as connection:
        return (await connection.execute(text("select :number"), {"number": number})).scalar_one()


@task
async def through_cache(number: int) -> int:
    return int(await body("cache").execute_command("ECHO", number))
"""
MARKS = """
import os


def mark(what):
    with open(os.environ["MARKS"], "a") as file:
        file.write(f"{os.getpid()} {what}\\n")
"""
CALLER = """
import asyncio
import json

from src.apps.clients.tasks import through_cache, through_database, through_http


async def main(calls):
    for way in (through_http, through_database, through_cache):
        one_by_one = [await (await way.delay(n)).get(timeout=20) for n in range(calls)]
        sent = await asyncio.gather(*(way.delay(n) for n in range(calls)))
        at_once = await asyncio.gather(*(call.get(timeout=20) for call in sent), return_exceptions=True)
        print(json.dumps([one_by_one, [value if isinstance(value, int) else repr(value) for value in at_once]]))
"""


class Echo(BaseHTTPRequestHandler):
    """Answers with the path it was asked for."""

    protocol_version = "HTTP/1.1"  # connections stay open, as a client that lives long expects
    wbufsize = -1  # one packet an answer

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.path) - 1))
        self.end_headers()
        self.wfile.write(self.path[1:].encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def made() -> Iterator[Project]:
    """A project whose worker has clients of its own, and the servers for them."""
    with project() as made, ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.write("src/apps/clients/tasks.py", CLIENTS)
        made.write("src/marks.py", MARKS)
        made.environment |= {
            "HTTP": f"http://127.0.0.1:{server.server_port}",
            "CACHE": f"unix://{made.root}/.core/broker.sock",
            "PYTHONWARNINGS": "always::ResourceWarning",
        }
        yield made
        server.shutdown()


@dataclass
class Run:
    """What a worker did from its start to a warm stop."""

    pool: str
    exit_code: int
    log: str
    values: dict[str, list[list[Any]]]
    marks: dict[str, list[str]]


@pytest.fixture(scope="module")
def ran(made: Project, pool: str) -> Run:
    """One worker on each pool, all the calls through its clients, and its stop."""
    file = made.root / f"marks-{pool}"
    worker = made.worker("--pool", pool, "--concurrency", "2", MARKS=str(file))
    called = made.python(f"{CALLER}\nasyncio.run(main({CALLS}))")
    assert called.returncode == 0, called.stderr + worker.text()
    values = dict(zip(WAYS, map(json.loads, called.stdout.splitlines()), strict=True))
    return Run(pool, worker.stop(), worker.text(), values, marks_of(file))


def marks_of(file: Path) -> dict[str, list[str]]:
    """What was marked, by process."""
    found: dict[str, list[str]] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        pid, _, what = line.partition(" ")
        found.setdefault(pid, []).append(what)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_calls_one_by_one_and_at_once_go_through_a_client_of_the_lifespan(ran: Run, way: str) -> None:
    one_by_one, at_once = ran.values[way]

    assert one_by_one == list(range(CALLS))
    assert at_once == list(range(CALLS))


def test_nothing_of_the_clients_is_left_open_or_on_another_loop(ran: Run) -> None:
    told = ("unclosed", "never closed", "never awaited", "loop is closed", "different loop", "destroyed", "Traceback")

    assert ran.exit_code == 0
    assert [line for line in ran.log.splitlines() if any(word in line for word in told)] == []


def test_each_process_enters_before_its_first_call_and_leaves_after_its_last(ran: Run) -> None:
    assert len(ran.marks) == (2 if ran.pool == "prefork" else len(ran.marks))
    for marks in ran.marks.values():
        assert marks[:2] == ["outer begins", "resources begins"]
        assert marks[-2:] == ["resources ends", "outer ends"]
        assert set(marks[2:-2]) <= set(WAYS)
    assert sum(len(marks) - 4 for marks in ran.marks.values()) == 2 * CALLS * len(WAYS)


FRAGILE = """
import asyncio
from pathlib import Path

from core.tasks import task, worker_lifespan
from src.marks import mark


@worker_lifespan
async def database():
    if Path("down").exists():
        raise ConnectionError("the database is down")
    mark("begins")
    yield
    mark("ends")


@task
async def wait(seconds: float):
    mark("body begins")
    try:
        await asyncio.sleep(seconds)
    finally:
        mark("body ends")
"""
FAILED = (
    "the lifespan database (src/apps/fragile/tasks.py:9) failed at its start: ConnectionError: the database is down"
)


@pytest.fixture
def fragile() -> Iterator[Project]:
    """A project whose lifespan can fail, and whose bodies take their time."""
    with project() as made:
        made.write("src/apps/fragile/tasks.py", FRAGILE)
        made.write("src/marks.py", MARKS)
        yield made


def call_wait(made: Project, seconds: float, marks: Path) -> None:
    """Have a worker run the body, and return when it has begun."""
    assert made.python(f"from src.apps.fragile.tasks import wait\nwait.delay_sync({seconds})").returncode == 0
    wait_until(lambda: "body begins" in marks.read_text(), 10, "the body began")


def test_a_worker_whose_lifespan_fails_takes_no_call_and_exits_with_1(
    fragile: Project, pool: str, tmp_path: Path
) -> None:
    fragile.write("down", "")
    worker = fragile.start("core", "runworker", "--pool", pool, "-c", "2", MARKS=str(tmp_path / "marks"))

    assert worker.wait() == 1
    text = worker.text()
    assert text.count(FAILED) == 1 + (pool == "asyncio")  # each of its two nodes says it
    assert "serving" not in text
    assert marks_of(tmp_path / "marks") == {}


def test_who_is_stopped_twice_leaves_its_lifespans_once_its_bodies_have_ended(
    fragile: Project, pool: str, tmp_path: Path
) -> None:
    file = tmp_path / "marks"
    worker = fragile.worker("--pool", pool, "-c", "2", MARKS=str(file))
    call_wait(fragile, 60, file)
    worker.signal(signal.SIGINT)
    worker.wait_for("stopping: ")
    worker.signal(signal.SIGINT)

    assert worker.wait() == 130
    assert ["begins", "body begins", "body ends", "ends"] in marks_of(file).values()
    assert all(marks[-1] == "ends" for marks in marks_of(file).values())


def test_a_pool_process_that_cannot_be_replaced_ends_its_worker(fragile: Project, tmp_path: Path) -> None:
    """Its replacement fails at its start: the others finish what they run, and nobody tries again and again."""
    file = tmp_path / "marks"
    worker: Process = fragile.worker("--pool", "prefork", "-c", "2", MARKS=str(file))
    call_wait(fragile, 6, file)  # Celery may notice a process that died after five seconds only
    fragile.write("down", "")
    idle = next(pid for pid, marks in marks_of(file).items() if marks == ["begins"])
    os.kill(int(idle), signal.SIGKILL)

    assert worker.wait() == 1
    assert worker.text().count(FAILED) == 1
    assert "stopping: 1 running call may finish" in worker.text()
    assert ["begins", "body begins", "body ends", "ends"] in marks_of(file).values()
    assert worker.text().count("exited with 'exitcode 1'") <= 3
