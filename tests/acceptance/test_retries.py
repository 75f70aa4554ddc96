"""Retries: what is tried again, how often and when, and what is not."""

import re
from pathlib import Path

import pytest
from support import Process, Project, eventually, wait_until

from core.tasks import TaskError, TaskResult, TaskStatus


def lines(file: Path) -> list[str]:
    """The marks that a task left, or none yet."""
    return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    return tmp_path / "marks"


@pytest.mark.usefixtures("worker")
async def test_a_task_error_is_retried_to_its_end_and_the_last_error_is_raised(marks: Path) -> None:
    from src.apps.probe.tasks import risky

    result = await risky.delay(str(marks))

    with pytest.raises(TaskError, match="attempt 3 failed"):
        await result.get(timeout=20)
    assert lines(marks) == ["attempt 1", "attempt 2", "attempt 3"]
    assert await result.status() == "failed"


@pytest.mark.usefixtures("worker")
async def test_an_attempt_that_succeeds_ends_the_retries(marks: Path) -> None:
    from src.apps.probe.tasks import risky

    assert await (await risky.delay(str(marks), fails=1)).get(timeout=20) == 2
    assert lines(marks) == ["attempt 1", "attempt 2"]


@pytest.mark.usefixtures("worker")
async def test_a_plain_function_is_retried_too(marks: Path) -> None:
    from src.apps.probe.tasks import risky_sync

    with pytest.raises(TaskError, match="attempt 2 failed"):
        await (await risky_sync.delay(str(marks))).get(timeout=20)
    assert lines(marks) == ["attempt 1", "attempt 2"]


@pytest.mark.usefixtures("worker")
async def test_max_retries_0_never_retries(marks: Path) -> None:
    from src.apps.probe.tasks import never_retried

    with pytest.raises(TaskError, match="no more"):
        await (await never_retried.delay(str(marks))).get(timeout=20)
    assert lines(marks) == ["attempt 1"]


@pytest.mark.usefixtures("worker")
async def test_the_delay_that_an_error_asks_for_wins_over_the_tasks_own(marks: Path) -> None:
    """The task's own delay is 30 s."""
    from src.apps.probe.tasks import asks_for_its_delay

    assert await (await asks_for_its_delay.delay(str(marks))).get(timeout=20) == 2

    first, second = (float(mark) for mark in lines(marks))
    assert second - first >= 0.2


@pytest.mark.usefixtures("worker")
async def test_a_users_subclass_of_task_error_is_retried_and_arrives_as_itself(marks: Path) -> None:
    from src.apps.probe.tasks import Busy, busy

    with pytest.raises(Busy, match="too many requests"):
        await (await busy.delay(str(marks))).get(timeout=20)
    assert lines(marks) == ["attempt 1", "attempt 2"]


@pytest.mark.usefixtures("worker")
async def test_the_delay_doubles_with_retry_backoff(marks: Path) -> None:
    from src.apps.probe.tasks import backs_off

    with pytest.raises(TaskError):
        await (await backs_off.delay(str(marks))).get(timeout=20)

    first, second, third = (float(mark) for mark in lines(marks))
    assert second - first >= 0.2
    assert third - second >= 0.4


@pytest.mark.usefixtures("worker")
async def test_what_retry_on_names_is_retried(marks: Path) -> None:
    from src.apps.probe.tasks import OwnError, retried_on

    with pytest.raises(OwnError, match="again"):
        await (await retried_on.delay(str(marks))).get(timeout=20)
    assert lines(marks) == ["attempt 1", "attempt 2", "attempt 3"]


async def test_any_other_error_is_not_retried_and_the_log_says_why(worker: Process, marks: Path) -> None:
    from src.apps.probe.tasks import OwnError, permanent

    result = await permanent.delay(str(marks))

    with pytest.raises(OwnError):
        await result.get(timeout=20)
    assert lines(marks) == ["attempt 1"]
    worker.wait_for(f"src.apps.probe.tasks.permanent[{result.id}] failed and was not retried: OwnError is not a "
                    "TaskError. Raise TaskError, or add retry_on=(OwnError,).")  # fmt: skip


async def test_the_log_says_when_the_next_attempt_comes_and_when_there_is_none(worker: Process, marks: Path) -> None:
    from src.apps.probe.tasks import risky

    result = await risky.delay(str(marks))
    with pytest.raises(TaskError):
        await result.get(timeout=20)

    worker.wait_for(f"[{result.id}] failed on attempt 3 of 3: TaskError: attempt 3 failed")
    said = worker.text()
    assert f"[{result.id}] retry in 0.1 s (attempt 1 of 3 failed: TaskError: attempt 1 failed)" in said
    assert f"[{result.id}] retry in 0.1 s (attempt 2 of 3 failed: TaskError: attempt 2 failed)" in said


async def test_another_calls_error_does_not_retry_the_task_that_awaits_it(worker: Process, marks: Path) -> None:
    """The other call has had its attempts; ours would multiply them."""
    from src.apps.probe.tasks import waits_for_a_failing_call

    child = marks.with_name("child")
    result = await waits_for_a_failing_call.delay(str(marks), str(child))

    with pytest.raises(TaskError, match="attempt 3 failed"):
        await result.get(timeout=20)
    assert lines(marks) == ["attempt 1"]
    assert lines(child) == ["attempt 1", "attempt 2", "attempt 3"]
    worker.wait_for(f"[{result.id}] failed and was not retried: TaskError was raised by a call that it waited for. "
                    "Add retry_on=(TaskError,) to try again")  # fmt: skip


@pytest.mark.usefixtures("worker")
async def test_another_calls_error_retries_the_task_that_awaits_it_where_retry_on_names_it(marks: Path) -> None:
    from src.apps.probe.tasks import retries_for_a_failing_call

    with pytest.raises(TaskError, match="no more"):
        await (await retries_for_a_failing_call.delay(str(marks))).get(timeout=20)
    assert lines(marks) == ["attempt 1", "attempt 2"]


@pytest.mark.usefixtures("worker")
async def test_the_cause_of_a_task_error_is_in_the_traceback_that_comes_with_it() -> None:
    from src.apps.probe.tasks import caused

    with pytest.raises(TaskError, match="Retry later") as caught:
        await (await caused.delay()).get(timeout=20)

    note = "\n".join(caught.value.__notes__)
    assert re.search(r"OwnError: the real reason\n\nThe above exception was the direct cause", note)


@pytest.mark.usefixtures("worker")
async def test_a_call_that_waits_for_its_next_attempt_is_pending(marks: Path) -> None:
    from src.apps.probe.tasks import retried_after

    result = await retried_after.delay(str(marks), 1.5)
    stored: list[TaskStatus] = []

    async def failed_once() -> bool:
        if not lines(marks):
            return False
        stored.append(await result.status())
        return stored[-1] != TaskStatus.RUNNING

    await eventually(failed_once, 20, "the first attempt failed")
    assert stored[-1] == "pending"
    assert len(lines(marks)) == 1
    assert await result.get(timeout=20) == 2


@pytest.mark.usefixtures("worker")
async def test_all_attempts_are_one_call_with_one_id(marks: Path) -> None:
    from src.apps.probe.tasks import risky

    chosen = f"one-{marks.parent.name}"
    first = await risky.delay(str(marks), fails=2, task_id=chosen)

    assert await TaskResult.from_id(chosen).get(timeout=20) == 3
    assert await first.get(timeout=20) == 3


def test_the_settings_say_how_often_where_the_task_does_not(fresh: Project) -> None:
    settings = {"TASK_DEFAULT_MAX_RETRIES": "1", "TASK_DEFAULT_RETRY_DELAY": "0.1"}
    fresh.write(
        "src/tasks.py",
        """
from core.tasks import TaskError, current, task

@task
async def by_default() -> None:
    print(f"attempt {current().attempt}", flush=True)
    raise TaskError("again")
""",
    )
    worker = fresh.worker("--pool", "threads", "--concurrency", "1", **settings)
    done = fresh.caller("from src.tasks import by_default; by_default.delay_sync()", **settings)
    assert done.returncode == 0, done.stderr

    worker.wait_for("failed on attempt 2 of 2")
    wait_until(lambda: worker.text().count("attempt 2\n") == 1, 20, "the last attempt left its mark")
    assert "retry in 0.1 s (attempt 1 of 2 failed" in worker.text()
