"""Timeouts: the wall time of one attempt's body, on every pool."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support import Process, Project

from core.tasks import TaskFailed, TaskTimeout


@pytest.mark.usefixtures("worker")
async def test_a_body_over_its_time_is_cancelled_and_cleans_up(tmp_path: Path) -> None:
    from src.apps.probe.tasks import slow

    file = tmp_path / "marks"
    result = await slow.delay(str(file))

    with pytest.raises(TaskTimeout):
        await result.get(timeout=20)
    assert file.read_text() == "cleaned up\n"
    assert await result.status() == "failed"


@pytest.mark.usefixtures("worker")
async def test_the_error_is_a_timeout_error_that_says_where_its_number_came_from() -> None:
    from src.apps.probe.tasks import slow

    with pytest.raises(TimeoutError) as caught:
        await (await slow.delay()).get(timeout=20)

    assert str(caught.value) == "src.apps.probe.tasks.slow was stopped after 0.3 s (the timeout of its decorator)."
    assert isinstance(caught.value, TaskFailed)
    assert caught.value.seconds == 0.3


@pytest.mark.usefixtures("worker")
async def test_a_body_that_swallows_its_cancellation_has_failed_all_the_same() -> None:
    from src.apps.probe.tasks import stubborn

    with pytest.raises(TaskTimeout):
        await (await stubborn.delay()).get(timeout=20)


@pytest.mark.usefixtures("worker")
async def test_what_a_body_raises_while_it_is_cancelled_does_not_hide_the_timeout() -> None:
    from src.apps.probe.tasks import raises_while_it_is_cancelled

    with pytest.raises(TaskTimeout) as caught:
        await (await raises_while_it_is_cancelled.delay()).get(timeout=20)

    assert "OwnError: while it ended" in "\n".join(caught.value.__notes__)


async def test_a_timeout_is_not_retried_and_the_log_says_how_it_would_be(worker: Process) -> None:
    from src.apps.probe.tasks import slow

    result = await slow.delay()
    with pytest.raises(TaskTimeout):
        await result.get(timeout=20)

    worker.wait_for(f"[{result.id}] failed and was not retried: src.apps.probe.tasks.slow was stopped after 0.3 s")
    assert "Add retry_on=(TaskTimeout,)" in worker.text()


@pytest.mark.usefixtures("worker")
async def test_a_timeout_is_retried_where_retry_on_names_it() -> None:
    from src.apps.probe.tasks import slow_once

    assert await (await slow_once.delay()).get(timeout=20) == 2


@pytest.mark.usefixtures("worker")
async def test_a_users_own_timeout_error_is_an_ordinary_failure() -> None:
    from src.apps.probe.tasks import own_timeout_error

    with pytest.raises(TimeoutError, match="mine") as caught:
        await (await own_timeout_error.delay()).get(timeout=20)

    assert type(caught.value) is TimeoutError


@pytest.mark.usefixtures("worker")
async def test_timeout_none_is_no_limit_and_no_deadline() -> None:
    from src.apps.probe.tasks import without_limit

    assert await (await without_limit.delay(0.4)).get(timeout=20) is None


@pytest.mark.usefixtures("worker")
async def test_a_call_with_a_limit_knows_its_deadline() -> None:
    """The default limit is 300 s."""
    from src.apps.probe.tasks import context

    seen = await (await context.delay()).get(timeout=20)

    left = datetime.fromisoformat(seen["deadline"]) - datetime.now(UTC)
    assert 240 < left.total_seconds() <= 300


@pytest.mark.usefixtures("worker")
async def test_a_plain_function_is_interrupted_where_it_has_a_process_and_else_fails_when_it_ends(pool: str) -> None:
    """`slow_sync` sleeps for 1.5 s and has 0.3."""
    from src.apps.probe.tasks import slow_sync

    began = time.monotonic()
    with pytest.raises(TaskTimeout, match=r"after 0\.3 s"):
        await (await slow_sync.delay()).get(timeout=20)

    if pool == "prefork":
        assert time.monotonic() - began < 1.5
    else:
        assert time.monotonic() - began >= 1.5


async def test_a_worker_that_cannot_interrupt_plain_functions_says_which(worker: Process, pool: str) -> None:
    said = "cannot be interrupted: it runs past its timeout and fails when it ends:" in worker.text()

    assert said == (pool != "prefork")


async def test_a_body_that_will_not_stop_is_given_up_after_its_grace(worker: Process, pool: str) -> None:
    """Ten seconds after its limit, a pool that can kill has killed the process that the body blocks; on the other,
    the body may go on, and its error says so. The next call works either way.
    """
    from src.apps.probe.tasks import add, blocks_its_loop, outwaits_its_cancellation

    if pool == "prefork":
        result, said = await blocks_its_loop.delay(30), r"after 10\.3 s .* grace; its process was killed"
    else:
        result, said = await outwaits_its_cancellation.delay(12), r"after 0\.3 s .* may still be running"

    with pytest.raises(TaskTimeout, match=said):
        await result.get(timeout=15)
    assert await result.status() == "failed"
    assert await (await add.delay(1, 1)).get(timeout=20) == 2
    worker.wait_for("serving ")


def test_a_limit_of_the_settings_is_named_as_such(fresh: Project) -> None:
    settings = {"TASK_DEFAULT_TIMEOUT": "0.3"}
    fresh.worker("--pool", "threads", "--concurrency", "1", **settings)
    done = fresh.caller(
        """
from src.apps.probe.tasks import limited_by_default
try:
    limited_by_default.delay_sync().get_sync(timeout=20)
except TimeoutError as error:
    print(error)
""",
        **settings,
    )

    assert done.stdout.endswith("was stopped after 0.3 s (task_default_timeout).\n"), done.stderr
