"""Calls through a real worker on a real server, on every pool."""

import pytest
from support import Process


@pytest.mark.usefixtures("worker")
async def test_a_call_runs_in_the_worker_and_its_result_comes_back() -> None:
    from src.apps.emails.tasks import send_email

    result = await send_email.delay("user@example.com", "Hello", "Welcome!")

    assert await result.get(timeout=20) == {"sent": True}
    assert await result.status() == "success"


async def test_a_task_error_is_retried_to_its_end(worker: Process, tmp_path) -> None:
    from src.apps.probe.tasks import risky

    from core.tasks import TaskError

    file = tmp_path / "marks"
    result = await risky.delay(str(file))

    with pytest.raises(TaskError, match="attempt 3 failed"):
        await result.get(timeout=20)

    assert file.read_text().splitlines() == ["attempt 1", "attempt 2", "attempt 3"]
