"""Bodies: one event loop for the life of the process, what a task knows of itself, and how errors come back."""

import asyncio
import gc
import time
from typing import Any

import pytest
from support import Process, Project

from core.tasks import OutsideTask, TaskFailed, current

EXITS = ["SystemExit", "KeyboardInterrupt", "CancelledError", "GeneratorExit"]


async def results(*calls: Any) -> list[Any]:
    """Wait for many calls at once."""
    return await asyncio.gather(*(call.get(timeout=20) for call in calls))


@pytest.mark.usefixtures("worker")
async def test_every_process_has_one_loop_for_all_its_calls(pool: str) -> None:
    from src.apps.probe.tasks import where

    seen = await results(*await asyncio.gather(*(where.delay() for _ in range(40))))

    loops = {(place["pid"], place["thread"], place["loop"]) for place in seen}
    assert len(loops) == len({place["pid"] for place in seen})
    assert len(loops) <= (4 if pool == "prefork" else 1)
    assert {place["young"] for place in seen} == {4 * 200 if pool == "asyncio" else gc.get_threshold()[0]}


@pytest.mark.usefixtures("worker")
async def test_a_lock_of_a_module_works_in_call_after_call() -> None:
    """It belongs to the loop it was first waited for on, as a database pool or an HTTP client does."""
    from src.apps.probe.tasks import module_lock

    for _ in range(3):
        await results(*await asyncio.gather(*(module_lock.delay() for _ in range(12))))


@pytest.mark.usefixtures("worker")
async def test_async_bodies_of_one_process_run_side_by_side() -> None:
    """Four at once: on threads they share one loop, and a plain function runs beside it."""
    from src.apps.probe.tasks import nap, nap_sync

    began = time.monotonic()
    await results(await nap.delay(1), await nap.delay(1), await nap.delay(1), await nap_sync.delay(1))

    assert time.monotonic() - began < 3


@pytest.mark.usefixtures("worker")
async def test_a_task_knows_itself_in_its_body_and_in_what_the_body_starts() -> None:
    from src.apps.probe.tasks import context

    result = await context.delay()
    seen = await result.get(timeout=20)

    assert (seen["id"], seen["inner"]) == (result.id, result.id)
    assert (seen["name"], seen["attempt"], seen["queue"]) == ("src.apps.probe.tasks.context", 1, "default")
    assert (seen["parent_id"], seen["root_id"]) == (None, result.id)


@pytest.mark.usefixtures("worker")
async def test_a_plain_function_knows_itself_and_runs_beside_the_loop() -> None:
    from src.apps.probe.tasks import context_sync

    result = await context_sync.delay()
    seen = await result.get(timeout=20)

    assert (seen["id"], seen["name"]) == (result.id, "src.apps.probe.tasks.context_sync")
    assert seen["thread"] != "core-tasks-loop"


def test_outside_a_task_there_is_no_current_one() -> None:
    with pytest.raises(OutsideTask, match="no task is running"):
        current()


@pytest.mark.usefixtures("worker")
async def test_a_call_made_in_a_task_names_its_parent_and_its_root() -> None:
    from src.apps.probe.tasks import calls_two_deep

    result = await calls_two_deep.delay()
    seen = await result.get(timeout=20)

    assert seen["me"] == result.id
    assert seen["grandchild"]["parent_id"] == seen["child"]
    assert seen["grandchild"]["root_id"] == result.id


@pytest.mark.usefixtures("worker")
async def test_a_plain_function_calls_and_waits_for_another_task() -> None:
    from src.apps.probe.tasks import calls_from_sync

    result = await calls_from_sync.delay()

    assert (await result.get(timeout=20))["parent_id"] == result.id


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("kind", EXITS)
@pytest.mark.parametrize("body", ["async", "plain"])
async def test_an_exit_raised_by_a_body_is_a_failed_call_and_the_next_one_works(kind: str, body: str) -> None:
    from src.apps.probe.tasks import add, exits, exits_sync_with

    result = await (exits if body == "async" else exits_sync_with).delay(kind)

    with pytest.raises(TaskFailed) as caught:
        await result.get(timeout=10)
    assert caught.value.type_name == kind
    assert isinstance(caught.value, Exception)
    assert await result.status() == "failed"
    assert await results(*[await add.delay(1, 1) for _ in range(8)]) == [2] * 8


@pytest.mark.usefixtures("worker")
async def test_an_exit_beside_a_body_does_not_end_the_loop() -> None:
    from src.apps.probe.tasks import add, exits_in_an_asyncio_task

    await results(*[await exits_in_an_asyncio_task.delay() for _ in range(8)])

    assert await results(*[await add.delay(1, 1) for _ in range(8)]) == [2] * 8


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("body", ["async", "plain"])
async def test_an_error_arrives_as_itself_with_its_arguments(body: str) -> None:
    from src.apps.probe.tasks import OwnError, fails_sync, permanent

    result = await (permanent.delay() if body == "async" else fails_sync.delay("permanent"))

    with pytest.raises(OwnError) as caught:
        await result.get(timeout=20)
    assert caught.value.args == ("permanent", 7)


@pytest.mark.usefixtures("worker")
async def test_the_workers_traceback_comes_as_a_note() -> None:
    from src.apps.probe.tasks import OwnError, permanent

    with pytest.raises(OwnError) as caught:
        await (await permanent.delay()).get(timeout=20)

    note = "\n".join(caught.value.__notes__)
    assert note.startswith("Traceback in the worker:\n")
    assert 'raise OwnError("permanent", 7)' in note


@pytest.mark.usefixtures("worker")
async def test_an_error_that_cannot_be_built_again_arrives_as_task_failed() -> None:
    from src.apps.probe.tasks import keyword_only

    with pytest.raises(TaskFailed) as caught:
        await (await keyword_only.delay()).get(timeout=20)

    assert str(caught.value) == "KeywordOnly: code 7"
    assert caught.value.type_name == "src.apps.probe.tasks.KeywordOnly"
    assert caught.value.message == "code 7"
    assert "raise KeywordOnly(code=7)" in "\n".join(caught.value.__notes__)


@pytest.mark.usefixtures("worker")
async def test_an_error_whose_class_nobody_can_import_arrives_as_task_failed() -> None:
    from src.apps.probe.tasks import fails_without_importable_class

    with pytest.raises(TaskFailed) as caught:
        await (await fails_without_importable_class.delay()).get(timeout=20)

    assert str(caught.value) == "Hidden: nobody can import me"


@pytest.mark.usefixtures("worker")
async def test_an_error_whose_arguments_json_has_not_arrives_with_its_message() -> None:
    from src.apps.probe.tasks import fails_with_an_argument_json_has_not

    with pytest.raises(Exception, match="holds an object") as caught:
        await (await fails_with_an_argument_json_has_not.delay()).get(timeout=20)

    assert type(caught.value).__name__ in ("OwnError", "TaskFailed")


@pytest.mark.usefixtures("example")
async def test_a_body_that_finds_no_memory_fails_alone(worker: Process) -> None:
    """Celery takes a MemoryError for its own, and ends the worker."""
    from src.apps.probe.tasks import add, runs_out_of_memory

    with pytest.raises(TaskFailed, match="MemoryError: no room"):
        await (await runs_out_of_memory.delay()).get(timeout=20)

    assert await (await add.delay(1, 1)).get(timeout=20) == 2
    assert worker.popen.poll() is None


async def test_an_inline_call_raises_what_its_body_raises() -> None:
    from src.apps.probe.tasks import OwnError, permanent

    with pytest.raises(OwnError) as caught:
        await permanent()

    assert caught.value.args == ("permanent", 7)


async def test_a_finished_call_is_one_log_line_without_its_arguments(worker: Process) -> None:
    from src.apps.emails.tasks import send_email

    result = await send_email.delay("private@example.com", "a secret subject", "a secret body")
    await result.get(timeout=20)

    worker.wait_for(f"src.apps.emails.tasks.send_email[{result.id}] success in ")
    lines = [line for line in worker.text().splitlines() if result.id in line]
    assert len(lines) == 1
    assert "secret" not in lines[0]


@pytest.mark.parametrize("own_pool", ["prefork", "threads"])
def test_a_worker_that_stops_closes_its_loop_properly(fresh: Project, own_pool: str) -> None:
    """What bodies left running is cancelled, and has its `finally`; nothing is reported as destroyed or lost."""
    worker = fresh.worker("--pool", own_pool, "--concurrency", "2")
    done = fresh.caller("""
from src.apps.probe.tasks import leaves_something_running
leaves_something_running.delay_sync("marks").get_sync(timeout=20)
""")
    assert done.returncode == 0, done.stderr
    marks = fresh.root / "marks"
    assert marks.read_text() == "begun\n"

    assert worker.stop() == 0

    assert marks.read_text() == "begun\ncleaned up\n"
    for word in ("Traceback", "destroyed", "never awaited", "never retrieved", "Error"):
        assert word not in worker.text()
