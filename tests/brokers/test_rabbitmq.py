"""What the users' page shows, with RabbitMQ as the broker: results and the schedule stay in Redis."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from brokers.rabbitmq import RabbitMQ
from support import Process, Project, eventually, wait_until

from core.errors import TaskRevoked, TaskTimeout


def marks(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def own(fresh: Project, on_rabbitmq: None, example: Project) -> Project:
    """A project whose calls are in queues of its own, since all projects here share one broker."""
    queue = f"own-{fresh.root.parent.name}"
    fresh.environment |= {**example.environment, "TASK_DEFAULT_QUEUE": queue, "TASK_QUEUES": f"{queue}-b"}
    return fresh


def call(project: Project, code: str, **environment: str) -> str:
    """What a process of the project prints that makes calls."""
    done = project.python(
        "import asyncio\nfrom core.tasks import TaskResult\nfrom src.apps.probe.tasks import add, nap, echo\n"
        f"async def main():\n{code}\nasyncio.run(main())\n",
        **environment,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


@pytest.mark.usefixtures("worker")
async def test_a_call_runs_and_its_result_comes_back() -> None:
    from src.apps.emails.tasks import send_email

    result = await send_email.delay("user@example.com", "Hello", "Welcome!")

    assert await result.get(timeout=20) == {"sent": True}
    assert await result.status() == "success"


@pytest.mark.usefixtures("worker")
async def test_many_calls_at_once_are_all_run() -> None:
    from src.apps.probe.tasks import add

    results = await asyncio.gather(*(add.delay(number, 1) for number in range(100)))

    assert [await result.get(timeout=30) for result in results] == [number + 1 for number in range(100)]


@pytest.mark.usefixtures("worker")
async def test_a_countdown_is_kept() -> None:
    from src.apps.probe.tasks import add

    began = time.monotonic()
    result = await add.delay(1, 1, countdown=1.5)

    assert await result.status() == "pending"
    assert await result.get(timeout=20) == 2
    assert time.monotonic() - began > 1.4


@pytest.mark.usefixtures("worker")
async def test_a_call_is_tried_again(tmp_path: Path) -> None:
    from src.apps.probe.tasks import risky

    assert await (await risky.delay(str(tmp_path / "marks"), 1)).get(timeout=20) == 2


@pytest.mark.usefixtures("worker")
async def test_a_timeout_ends_a_body(tmp_path: Path) -> None:
    from src.apps.probe.tasks import slow

    with pytest.raises(TaskTimeout):
        await (await slow.delay(str(tmp_path / "marks"))).get(timeout=20)
    assert marks(tmp_path / "marks") == ["cleaned up"]


@pytest.mark.usefixtures("worker")
async def test_a_running_call_can_be_cancelled(tmp_path: Path) -> None:
    from src.apps.probe.tasks import nap

    result = await nap.delay(30, str(tmp_path / "marks"))
    await eventually(lambda: _is(result.status(), "running"), 20, "it runs")

    assert await result.cancel()
    with pytest.raises(TaskRevoked):
        await result.get(timeout=20)
    wait_until(lambda: marks(tmp_path / "marks") == ["begun", "cancelled", "cleaned up"], 20, "its body has ended")


async def _is(status: object, wanted: str) -> bool:
    return await status == wanted  # type: ignore[misc]


@pytest.mark.usefixtures("worker")
async def test_a_pending_call_that_is_cancelled_never_runs(tmp_path: Path) -> None:
    from src.apps.probe.tasks import add, nap

    result = await nap.delay(0, str(tmp_path / "marks"), countdown=2)
    assert await result.cancel()

    with pytest.raises(TaskRevoked):
        await result.get(timeout=20)
    await (await add.delay(1, 1, countdown=2.5)).get(timeout=20)
    assert marks(tmp_path / "marks") == []


async def test_a_connection_that_rabbitmq_has_closed_is_opened_again(worker: Process, rabbitmq: RabbitMQ) -> None:
    """It closes what was silent for long. The next call goes out all the same, and the worker is there for it."""
    from src.apps.probe.tasks import add

    await (await add.delay(1, 1)).get(timeout=20)

    rabbitmq.control("close_all_connections", "--global", "a test")

    for number in range(5):
        assert await (await add.delay(number, 1)).get(timeout=20) == number + 1
    assert worker.popen.poll() is None


def test_a_worker_serves_the_queues_that_it_is_given(own: Project, pool: str) -> None:
    second = own.environment["TASK_QUEUES"]
    own.worker("--pool", pool, "--queue", second)

    said = call(
        own,
        "    first = await add.delay(1, 1)\n"
        f"    print(await (await add.options(queue={second!r}).delay(2, 2)).get(timeout=20), await first.status())",
    )

    assert said == "4 pending"


def test_a_warm_stop_lets_a_call_finish(own: Project, pool: str) -> None:
    worker = own.worker("--pool", pool, "--concurrency", "2")
    file = own.root / "marks"
    number = call(own, f"    print((await nap.delay(2, {str(file)!r})).id)")
    wait_until(lambda: marks(file), 20, "it runs")

    assert worker.stop() == 0

    assert marks(file) == ["begun", "cleaned up"]
    assert call(own, f"    print(await TaskResult.from_id({number!r}).status())") == "success"


def test_a_second_signal_puts_a_call_back(own: Project, pool: str) -> None:
    worker = own.worker("--pool", pool, "--concurrency", "2")
    file = own.root / "marks"
    number = call(own, f"    print((await nap.delay(3, {str(file)!r})).id)")
    wait_until(lambda: marks(file), 20, "it runs")
    worker.signal(signal.SIGTERM)
    worker.wait_for("stopping: ")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 130

    own.worker("--pool", pool)

    assert call(own, f"    print(await TaskResult.from_id({number!r}).get(timeout=20))") == "3.0"
    assert marks(file).count("begun") == 2


def test_the_calls_of_a_killed_worker_run_elsewhere_at_once(own: Project, pool: str) -> None:
    worker = own.worker("--pool", pool, "--concurrency", "2")
    file = own.root / "marks"
    number = call(own, f"    print((await nap.delay(3, {str(file)!r})).id)")
    wait_until(lambda: marks(file), 20, "it runs")
    worker.kill()

    own.worker("--pool", pool)

    assert call(own, f"    print(await TaskResult.from_id({number!r}).get(timeout=20))") == "3.0"


def test_the_scheduler_calls_what_is_due_and_keeps_its_schedule_in_redis(own: Project) -> None:
    worker = own.worker("--pool", "threads")
    scheduler = own.start("core", "scheduler", "start")

    worker.wait_for("sync_external_data[", timeout=30)

    listed = own.run("core", "scheduler", "list")
    assert "no scheduler has run yet" not in listed.stdout
    assert own.run("core", "scheduler", "status").stdout.startswith(f"running · pid {scheduler.pid} · leader")
    assert own.run("core", "scheduler", "stop").returncode == 0
    assert scheduler.wait() == 0


def test_celerys_own_commands_work(own: Project) -> None:
    worker = own.start("celery", "-A", "core", "worker", "-P", "threads", "-n", "mine@%h", "-l", "info")
    worker.wait_for("serving ")

    assert "mine@" in own.run("celery", "-A", "core", "inspect", "ping").stdout


def test_no_command_and_no_log_shows_the_password(own: Project, on_rabbitmq: None) -> None:
    worker = own.worker("--pool", "threads", "--loglevel", "debug")
    shown = []
    for command in (("core", "config"), ("celery", "-A", "core", "report"), ("celery", "-A", "core", "inspect", "conf"),
                    ("core", "scheduler", "list")):  # fmt: skip
        done = own.run(*command)
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout + done.stderr)

    assert [text for text in (*shown, worker.text()) if "s3cr3t" in text] == []


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (("s3cr3t", "wr0ng"), 2, "refuses the user or password in TASK_BROKER_URL"),
        (("/shop", "/nowhere"), 2, "/nowhere has no such virtual host"),
    ],
)
def test_a_url_that_does_not_lead_in_is_an_error(own: Project, change: tuple[str, str], code: int, said: str) -> None:
    own.environment["TASK_BROKER_URL"] = change[1].join(own.environment["TASK_BROKER_URL"].rsplit(change[0], 1))

    done = own.run("core", "runworker")

    assert done.returncode == code
    assert said in done.stderr
    assert "wr0ng" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broker_that_is_away_is_named(own: Project) -> None:
    own.environment["TASK_BROKER_URL"] = "amqp://shop:s3cr3t@127.0.0.1:1/shop"
    worker = own.start("core", "runworker")

    done = own.python(
        "import asyncio\nfrom src.apps.probe.tasks import add\n"
        "try:\n    asyncio.run(add.delay(1, 1))\nexcept Exception as error:\n    print(error, error.maybe_sent)\n"
    )

    assert "was not queued: The broker at amqp://127.0.0.1:1/shop does not answer: Connection refused." in done.stdout
    assert done.stdout.strip().endswith("False")
    worker.wait_for("The broker at amqp://127.0.0.1:1/shop does not answer: Connection refused.")
    assert worker.stop() == 0


def test_a_worker_outlives_a_restart_of_rabbitmq(own: Project, pool: str, rabbitmq: RabbitMQ) -> None:
    """A call that runs meanwhile is given out again, so it may run twice."""
    worker = own.worker("--pool", pool, "--concurrency", "2")
    file = own.root / "marks"
    number = call(own, f"    print((await nap.delay(4, {str(file)!r})).id)")
    wait_until(lambda: marks(file), 20, "it runs")

    rabbitmq.control("stop_app")
    rabbitmq.control("start_app")

    assert call(own, "    print(await (await add.delay(1, 1)).get(timeout=30))") == "2"
    assert call(own, f"    print(await TaskResult.from_id({number!r}).get(timeout=30))") == "4.0"
    assert worker.popen.poll() is None
    assert worker.stop() == 0
