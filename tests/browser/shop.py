"""A small project as Flower shows it: a worker on each pool with its own queue, and calls that end in every way."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from support import Process, Project, free_port, project, redis_server, wait_until

#: The queue of the worker on each pool.
QUEUES = {"asyncio": "mail", "threads": "files", "prefork": "reports"}
SECRET = "correct-horse"

SETTINGS = """
from core.config import Settings


class AppSettings(Settings):
    task_queues: list[str] = ["mail", "files", "reports"]
"""
TASKS = """
import asyncio
import time

from core.tasks import TaskError, current, task


@task
async def send(to: str, subject: str = "Hello") -> dict[str, bool]:
    return {"sent": True}


@task
async def charge(order: int) -> None:
    raise ValueError(f"order {order} is paid already")


@task(max_retries=2, retry_delay=0.5)
async def fetch(name: str) -> str:
    if current().attempt == 1:
        raise TaskError("the server is busy")
    return name


@task(max_retries=2)
async def fetch_later(seconds: float) -> None:
    raise TaskError("the server is busy", retry_in=seconds)


@task
async def follow(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@task
def convert(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@task(sensitive=("password",))
async def register(name: str, password: str) -> str:
    if name == "nobody":
        raise ValueError("no such name")
    return name
"""
CALLS = f"""
import json, sys
from src.tasks import charge, convert, fetch, fetch_later, follow, register, send

def on(queue):
    def call(task, *args, **named):
        return task.options(queue=queue).delay_sync(*args, **named).id
    return {{
        "send": call(send, "ann@example.com", subject="Welcome!"), "charge": call(charge, 7),
        "fetch": call(fetch, "rates"), "fetch_later": call(fetch_later, 300), "follow": call(follow, 300),
        "convert": call(convert, 1.5), "register": call(register, "ann", {SECRET!r}),
        "register_nobody": call(register, "nobody", password={SECRET!r}),
    }}

print(json.dumps({{queue: on(queue) for queue in sys.argv[1:]}}))
"""
WIDTH = 1360
#: What the page of all tasks can show; without being told it leaves out some of it.
COLUMNS = ("name", "uuid", "state", "args", "kwargs", "result", "received", "started", "runtime", "worker")
#: What becomes of each call, as the page of all tasks says it after a while.
STATES = {
    "send": "SUCCESS", "charge": "FAILURE", "fetch": "SUCCESS", "fetch_later": "RETRY", "follow": "STARTED",
    "convert": "SUCCESS", "register": "SUCCESS", "register_nobody": "FAILURE",
}  # fmt: skip


def words(found: Any) -> str:
    """The text of a part of a page as it was sent: a style may show it in capitals."""
    return str(found.text_content()).strip()


class Shop:
    """The project, its workers, Flower, and a page of the browser."""

    def __init__(
        self, made: Project, workers: dict[str, Process], flower: Process, page: Any, port: int, *, ours: bool
    ) -> None:
        self.project, self.workers, self.flower, self.page = made, workers, flower, page
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)
        self.url = f"http://127.0.0.1:{port}"
        self.calls: dict[str, dict[str, str]] = {}
        #: Whether it is `core flower`.
        self.is_ours = ours

    def node(self, pool: str) -> str:
        """The name of the worker on a pool."""
        return f"{QUEUES[pool]}@shop"

    def api(self, path: str) -> Any:
        """What Flower's API answers."""
        return self.client.get(path).raise_for_status().json()

    def make_calls(self) -> None:
        """Make a call of each kind on each pool, and wait until Flower has seen what becomes of them."""
        queues = list(QUEUES.values())
        done = self.project.python(f"import sys; sys.argv[1:] = {queues}\n{CALLS}")
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        self.calls = {pool: made[queue] for pool, queue in QUEUES.items()}
        wait_until(lambda: all(self.states(pool) == STATES for pool in QUEUES), 15, "Flower has seen every call")

    def states(self, pool: str) -> dict[str, str]:
        """The state of each call on a pool, as Flower's API tells it."""
        seen = self.api("/api/tasks?limit=1000")
        return {name: seen.get(id, {}).get("state") for name, id in self.calls[pool].items()}

    def open(self, path: str) -> Any:
        """Look at a page; everything on it has been loaded."""
        answer = self.page.goto(self.url + path, wait_until="networkidle")
        assert answer.status == 200, (path, answer.status)
        return self.page

    def facts(self, pool: str, call: str) -> dict[str, str]:
        """What the page of one call says, by its labels."""
        return self.facts_of(self.calls[pool][call])

    def facts_of(self, task_id: str) -> dict[str, str]:
        """The same by the call's id."""
        rows = self.open(f"/task/{task_id}").locator(".detail-row").all()
        return {words(row.locator("dt")): words(row.locator("dd")) for row in rows}


@contextmanager
def shop(browser: Any, command: list[str]) -> Iterator[Shop]:
    """Start everything, and make the calls."""
    with redis_server() as (url, _), project(None) as made:
        made.environment["REDIS_URL"] = url
        made.write("src/settings.py", SETTINGS)
        made.write("src/tasks.py", TASKS)
        made.environment["TASK_WORKER_PROCESSES"] = "1"
        options = {pool: ("--queue", queue, "-c", "6", "--", "-n", f"{queue}@shop") for pool, queue in QUEUES.items()}
        started = {pool: made.start("core", "runworker", "--pool", pool, *options[pool]) for pool in QUEUES}
        for worker in started.values():
            worker.wait_for("serving ", 40)
        port = free_port()
        own = [] if command[0] == "core" else ["--address=127.0.0.1", f"--tasks_columns={','.join(COLUMNS)}"]
        flower = made.start(*command, f"--port={port}", *own, FLOWER_UNAUTHENTICATED_API="true")
        flower.wait_for("Visit me at")
        page = browser.new_page(viewport={"width": WIDTH, "height": 680}, device_scale_factor=0.68)
        opened = Shop(made, started, flower, page, port, ours=command[0] == "core")
        wait_until(lambda: len(opened.api("/api/workers?refresh=1")) == len(QUEUES), 20, "it knows the workers")
        for worker in started.values():
            worker.wait_for("Events of group {task} enabled by remote")
        opened.make_calls()
        yield opened
        page.close()
        opened.client.close()
        assert flower.stop() == 0
        assert "Traceback" not in flower.text()
