"""`unique=True`: one call of its kind waits or runs at a time, and its lock ends with it."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from marks import core_transport
from support import eventually, wait_until

from core.tasks import OptionError, celery_app, task

pytestmark = [core_transport, pytest.mark.usefixtures("worker")]


def runs(file: Path) -> list[str]:
    """The ids of the attempts that have begun."""
    return file.read_text().split() if file.exists() else []


async def begun(file: Path, count: int = 1) -> None:
    await asyncio.to_thread(wait_until, lambda: len(runs(file)) == count, 20, f"{count} have begun")


async def is_free(call: Any) -> Any:
    """The first call that is queued anew."""

    async def queued() -> Any:
        result = await call()
        return None if result.deduplicated else result

    return await eventually(queued, 5, "another one can be queued")


async def test_while_a_call_waits_or_runs_another_one_is_the_same(tmp_path: Path) -> None:
    from src.apps.probe.tasks import alone

    file = tmp_path / "marks"
    first = await alone.delay(str(file), 0.5, countdown=0.5)
    waiting = await alone.delay(str(file), seconds=0.5, fails=False)
    await begun(file)
    running = await alone.delay(file=str(file), seconds=0.5)
    another = await alone.delay(str(file), 0.1)

    assert [one.deduplicated for one in (first, waiting, running, another)] == [False, True, True, False]
    assert first == waiting == running != another
    assert await running.get(timeout=20) == 0.5
    await another.get(timeout=20)
    assert sorted(runs(file)) == sorted([first.id, another.id])
    assert not (await alone.delay(str(file), 0.5)).deduplicated


async def test_of_many_at_once_one_is_queued(tmp_path: Path) -> None:
    from src.apps.probe.tasks import alone

    file = tmp_path / "marks"
    each = await asyncio.gather(*(alone.delay(str(file), 0.4, countdown=2) for _ in range(50)))
    many = await alone.delay_many([(str(file), 0.4), (str(file), 0.3), {"file": str(file), "seconds": 0.3}])

    assert sum(not result.deduplicated for result in each) == 1
    assert len({result.id for result in each}) == 1
    assert sorted(result.deduplicated for result in many) == [False, True, True]
    assert many[0] == each[0]
    assert many[1] == many[2]
    await asyncio.gather(*(result.get(timeout=20) for result in (*each, *many)))
    assert len(runs(file)) == 2


async def test_a_failure_ends_it_and_a_retry_does_not(tmp_path: Path) -> None:
    from src.apps.probe.tasks import alone, alone_and_retried

    fails, retried = tmp_path / "fails", tmp_path / "retried"
    with pytest.raises(ValueError, match="no"):
        await (await alone.delay(str(fails), fails=True)).get(timeout=20)
    again = await alone.delay(str(fails), fails=True)
    first = await alone_and_retried.delay(str(retried))
    await begun(retried)
    await asyncio.sleep(0.2)  # the first attempt is over, and the next one waits
    second = await alone_and_retried.delay(str(retried))

    assert not again.deduplicated
    assert second == first
    assert await second.get(timeout=20) == 2
    assert (await is_free(lambda: alone_and_retried.delay(str(retried)))) != first


async def test_without_a_result_the_end_of_a_call_frees_it_too(tmp_path: Path) -> None:
    from src.apps.probe.tasks import alone_by_name

    file, name = tmp_path / "marks", str(tmp_path)
    first = await alone_by_name.delay(name, str(file), 0.3)
    assert (await alone_by_name.delay(name, str(file), 0.9)) == first
    await begun(file)

    other = await is_free(lambda: alone_by_name.delay(name, str(file)))

    await begun(file, 2)
    assert runs(file) == [first.id, other.id]


async def test_a_cancelled_call_and_one_that_has_expired_are_no_obstacle(tmp_path: Path) -> None:
    from src.apps.probe.tasks import alone

    cancelled = await alone.delay(str(tmp_path / "a"), countdown=30)
    await cancelled.cancel()
    assert not (await alone.delay(str(tmp_path / "a"))).deduplicated

    late = {"expires": datetime.now(UTC) + timedelta(seconds=0.5), "countdown": 30}
    expires = await alone.delay(str(tmp_path / "b"), **late)
    assert (await alone.delay(str(tmp_path / "b"))) == expires
    await is_free(lambda: alone.delay(str(tmp_path / "b")))


async def test_a_call_ends_no_lock_but_its_own(tmp_path: Path) -> None:
    """The first one outlives `unique_for`, and ends while the second one runs."""
    from src.apps.probe.tasks import alone_for_a_while

    file = tmp_path / "marks"
    first = await alone_for_a_while.delay(str(file), 1.6)
    second = await is_free(lambda: alone_for_a_while.delay(str(file), 5))
    celery = celery_app.get_app()
    with celery.connection_for_read() as connection:
        client = connection.default_channel.client
        [lock] = client.keys("core-unique-src.apps.probe.tasks.alone_for_a_while-*")
        client.persist(lock)

        await first.get(timeout=20)

        assert client.get(lock).decode().partition("\n")[0] == second.id
        await second.cancel()
        await asyncio.to_thread(wait_until, lambda: not client.exists(lock), 10, "its own end frees it")


async def test_a_call_that_celery_sends_is_unique_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where somebody else's tool has put itself before `apply_async`."""
    from celery import Task as Celerys

    from src.apps.probe.tasks import alone

    sent = Celerys.apply_async
    monkeypatch.setattr(Celerys, "apply_async", lambda self, *args, **options: sent(self, *args, **options))
    file = tmp_path / "marks"
    first = await alone.delay(str(file), 0.3)
    second = await alone.delay(str(file), 0.3)

    assert second == first
    assert second.deduplicated
    assert await second.get(timeout=20) == 0.3
    await is_free(lambda: alone.delay(str(file), 0.3))
    assert runs(file)[0] == first.id


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unique": 1}, "unique=1 is neither True nor False"),
        ({"unique": True, "unique_for": 0}, "unique_for=0"),
        ({"unique_for": 5}, "add unique=True"),
        ({"unique": True, "unique_key": "other"}, "unique_key names 'other', and f has no such parameter"),
        ({"unique": True, "unique_key": 5}, "unique_key=5 is neither"),
    ],
)
def test_what_means_nothing_is_refused_at_import(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:

        @task(**options)
        async def f(name: str) -> None: ...

    assert said in str(caught.value)
