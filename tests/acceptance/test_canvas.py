"""Celery underneath: canvas, stock producers and commands, and other Celery applications beside ours."""

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import chain
from marks import core_transport
from redis import Redis
from support import Process, Project, wait_until

from core.tasks import ArgumentsError, TaskResult

#: Sends every canvas the way a program of Celery's users does, and prints what came back.
SCRIPT = """
import json
from datetime import UTC, datetime
from celery import chain, chord, group
from celery.result import AsyncResult
from src.apps.probe.tasks import Order, add, add_sync, context, permanent, risky, total, typed

calls = {
    "chain": chain(add.s(1, 2), add_sync.s(10), add.s(100)),
    "immutable": chain(add.s(1, 2), add.si(10, 20)),
    "group": group(add.s(i, i) for i in range(5)),
    "chord": chord([add.s(i, 0) for i in range(10)], total.s()),
    "retried": chain(risky.si("marks-of-canvas", 1), add.s(10)),
    "model": typed.si(model=Order(number=1, placed=datetime(2030, 1, 1, tzinfo=UTC))),
}
sent = {name: canvas.apply_async() for name, canvas in calls.items()}
seen = {name: result.get(timeout=30) for name, result in sent.items()}

broken = chain(permanent.si(), add.si(1, 1)).apply_async()
try:
    broken.get(timeout=30)
except Exception as error:
    seen["broken"] = type(error).__name__

stock = context.celery_task.apply_async(queue="other", countdown=0.1)
seen["apply_async"] = [stock.id, stock.get(timeout=30)]

ours = add.delay_sync(2, 3)
stock = AsyncResult(ours.id, app=add.celery_task.app)
seen["ours"] = [stock.get(timeout=30), stock.state]
print(json.dumps(seen))
"""


@pytest.fixture(scope="session")
def canvas(example: Project, worker: Process) -> dict[str, Any]:
    """What became of every canvas of the script on this pool."""
    (example.root / "marks-of-canvas").unlink(missing_ok=True)
    done = example.python(SCRIPT)
    assert done.returncode == 0, f"{done.stderr}\n{worker.text()[-5000:]}"
    return dict(json.loads(done.stdout))


def test_a_chain_hands_each_result_to_the_next_task(canvas: dict[str, Any]) -> None:
    assert canvas["chain"] == 113


def test_an_immutable_signature_ignores_the_result_before_it(canvas: dict[str, Any]) -> None:
    assert canvas["immutable"] == 30


def test_a_group_runs_all_its_calls(canvas: dict[str, Any]) -> None:
    assert canvas["group"] == [0, 2, 4, 6, 8]


def test_a_chord_calls_its_body_with_all_results(canvas: dict[str, Any]) -> None:
    assert canvas["chord"] == 45


def test_a_task_in_a_chain_is_retried_and_the_chain_goes_on(canvas: dict[str, Any], example: Project) -> None:
    assert canvas["retried"] == 12
    assert (example.root / "marks-of-canvas").read_text() == "attempt 1\nattempt 2\n"


def test_a_chain_ends_with_the_error_of_a_task_in_it(canvas: dict[str, Any]) -> None:
    assert canvas["broken"] == "OwnError"


def test_models_travel_in_signatures(canvas: dict[str, Any]) -> None:
    assert canvas["model"]["kinds"] == {"model": "Order"}
    assert canvas["model"]["model"] == {"number": 1, "placed": "2030-01-01T00:00:00Z"}


def test_apply_async_of_the_celery_task_runs_like_a_call_of_ours(canvas: dict[str, Any]) -> None:
    id, seen = canvas["apply_async"]

    assert (seen["id"], seen["queue"]) == (id, "other")


def test_a_result_of_ours_is_a_result_of_celerys(canvas: dict[str, Any]) -> None:
    assert canvas["ours"] == [5, "SUCCESS"]


@pytest.mark.usefixtures("example")
def test_a_signature_refuses_what_json_has_not_by_name() -> None:
    from src.apps.probe.tasks import add

    with pytest.raises(ArgumentsError, match="b holds NaN"):
        add.s(1, b=float("nan"))


@pytest.mark.usefixtures("worker")
def test_another_program_with_stock_celery_calls_by_name(example: Project) -> None:
    """It has neither our package nor the task's code, only the broker's address."""
    address = f"redis+socket://{example.root / '.core' / 'broker.sock'}"
    done = example.python(f"""
from celery import Celery
app = Celery(broker={address!r}, backend={address!r})
print(app.send_task("src.apps.probe.tasks.add", args=[20, 22], queue="default").get(timeout=20))
""")

    assert done.stdout == "42\n", done.stderr


@pytest.mark.usefixtures("worker")
async def test_celery_call_queues_a_call_and_prints_its_id(example: Project) -> None:
    done = await asyncio.to_thread(
        example.run, "celery", "-A", "core", "call", "src.apps.probe.tasks.add", "--args", "[20, 22]"
    )

    assert done.returncode == 0, done.stderr
    assert await TaskResult.from_id(done.stdout.strip()).get(timeout=20) == 42


def inspect(project: Project, worker: Process, what: str) -> str:
    """What `celery inspect` prints of this worker. It waits until its answer is there."""
    node = f"worker-{worker.pid}@{socket.gethostname()}"
    done = project.run("celery", "-A", "core", "inspect", what, "--destination", node, "--timeout", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_celery_inspect_ping_finds_the_worker(example: Project, worker: Process) -> None:
    assert "pong" in inspect(example, worker, "ping")


def test_celery_inspect_registered_names_the_projects_tasks(example: Project, worker: Process) -> None:
    registered = inspect(example, worker, "registered")

    for name in ("src.apps.emails.tasks.send_email", "src.apps.tokens.tasks.cleanup_expired_tokens"):
        assert name in registered


async def test_celery_inspect_active_names_a_running_call(example: Project, worker: Process, tmp_path: Path) -> None:
    from src.apps.probe.tasks import nap

    file = tmp_path / "marks"
    result = await nap.delay(30, str(file))
    await asyncio.to_thread(wait_until, file.exists, 20, "the body began")

    active = await asyncio.to_thread(inspect, example, worker, "active")
    await result.cancel()

    assert result.id in active


def test_celery_report_shows_no_password(fresh: Project) -> None:
    done = fresh.run("celery", "-A", "core", "report", REDIS_URL="redis://user:s3cret@127.0.0.1:1/0")

    assert done.returncode == 0, done.stderr
    assert "127.0.0.1:1" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize("pool_option", ["prefork", "threads"])
def test_celery_worker_is_the_same_worker(fresh: Project, pool_option: str) -> None:
    worker = fresh.start(
        "celery", "-A", "core", "worker", "--pool", pool_option, "--concurrency", "1", "--loglevel", "INFO"
    )
    worker.wait_for("serving ")
    done = fresh.python("""
from src.apps.probe.tasks import elsewhere, module_lock
module_lock.delay_sync().get_sync(timeout=20)
print(elsewhere.delay_sync().get_sync(timeout=20))
""")

    assert done.stdout == "other\n", done.stderr
    assert worker.stop() == 0
    assert "Traceback" not in worker.text()


@pytest.mark.usefixtures("worker")
def test_another_celery_application_of_the_process_keeps_its_place(example: Project) -> None:
    """Its `current_app`, its shared tasks and its results are not ours to take."""
    done = example.python("""
from celery import Celery, current_app, shared_task

other = Celery("other", broker="memory://", backend="cache+memory://")

@shared_task
def triple(number):
    return 3 * number

from src.apps.probe.tasks import add

print(add.delay_sync(1, 1).get_sync(timeout=20))
print(current_app.main, triple.app.main, add.celery_task.app.main)
print("src.apps.probe.tasks.add" in other.tasks, triple.apply(args=(2,)).get())
""")

    assert done.stdout == "2\nother other core\nFalse 6\n", done.stderr


@pytest.fixture
def celery_config() -> dict[str, Any]:
    """For Celery's in-process fixtures: a broker in memory."""
    return {"broker_url": "memory://", "result_backend": "cache+memory://"}


@pytest.fixture
def celery_worker_parameters() -> Iterator[dict[str, Any]]:
    """Celery's worker in this process silences its log for good; other tests want to read it."""
    level = logging.root.level
    yield {}
    logging.root.setLevel(level)


@core_transport
async def test_celerys_in_process_fixtures_work_beside_us(
    celery_app: celery.Celery, celery_worker: Any, example: Project
) -> None:
    """A project that moves over keeps its old tests: their canvas goes to their worker, our calls to our broker."""
    from src.apps.probe.tasks import add

    @celery_app.task
    def product(a: int, b: int) -> int:
        return a * b

    celery_worker.reload()
    theirs = chain(product.s(2, 3), product.s(7)).delay()
    ours = await add.delay(6, 7, countdown=3600)

    assert await asyncio.to_thread(theirs.get, timeout=20) == 42
    with Redis(unix_socket_path=str(example.root / ".core" / "broker.sock")) as broker:
        # A worker of another test may have parked it until its time comes.
        messages = [*broker.lrange("default", 0, -1), *broker.hvals("core-delayed-calls")]
    assert [message for message in messages if ours.id.encode() in message]
    assert celery.current_app.main == celery_app.main
    await ours.cancel()
