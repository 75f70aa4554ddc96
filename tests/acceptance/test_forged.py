"""What a message or a result that somebody else wrote to Redis cannot do, also where nobody signs."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from marks import core_transport
from redis import Redis
from support import Project, project, redis_server, wait_until

TASKS = """
import asyncio
from core.tasks import task


@task
async def add(a: int, b: int = 0) -> int:
    assert type(a) is int and type(b) is int
    return a + b


@task(timeout=1)
async def endless() -> None:
    while True:
        await asyncio.sleep(60)


@task
def twice(number: int) -> int:
    assert type(number) is int
    return 2 * number
"""
WRONG = "no-number-at-all"
#: Ways by which a call gets to a worker past `delay`, with an argument that does not fit.
PAST = {
    "apply_async": "add.celery_task.apply_async((W,))",
    "by name": "app.send_task('src.tasks.twice', (W,))",
    "keywords": "app.send_task('src.tasks.add', kwargs={'a': 1, 'b': W})",
    "too many": "app.send_task('src.tasks.add', (1, 2, W))",
    "no such": "app.send_task('src.tasks.add', (1,), {'c': W})",
    "map": "add.celery_task.map([W]).apply_async()",
    "starmap": "twice.celery_task.starmap([(W,)]).apply_async()",
    "chunks": "add.celery_task.chunks([(1, W)], 1).apply_async()[0]",
    "chain": "chain(add.s(1), add.si(W)).apply_async()",
    "callback": "add.celery_task.apply_async((1,), link=add.si(W).set(task_id='x')); r = app.AsyncResult('x')",
    "first protocol": "None; app.conf.task_protocol = 1; r = app.send_task('src.tasks.add', (W,))",
}


@pytest.fixture(scope="module")
def world(pool: str) -> Iterator[tuple[Project, Any, Any]]:
    with redis_server() as (url, _), project(None) as made, Redis.from_url(url, decode_responses=True) as client:
        made.write("src/__init__.py", "")
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        made.environment["REDIS_URL"] = url
        worker = made.worker("--pool", pool, "--concurrency", "2", "--loglevel", "debug")
        yield made, client, worker


def test_no_way_leads_past_the_validation_in_the_worker(world: tuple[Project, Any, Any]) -> None:
    made, _, _ = world
    tries = "".join(
        f"try:\n    r = {way}\n    print({name!r}, r.get(timeout=20))\n"
        f"except Exception as error:\n    print({name!r}, type(error).__name__, error)\n"
        for name, way in PAST.items()
    )
    names = f"from celery import chain\nfrom core.celery import app\nfrom src.tasks import add, twice\nW = {WRONG!r}\n"
    done = made.caller(names + tries)

    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ArgumentsError ") for line in done.stdout.splitlines() if " ArgumentsError " in line)
    assert list(said) == list(PAST), done.stdout
    assert all("was called wrongly" in each for each in said.values()), said
    assert WRONG not in done.stdout


@core_transport
def test_what_cannot_be_run_is_not_printed(world: tuple[Project, Any, Any]) -> None:
    """Its arguments may be secrets: the log has its name, its id and the reason, the dead list the rest."""
    _, client, worker = world
    secret = "pa55-in-a-message"
    body = base64.b64encode(json.dumps([[secret], {}, {}]).encode()).decode()
    message: dict[str, Any] = {
        "body": body, "content-type": "application/json", "content-encoding": "utf-8",
        "headers": {"task": "src.tasks.nobody", "id": "unknown", "argsrepr": secret, "lang": "py"},
        "properties": {"body_encoding": "base64", "delivery_tag": "1", "delivery_info": {"routing_key": "default"}},
    }  # fmt: skip
    other = json.loads(json.dumps(message))
    other["headers"] |= {"id": "no-body", "task": "src.tasks.add"}
    other["body"] = base64.b64encode(f"{secret}[".encode()).decode()
    pickled = json.loads(json.dumps(other))
    pickled["headers"]["id"], pickled["content-type"] = "pickled", "application/x-python-serialize"
    for each in (json.dumps(message), json.dumps(other), json.dumps(pickled), f'{{"{secret}'):
        client.lpush("default", each)

    worker.wait_for("[unknown] waits for another worker")
    wait_until(lambda: worker.text().count("was set aside") == 3, 20, "the others are set aside")
    assert secret not in worker.text()
    assert "[no-body] from default was set aside: its body cannot be read" in worker.text()


@pytest.mark.parametrize(
    "result",
    [
        {"exc_type": "system", "exc_module": "os", "exc_message": ["touch {file}"]},
        {"exc_type": "Popen", "exc_module": "subprocess", "exc_message": [["touch", "{file}"]]},
        {"exc_type": "eval", "exc_module": "builtins", "exc_message": ["open('{file}', 'w')"]},
        {"exc_type": "__import__('os').system('touch {file}')", "exc_module": "builtins", "exc_message": []},
    ],
    ids=["os.system", "Popen", "eval", "text"],
)
def test_a_result_makes_nobody_run_what_it_names(
    world: tuple[Project, Any, Any], tmp_path: Path, result: dict[str, Any]
) -> None:
    made, client, _ = world
    file = tmp_path / "made"
    written = json.loads(json.dumps(result).replace("{file}", str(file)))
    meta = {"status": "FAILURE", "result": written, "traceback": None, "children": [], "task_id": "planted"}
    client.set("celery-task-meta-planted", json.dumps(meta))

    done = made.caller(
        "from core.celery import app\nfrom core.tasks import TaskResult\nfrom src.tasks import add\n"
        "for get in (TaskResult('planted', add.arguments).get_sync, app.AsyncResult('planted').get):\n"
        "    try:\n        print('got', get(timeout=10))\n"
        "    except Exception as error:\n        print('raised', type(error).__name__)\n"
    )

    assert done.stdout.count("raised") == 2, done.stdout + done.stderr
    assert not file.exists()


@core_transport
def test_a_message_cannot_prolong_its_call(world: tuple[Project, Any, Any]) -> None:
    made, client, worker = world
    sent = made.caller(
        "from core.celery import app\nfrom src.tasks import endless\n"
        "print(endless.celery_task.apply_async(time_limit=9000, soft_time_limit=8000))"
    )
    id = sent.stdout.strip()

    wait_until(lambda: '"FAILURE"' in (client.get(f"celery-task-meta-{id}") or ""), 30, "it is ended")
    assert f"src.tasks.endless[{id}]" in worker.text()
