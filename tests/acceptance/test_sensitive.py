"""`sensitive=`: the values of these parameters are in the message and in the body, and nowhere that people look."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from marks import core_transport
from redis import Redis
from support import Process, Project, project, redis_server, wait_until

from core.tasks import OptionError, task

SECRET = "hunter2-in-clear"
TASKS = """
import asyncio, sys, time
from core.tasks import TaskError, current, periodic_task, task


@task(sensitive=("password", "more"), retry_delay=0.1, max_retries=1)
async def login(user: str, password: str, *more: str, tag: str = "", **rest: str) -> int:
    if current().attempt == 1 and tag == "again":
        raise TaskError("once more")
    if tag == "wait":
        await asyncio.sleep(60)
    if tag == "fail":
        raise ValueError("no")
    return len(password)


@task(sensitive="password")
def plain(password: str, seconds: float = 0) -> int:
    time.sleep(seconds)
    return len(password)


@task(sensitive=("code",), unique=True)
async def once(code: int) -> None: ...


@periodic_task(interval=1, kwargs={"password": "SECRET"}, sensitive="password")
async def tick(password: str) -> None: ...
""".replace("SECRET", SECRET)
CALLS = """
import asyncio
from celery import chain, chord
from core.celery import app
from src.tasks import login, once, plain

S = "hunter2-in-clear"

async def main():
    calls = [
        await login.delay("ann", S),
        await login.delay("ann", password=S),
        await login.delay("ann", S, S, S, tag="again"),
        await login.delay("ann", S, tag="fail"),
        *await plain.delay_many([(S,), {"password": S}]),
        await login.options(countdown=0.3).delay(user="ann", password=S, extra="open"),
    ]
    for call in calls:
        print(repr(call))
        try:
            print(await call.get(timeout=30))
        except ValueError:
            print("no")

asyncio.run(main())
for result in (
    chain(login.s("ann", S), login.si("bob", S)).delay(), chord([plain.s(S)], login.si("c", S)).delay(),
    login.celery_task.apply_async(("ann", S), link=plain.si(S), argsrepr=S, kwargsrepr=S),
    app.send_task("src.tasks.plain", (S,)),
):
    print(result.get(timeout=30))
app.send_task("src.tasks.plain", kwargs={"wrong": S})
app.send_task("src.tasks.login", ("ann", [S]))
"""


@pytest.fixture
def world() -> Iterator[tuple[Project, Any]]:
    with redis_server() as (url, _), project(None) as made, Redis.from_url(url, decode_responses=True) as client:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.environment["REDIS_URL"] = url
        yield made, client


def everything(client: Any) -> str:
    """What is stored in Redis, but for the messages and the schedule, which have to have it."""
    texts = []
    for key in client.scan_iter("*"):
        if key.startswith("celery-task-meta"):
            texts.append(client.get(key))
        if key == "core-dead-calls":
            texts += [{**json.loads(entry), "message": ""} for entry in client.hvals(key)]
    return repr(texts)


def seen_by_flower(made: Project) -> Process:
    """Every event of the workers, as Flower gets it."""
    script = (
        "from core.celery import app\n"
        "with app.connection() as connection:\n"
        "    receiver = app.events.Receiver(connection, handlers={'*': lambda event: print(event, flush=True)})\n"
        "    print('ready', flush=True)\n"
        "    receiver.capture(limit=None, wakeup=False)\n"
    )
    watcher = made.start(sys.executable, "-c", script)
    watcher.wait_for("ready")
    return watcher


@core_transport
def test_no_log_event_result_or_list_shows_it(world: tuple[Project, Any], pool: str) -> None:
    made, client = world
    events = seen_by_flower(made)
    worker = made.worker("--pool", pool, "--concurrency", "4", "--loglevel", "debug", "--", "--events")
    scheduler = made.start("core", "scheduler", "start", "--loglevel", "debug")

    done = made.caller(CALLS, CELERY='{"task_send_sent_event": true}', timeout=90)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split().count("16") == 10
    wait_until(lambda: client.hlen("core-dead-calls") == 3, 20, "three failed")
    worker.wait_for("src.tasks.tick[")
    events.wait_for("task-succeeded")
    listed = [made.run("core", "dead", "list"), made.run("core", "dead", "list", "--json")]
    for id in client.hkeys("core-dead-calls"):
        listed += [made.run("core", "dead", "show", id), made.run("core", "dead", "show", id, "--json")]
    listed += [made.run("core", "scheduler", *words) for words in (("list",), ("status",), ("status", "--json"))]
    for text in (
        worker.text(), scheduler.text(), events.text(), done.stdout + done.stderr, everything(client),
        *(one.stdout + one.stderr for one in listed),
    ):  # fmt: skip
        assert text.strip()
        at = text.find(SECRET)
        assert at < 0, text[max(at - 300, 0) : at + 100]
    assert "'ann', '********'" in events.text()
    assert '"args": ["ann", "********"]' in everything(client)
    assert "'ann', '********'" in "".join(one.stdout for one in listed)


@core_transport
def test_who_inspects_a_worker_does_not_see_it(world: tuple[Project, Any], pool: str) -> None:
    made, client = world
    made.worker("--pool", pool, "--concurrency", "2")
    queued = made.caller(
        f"from src.tasks import login, plain\nS = {SECRET!r}\n"
        "print(login.delay_sync('ann', S, tag='wait').id, plain.delay_sync(S, 60).id)\n"
        "print(login.delay_sync('ann', S, countdown=60).id)"
    )
    ids = queued.stdout.split()
    stored = [f"celery-task-meta-{id}" for id in ids[:2]]
    wait_until(lambda: all("STARTED" in (client.get(key) or "") for key in stored), 20, "they run")

    shown = ""
    for what in (("active",), ("reserved",), ("scheduled",), ("query_task", *ids)):
        done = made.run("celery", "-A", "core", "inspect", *what, "--json")
        assert done.returncode == 0, done.stderr
        shown += done.stdout + done.stderr
    assert all(id in shown for id in ids[:2])
    assert SECRET not in shown
    assert "********" in shown


@pytest.mark.parametrize(
    ("sensitive", "said"),
    [
        ("pasword", "sensitive names 'pasword', and f has no such parameter"),
        (("password", 5), "sensitive=('password', 5) is not a tuple of parameters' names"),
        (True, "sensitive=True is not a tuple"),
    ],
)
def test_what_names_no_parameter_is_refused_at_import(sensitive: Any, said: str) -> None:
    with pytest.raises(OptionError) as caught:

        @task(sensitive=sensitive)
        async def f(password: str) -> None: ...

    assert said in str(caught.value)


def test_the_body_gets_it_and_a_retry_from_the_dead_list_as_well(world: tuple[Project, Any]) -> None:
    made, client = world
    worker = made.worker()
    queued = made.caller(f"from src.tasks import login\nprint(login.delay_sync('ann', {SECRET!r}, tag='fail').id)")
    id = queued.stdout.strip()
    wait_until(lambda: client.hexists("core-dead-calls", id), 20, "it failed")
    made.write("src/tasks.py", TASKS.replace('raise ValueError("no")', "return len(password)"))
    worker.stop()
    made.worker()

    assert made.run("core", "dead", "retry", id).returncode == 0
    wait_until(lambda: '"result": 16' in (client.get(f"celery-task-meta-{id}") or ""), 20, "it has run")
