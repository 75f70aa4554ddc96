"""Progress of a running call, on every pool: who says it, who sees it, and that it never outlives the call."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import Project, eventually

from core.tasks import Progress, ResultUnavailable, TaskResult
from core.tasks.progress import INTERVAL

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def heard(example: Project) -> Iterator[Any]:
    """Everything that is published about results."""
    example.run("core", "broker", "start")
    with Redis(unix_socket_path=str(example.root / ".core" / "broker.sock")) as client, client.pubsub() as pubsub:
        pubsub.psubscribe("celery-task-meta-*")
        assert pubsub.get_message(timeout=5)
        yield pubsub


async def followed(result: TaskResult[Any]) -> list[Progress]:
    async with asyncio.timeout(30):
        return [update async for update in result.progress()]


async def test_progress_is_followed_to_the_end_of_the_call() -> None:
    from src.apps.steps.tasks import steps

    result = await steps.delay(6, 0.1)
    seen, again = await asyncio.gather(followed(result), followed(result))

    assert [update.done for update in seen] == sorted({update.done for update in seen})
    assert len(seen) >= 2
    assert seen[-1] == again[-1] == Progress(6, 6, "step 6")
    assert seen[-1].percent == 100
    assert await result.status() == "success"


async def test_a_plain_function_says_it_too() -> None:
    from src.apps.steps.tasks import steps_sync

    result = await steps_sync.delay(3, 0.15)

    seen = await followed(result)
    assert seen[-1] == Progress(3, 3)
    assert await result.get(timeout=20) == result.id


async def test_few_of_many_leave_and_the_last_one_does(heard: Any) -> None:
    from src.apps.steps.tasks import steps

    result = await steps.delay(300, 0.001)
    seconds = await result.get(timeout=30)

    said: list[dict[str, Any]] = []
    while not said or said[-1]["status"] != "SUCCESS":
        message = await asyncio.to_thread(heard.get_message, timeout=5)
        assert message
        if message["channel"].decode().endswith(result.id):
            said.append(json.loads(message["data"]))
    progress = [meta["result"]["done"] for meta in said if meta["status"] == "PROGRESS"]
    assert 1 <= len(progress) <= seconds / INTERVAL + 2
    assert progress[-1] == 300


async def test_celerys_own_clients_see_it_and_the_call_is_running(tmp_path: Path) -> None:
    from src.apps.steps.tasks import stops_half_way

    go_on = tmp_path / "go on"
    result = await stops_half_way.delay(str(go_on))
    assert await asyncio.wait_for(anext(result.progress()), 20) == Progress(1, 2, "half")
    celerys = stops_half_way.celery_task.AsyncResult(result.id)

    assert await asyncio.to_thread(lambda: celerys.state) == "PROGRESS"
    assert await asyncio.to_thread(lambda: celerys.info) == {"done": 1, "total": 2, "message": "half"}
    assert await result.status() == "running"

    go_on.touch()
    assert await result.get(timeout=20) == "done"


async def test_a_call_that_fails_ends_its_progress_and_get_tells() -> None:
    from src.apps.steps.tasks import fails_half_way

    result = await fails_half_way.delay()

    assert await followed(result) in ([Progress(1, 2, "half")], [])  # it may have ended before anybody looked
    with pytest.raises(ValueError, match="no second half"):
        await result.get(timeout=20)


async def test_what_is_said_after_the_end_changes_nothing(tmp_path: Path) -> None:
    from src.apps.steps.tasks import goes_on_saying

    file = tmp_path / "say it"
    result = await goes_on_saying.delay(str(file))
    assert await result.get(timeout=20) == "done"
    file.touch()

    async def said() -> bool:
        return not file.exists()

    await eventually(said, 20, "what was left behind has spoken")
    await asyncio.sleep(2 * INTERVAL)  # nothing tells that nothing comes
    assert await result.status() == "success"


async def test_a_task_whose_result_nobody_keeps_may_say_it(tmp_path: Path) -> None:
    from src.apps.steps.tasks import steps_that_nobody_sees

    file = tmp_path / "ran"
    result = await steps_that_nobody_sees.delay(str(file))

    with pytest.raises(ResultUnavailable, match="steps_that_nobody_sees is declared with ignore_result"):
        result.progress()

    async def ran() -> bool:
        return file.exists()

    await eventually(ran, 20, "the body has ended")
    assert not await TaskResult.from_id(result.id).exists()


async def test_a_wrong_number_is_the_bodys_own_error() -> None:
    from src.apps.steps.tasks import counts_down

    assert await (await counts_down.delay()).get(timeout=20) == "progress(done=-1): done is a number from 0 on."
