"""Results that Celery keeps in what is no Redis: the same questions, answered by looking again and again."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import Project, redis_server

from core.config import Settings, configure
from core.errors import BrokerUnreachable, ConfigurationError, ResultTimeout, TaskFailed
from core.tasks import Progress, TaskResult, celery_app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as (url, _):
        yield url


def use(monkeypatch: pytest.MonkeyPatch, url: str, backend: str | None) -> Any:
    """Configure a store for results beside the broker; return Celery's own access to it."""
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("CELERY", json.dumps({"result_backend": backend}))
    configure(Settings)
    return celery_app.get_app()


@pytest.fixture(params=["file://{}", "db+sqlite:///{}/results.db"], ids=["file", "db"])
def backend(request: pytest.FixtureRequest, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    return use(monkeypatch, url, request.param.format(tmp_path)).backend


async def test_a_result_is_there_when_it_was_stored(backend: Any) -> None:
    backend.mark_as_done("a", {"number": 7})
    result = TaskResult.from_id("a")

    assert (await result.status(), await result.exists()) == ("success", True)
    assert await result.get(timeout=0) == {"number": 7}
    assert await result.get() == {"number": 7}


async def test_a_result_is_found_soon_after_it_is_stored(backend: Any) -> None:
    result = TaskResult.from_id("a")
    assert (await result.status(), await result.exists()) == ("pending", False)
    with pytest.raises(ResultTimeout, match=r"after 0\.1 s"):
        await result.get(timeout=0.1)
    waits = asyncio.create_task(result.get(timeout=20))

    await asyncio.to_thread(backend.mark_as_started, "a")
    assert await result.status() == "running"
    await asyncio.to_thread(backend.mark_as_done, "a", 1)

    assert await waits == 1


async def test_an_error_arrives_as_itself_or_tells_of_itself(backend: Any) -> None:
    backend.mark_as_failure("a", ZeroDivisionError("no", 7), traceback="far away")
    backend.mark_as_failure("b", TaskFailed("package.module.KeywordOnly", "code 7"))

    with pytest.raises(ZeroDivisionError) as raised:
        await TaskResult.from_id("a").get(timeout=20)
    with pytest.raises(TaskFailed, match="KeywordOnly: code 7"):
        await TaskResult.from_id("b").get(timeout=20)

    assert raised.value.args == ("no", 7)
    assert raised.value.__notes__ == ["Traceback in the worker:\nfar away"]


async def test_progress_is_seen_and_ends_with_the_call(backend: Any) -> None:
    backend.store_result("a", {"done": 1, "total": 2, "message": "half"}, "PROGRESS")
    progress = TaskResult.from_id("a").progress()
    assert await asyncio.wait_for(anext(progress), 20) == Progress(1, 2, "half")
    assert await TaskResult.from_id("a").status() == "running"

    await asyncio.to_thread(backend.store_result, "a", {"done": 2, "total": 2, "message": ""}, "PROGRESS")
    assert await asyncio.wait_for(anext(progress), 20) == Progress(2, 2)
    await asyncio.to_thread(backend.mark_as_failure, "a", ValueError("no"))

    assert [update async for update in progress] == []


async def test_many_wait_in_a_few_threads(backend: Any) -> None:
    ids = [str(number) for number in range(30)]
    waits = [asyncio.create_task(TaskResult.from_id(id).get(timeout=20)) for id in ids]
    await TaskResult.from_id("another").status()

    for id in ids:
        await asyncio.to_thread(backend.mark_as_done, id, id)

    assert await asyncio.gather(*waits) == ids
    assert 1 <= len([thread for thread in threading.enumerate() if thread.name.startswith("core-tasks_")]) <= 8


async def test_a_result_that_is_half_written_is_looked_at_again(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend = use(monkeypatch, url, f"file://{tmp_path}").backend
    backend.mark_as_done("a", 1)
    file = tmp_path / "celery-task-meta-a"
    whole = file.read_bytes()
    file.write_bytes(whole[:20])
    waits = asyncio.create_task(TaskResult.from_id("a").get(timeout=20))
    with pytest.raises(BrokerUnreachable, match="result backend"):
        await TaskResult.from_id("a").status()

    file.write_bytes(whole)

    assert await waits == 1


@pytest.mark.parametrize("named", ["file:///nowhere/at/all", "mongodb://localhost", None])
async def test_a_store_that_cannot_be_used_is_told_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    use(monkeypatch, url, named)

    with pytest.raises(ConfigurationError, match="result backend cannot be used"):
        await TaskResult.from_id("a").get(timeout=20)


async def test_another_redis_that_celery_is_told_of_is_the_one_that_is_asked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no other kind of store: whoever waits subscribes there."""
    other = url.replace("/0", "/5")
    use(monkeypatch, url, other)
    with Redis.from_url(other) as client:
        client.set("celery-task-meta-a", '{"status": "SUCCESS", "result": 1}')

    assert await TaskResult.from_id("a").get(timeout=5) == 1


CALLS = """
import asyncio
from core.tasks import TaskRevoked
from src.apps.probe.tasks import add, nap

async def outcome(result):
    try:
        return await result.get(timeout=20)
    except TaskRevoked:
        return "revoked"

async def main():
    waits, runs = await add.delay(1, 1, countdown=60), await nap.delay(60)
    while await runs.status() != "running":
        await asyncio.sleep(0.02)
    print(await outcome(await add.delay(1, 1)), await waits.cancel(), await runs.cancel(),
          await outcome(waits), await outcome(runs), await runs.cancel())

asyncio.run(main())
"""


def test_calls_are_made_awaited_and_cancelled_as_with_redis(fresh: Project) -> None:
    (fresh.root / "results").mkdir()
    fresh.environment["CELERY"] = json.dumps({"result_backend": f"file://{fresh.root}/results"})
    fresh.worker("--pool", "threads", "--concurrency", "4")

    done = fresh.python(CALLS)

    assert done.stdout.split() == ["2", "True", "True", "revoked", "revoked", "False"], done.stderr
