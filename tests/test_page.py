"""The users' page, verbatim: each of its code blocks is run as it stands, in the project that it describes."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from blocks import Block, Console, blocks, page_project
from redis import Redis
from support import Process, Project, wait_until

PAGE = Path(__file__).parent / "background-tasks.md"
BLOCKS = blocks(PAGE)

#: Where the page's modules go, and what it leaves out: the imports of the user's own names.
MODULES = {
    "Setup": ("src/settings.py", "from core.config import Settings\n"),
    "Define Task": ("src/apps/emails/tasks.py", "from src.services import email_service, notify_user\n"),
    "Periodic Tasks": ("src/apps/tokens/tasks.py", "from src.services import Token, external_api\n"),
    "Task Options": ("src/apps/options/tasks.py", "from core.tasks import task\n"),
    "Error Handling": (
        "src/apps/risky/tasks.py",
        "from src.services import PermanentError, TemporaryError, logger, process\n",
    ),
}


def block(heading: str) -> Block:
    """The one block under a heading of the page."""
    (found,) = [b for b in BLOCKS if b.heading == heading]
    return found


def commands(heading: str) -> list[list[str]]:
    """The commands of a bash block, as words."""
    return [line.split() for line in block(heading).text.splitlines() if line and not line.startswith("#")]


@contextmanager
def described_project() -> Iterator[Project]:
    """The project that the page describes, with retries that wait 0.1 s instead of a minute."""
    with page_project() as made:
        for heading, (file, imports) in MODULES.items():
            made.write(file, imports + block(heading).text)
        made.environment["TASK_DEFAULT_RETRY_DELAY"] = "0.1"
        yield made


@pytest.fixture(scope="module")
def page() -> Iterator[Project]:
    with described_project() as made:
        yield made


@pytest.fixture(scope="module")
def page_worker(page: Project) -> Process:
    """The page's first command for a worker, as it stands."""
    process = page.start(*commands("Run Worker")[0])
    process.wait_for("serving ")
    return process


@pytest.fixture
def console(page: Project) -> Iterator[Console]:
    made = Console(page)
    yield made
    made.close()


def test_every_block_of_the_page_is_run_here() -> None:
    run = {*MODULES, "Call Task", "Run Worker", "Run Scheduler", "Task Status"}

    assert {b.heading for b in BLOCKS} == run
    assert len(BLOCKS) == len(run)


def test_the_default_worker_serves_every_queue_of_the_page(page_worker: Process) -> None:
    ready = next(line for line in page_worker.text().splitlines() if "serving " in line)

    assert ready.partition("serving ")[2].partition(" ·")[0].split(", ") == ["default", "high-priority", "emails"]


def waiting(page: Project) -> list[float]:
    """When the calls are due that wait for their time: in Redis, or with Celery's own transport in a worker."""
    if "TEST_TRANSPORT" in os.environ:
        shown = page.run("celery", "-A", "core", "inspect", "scheduled", "--json")
        entries = [entry for some in json.loads(shown.stdout).values() for entry in some] if shown.stdout else []
        return [datetime.fromisoformat(entry["eta"]).timestamp() for entry in entries]
    with Redis(unix_socket_path=str(page.root / ".core" / "broker.sock")) as client:
        return [due for _, due in client.zrange("core-delayed", 0, -1, withscores=True)]


def test_the_calls_are_queued_and_the_one_with_a_countdown_waits(
    page: Project, page_worker: Process, console: Console
) -> None:
    before = time.time()

    console.run(block("Call Task").text)

    page_worker.wait_for("mail to user@example.com: Hello")

    (due,) = wait_until(lambda: waiting(page), 20, "the call with the countdown waits")
    assert 59 < due - before < 75
    assert page_worker.text().count("mail to user@example.com: Hello") == 1


@pytest.mark.usefixtures("page_worker")
def test_a_result_has_a_status_and_what_the_task_returned(console: Console) -> None:
    text = block("Task Status").text
    console.run("from src.apps.emails.tasks import send_email")

    console.run(text)

    words = text.partition("result.status()  # ")[2].splitlines()[0].split(", ")
    assert words == ["pending", "running", "success", "failed"]
    console.run(f"assert status in {words}, status")
    console.run("assert data == {'sent': True}, data")
    console.run("assert await result.status() == 'success'")


def test_an_urgent_notification_goes_through_its_own_queue(page_worker: Process, console: Console) -> None:
    console.run("from src.apps.emails.tasks import send_urgent_notification")
    console.run("call = await send_urgent_notification.delay(42, 'now')")

    console.run("assert await call.get(timeout=20) is None")

    page_worker.wait_for("notified 42: now")
    console.run("assert send_urgent_notification.queue == 'high-priority'")


@pytest.mark.usefixtures("page_worker")
def test_a_temporary_error_is_retried_until_it_passes(console: Console, tmp_path: Path) -> None:
    data = {"file": str(tmp_path / "marks"), "error": "temporary", "fails": 2}
    console.run("from src.apps.risky.tasks import risky_task")

    console.run(f"await (await risky_task.delay({data})).get(timeout=20)")

    assert (tmp_path / "marks").read_text().count("attempt") == 3


@pytest.mark.usefixtures("page_worker")
def test_a_temporary_error_that_does_not_pass_fails_after_three_retries(console: Console, tmp_path: Path) -> None:
    data = {"file": str(tmp_path / "marks"), "error": "temporary", "fails": 99}
    console.run("from src.apps.risky.tasks import TaskError, risky_task")
    console.run(f"call = await risky_task.delay({data})")

    printed = console.run("try:\n    await call.get(timeout=20)\nexcept TaskError as error:\n    print(error)")

    assert printed == "Retry later\n"
    assert (tmp_path / "marks").read_text().count("attempt") == 4
    console.run("assert await call.status() == 'failed'")


def test_a_permanent_error_is_logged_and_not_retried(page_worker: Process, console: Console, tmp_path: Path) -> None:
    data = {"file": str(tmp_path / "marks"), "error": "permanent", "fails": 99}
    console.run("from src.apps.risky.tasks import PermanentError, risky_task")
    console.run(f"call = await risky_task.delay({data})")

    printed = console.run("try:\n    await call.get(timeout=20)\nexcept PermanentError as error:\n    print(error)")

    assert printed == "from process\n"
    assert (tmp_path / "marks").read_text().count("attempt") == 1
    page_worker.wait_for("Permanent failure")


def test_the_options_of_the_page_are_those_of_the_task(page: Project) -> None:
    code = "from src.apps.options.tasks import send_email as t; print(t.queue, t.limit().seconds, t.policy())"

    shown = page.python(code)

    assert shown.stdout.startswith("emails 300.0 RetryPolicy(max_retries=3, delay=60,"), shown.stderr


@pytest.mark.parametrize(
    ("task", "says"),
    [("cleanup_expired_tokens", "deleted expired tokens"), ("sync_external_data", "synced external data")],
)
def test_a_periodic_task_does_its_work_when_it_is_called(
    page_worker: Process, console: Console, task: str, says: str
) -> None:
    console.run(f"from src.apps.tokens.tasks import {task}")

    console.run(f"await (await {task}.delay()).get(timeout=20)")

    page_worker.wait_for(says)


def test_the_scheduler_starts_knows_both_entries_and_stops(page: Project) -> None:
    start, stop = commands("Run Scheduler")
    scheduler = page.start(*start)
    scheduler.wait_for("scheduling 2 periodic tasks: ")

    def entries() -> dict[str, dict[str, str]]:
        listed = json.loads(page.run("core", "scheduler", "list", "--json").stdout)
        return {entry["name"].rpartition(".")[2]: entry for entry in listed if entry["next_run"]}

    known = wait_until(lambda: len(found := entries()) == 2 and found, 20, "both entries have a next run")
    assert known["cleanup_expired_tokens"]["schedule"] == "cron 0 * * * *"
    assert known["cleanup_expired_tokens"]["next_run"].endswith(":00:00+00:00")
    assert known["sync_external_data"]["schedule"] == "every 300 s"

    stopped = page.run(*stop)

    assert stopped.returncode == 0, stopped.stderr
    assert scheduler.wait() == 0


def test_a_worker_with_a_queue_serves_that_queue_only() -> None:
    with described_project() as own:
        worker = own.start(*commands("Run Worker")[1])
        worker.wait_for("serving high-priority · ")
        console = Console(own)
        try:
            console.run("from src.apps.emails.tasks import send_email, send_urgent_notification")
            console.run("mail = await send_email.delay('user@example.com', 'Hi', 'Hello')")
            console.run("call = await send_urgent_notification.delay(42, 'now')")
            console.run("assert await call.get(timeout=20) is None")

            console.run("assert await mail.status() == 'pending'")
        finally:
            console.close()
        assert worker.stop() == 0


def test_a_worker_with_a_concurrency_takes_that_many_calls_at_once(page: Project) -> None:
    worker = page.start(*commands("Run Worker")[2])

    worker.wait_for(" · 4 at once · ")

    assert worker.stop() == 0
