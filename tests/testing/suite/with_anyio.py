"""A user's suite under anyio, on both of its asyncio loops."""

from typing import Any

import pytest

from src.apps.probe.tasks import add, risky


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return "asyncio", {"use_uvloop": request.param}


pytestmark = pytest.mark.anyio


async def test_inline(inline_tasks: Any, tmp_path: Any) -> None:
    assert await (await risky.delay(str(tmp_path / "marks"), 2)).get() == 3


async def test_captured(captured_tasks: Any) -> None:
    await add.delay(1, 2)

    captured_tasks.assert_queued(add, 1, 2, times=1)
    assert [await done.get() for done in await captured_tasks.run_all()] == [3]


async def test_with_a_worker(worker_tasks: None) -> None:
    assert await (await add.delay(1, 2)).get(timeout=30) == 3
