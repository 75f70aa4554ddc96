"""`cancel()`: a pending call never runs, a running one ends, a finished one stays as it is."""

import asyncio
import json
from pathlib import Path

import pytest
from marks import core_transport
from redis import Redis
from support import Process, Project, eventually, held, wait_until

from core.tasks import TaskResult, TaskRevoked


async def begun(file: Path) -> None:
    """Wait until a body has left its first mark."""
    await asyncio.to_thread(wait_until, file.exists, 20, "the body began")


async def running(result: TaskResult[object]) -> None:
    """Wait until a call is known to run, which it is after 20 ms."""

    async def known() -> bool:
        return await result.status() == "running"

    await eventually(known, 20, "it is known to run")


async def ended(result: TaskResult[object]) -> None:
    """Wait for the outcome, which has to be that it was cancelled."""
    with pytest.raises(TaskRevoked, match="was cancelled before it finished"):
        await result.get(timeout=20)
    assert await result.status() == "failed"


@pytest.mark.usefixtures("worker")
async def test_a_call_that_waits_for_its_time_never_runs(tmp_path: Path) -> None:
    from src.apps.probe.tasks import add, nap

    file = tmp_path / "marks"
    result = await nap.delay(0, str(file), countdown=1)
    assert await result.cancel() is True
    await ended(result)

    # One that was due later has run, so this one's time has passed.
    assert await (await add.delay(1, 1, countdown=1.5)).get(timeout=20) == 2
    assert not file.exists()


@pytest.mark.usefixtures("worker")
async def test_a_call_that_waits_behind_others_never_runs(tmp_path: Path) -> None:
    from src.apps.probe.tasks import add, nap

    file = tmp_path / "marks"
    before = [await nap.delay(0.7) for _ in range(8)]
    result = await nap.delay(0, str(file))
    assert await result.cancel() is True
    await ended(result)

    await asyncio.gather(*(call.get(timeout=20) for call in before))
    assert await (await add.delay(1, 1)).get(timeout=20) == 2
    assert not file.exists()


@pytest.mark.usefixtures("worker")
async def test_a_call_that_waits_for_its_next_attempt_never_has_it(tmp_path: Path) -> None:
    from src.apps.probe.tasks import add, retried_after

    file = tmp_path / "marks"
    result = await retried_after.delay(str(file), 1.0)
    await begun(file)

    async def pending() -> bool:
        return await result.status() == "pending"

    await eventually(pending, 20, "the first attempt failed")
    assert await result.cancel() is True
    await ended(result)

    assert await (await add.delay(1, 1, countdown=1.5)).get(timeout=20) == 2
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.usefixtures("worker")
async def test_a_running_body_gets_the_cancellation_and_cleans_up(tmp_path: Path) -> None:
    from src.apps.probe.tasks import add, nap

    file = tmp_path / "marks"
    result = await nap.delay(30, str(file))
    await begun(file)
    await running(result)

    assert await result.cancel() is True
    await ended(result)

    assert file.read_text() == "begun\ncancelled\ncleaned up\n"
    assert await asyncio.gather(*[(await add.delay(1, 1)).get(timeout=20) for _ in range(8)]) == [2] * 8
    assert file.read_text().count("begun") == 1


@pytest.mark.usefixtures("worker")
async def test_a_body_that_swallows_the_cancellation_was_cancelled_all_the_same(tmp_path: Path) -> None:
    from src.apps.probe.tasks import swallows_its_cancellation

    file = tmp_path / "marks"
    result = await swallows_its_cancellation.delay(str(file))
    await begun(file)
    await running(result)

    assert await result.cancel() is True
    await ended(result)
    assert file.read_text() == "begun\nswallowed\n"


@pytest.mark.usefixtures("worker")
async def test_one_of_several_running_calls_is_cancelled_and_the_others_go_on(tmp_path: Path) -> None:
    from src.apps.probe.tasks import nap

    files = [tmp_path / str(i) for i in range(3)]
    results = [await nap.delay(1.5, str(file)) for file in files]
    for file in files:
        await begun(file)

    assert await results[1].cancel() is True
    await ended(results[1])

    assert await asyncio.gather(results[0].get(timeout=20), results[2].get(timeout=20)) == [1.5, 1.5]


@pytest.mark.usefixtures("worker")
async def test_a_running_plain_function_is_interrupted_where_it_has_a_process(pool: str, tmp_path: Path) -> None:
    """In a thread it goes on to its end, and its outcome is that it was cancelled."""
    from src.apps.probe.tasks import add, marked_nap_sync

    file = tmp_path / "marks"
    result = await marked_nap_sync.delay(2, str(file))
    await begun(file)
    await running(result)

    assert await result.cancel() is True
    await ended(result)

    assert ("slept" in file.read_text()) == (pool != "prefork")
    assert "cleaned up" in file.read_text()
    assert await asyncio.gather(*[(await add.delay(1, 1)).get(timeout=20) for _ in range(8)]) == [2] * 8


@core_transport
@pytest.mark.usefixtures("worker")
async def test_a_running_call_is_cancelled_also_where_no_word_of_it_reached_its_worker(
    example: Project, tmp_path: Path
) -> None:
    """The broadcast is lost where a worker has no connection at that moment; the note in Redis stays."""
    from src.apps.probe.tasks import marked_nap_sync, nap

    files = tmp_path / "coroutine", tmp_path / "plain"
    results = [await nap.delay(30, str(files[0])), await marked_nap_sync.delay(8, str(files[1]))]
    for file, result in zip(files, results, strict=True):
        await begun(file)
        await running(result)
    with Redis(unix_socket_path=str(example.root / ".core" / "broker.sock")) as server:
        for result in results:
            server.set(f"core-cancelled-{result.id}", 1)

    for result in results:
        await ended(result)
    assert files[0].read_text() == "begun\ncancelled\ncleaned up\n"


@pytest.mark.usefixtures("worker")
async def test_cancelling_twice_is_cancelling_once(tmp_path: Path) -> None:
    """A second cancellation must not cut off the body's cleanup."""
    from src.apps.probe.tasks import nap

    file = tmp_path / "marks"
    result = await nap.delay(30, str(file))
    await begun(file)
    await running(result)

    await asyncio.gather(*(result.cancel() for _ in range(3)))
    await ended(result)

    assert file.read_text() == "begun\ncancelled\ncleaned up\n"
    assert await result.cancel() is False


async def test_a_cancellation_that_meets_a_body_at_its_end_does_the_worker_no_harm(worker: Process) -> None:
    """Many at once: some reach the worker when the body is over and its call is not yet put away."""
    from src.apps.probe.tasks import add, nap

    for _ in range(10):
        calls = [await nap.delay(0.01 * i) for i in range(4)]
        await asyncio.gather(*(call.cancel() for call in calls for _ in range(4)))

    assert await (await add.delay(1, 1)).get(timeout=20) == 2
    assert worker.popen.poll() is None


@pytest.mark.usefixtures("worker")
async def test_a_finished_call_cannot_be_cancelled_and_keeps_its_result() -> None:
    from src.apps.probe.tasks import OwnError, add, permanent

    done, failed = await add.delay(1, 1), await permanent.delay()
    assert await done.get(timeout=20) == 2
    with pytest.raises(OwnError):
        await failed.get(timeout=20)

    assert (await done.cancel(), await failed.cancel()) == (False, False)
    assert await done.get(timeout=20) == 2
    with pytest.raises(OwnError):
        await failed.get(timeout=20)


@pytest.mark.usefixtures("worker")
async def test_waiting_callers_learn_at_once_that_a_pending_call_was_cancelled() -> None:
    from src.apps.probe.tasks import add

    result = await add.delay(1, 1, countdown=60)
    waiting = [asyncio.create_task(result.get(timeout=20)) for _ in range(3)]
    await asyncio.sleep(0)

    await result.cancel()

    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, TaskRevoked)


async def test_a_cancelled_call_is_one_line_in_the_log(worker: Process, tmp_path: Path) -> None:
    from src.apps.probe.tasks import nap

    file = tmp_path / "marks"
    result = await nap.delay(30, str(file))
    await begun(file)
    await running(result)
    await result.cancel()
    await ended(result)

    worker.wait_for(f"src.apps.probe.tasks.nap[{result.id}] cancelled after ")
    assert "Traceback" not in "".join(line for line in worker.text().splitlines() if result.id in line)


@pytest.mark.parametrize("own_pool", ["prefork", "threads"])
def test_a_call_that_was_cancelled_while_no_worker_ran_never_runs(fresh: Project, own_pool: str) -> None:
    """Workers forget what they were told; Redis does not."""
    done = fresh.python("""
import asyncio, json
from src.apps.probe.tasks import nap

async def main():
    results = [await nap.delay(0, "now"), await nap.delay(0, "later", countdown=0.5), await nap.delay(0, "kept")]
    said = [await result.cancel() for result in results[:2]]
    return said + [await result.status() for result in results]

print(json.dumps(asyncio.run(main())))
""")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, True, "failed", "failed", "pending"]

    worker = fresh.worker("--pool", own_pool, "--concurrency", "2")
    done = fresh.python("""
from src.apps.probe.tasks import add
print(add.options(countdown=1).delay_sync(1).get_sync(timeout=20))
""")

    assert done.stdout == "2\n", done.stderr
    assert [(fresh.root / name).exists() for name in ("now", "later", "kept")] == [False, False, True]
    assert worker.stop() == 0


@core_transport
@pytest.mark.usefixtures("worker")
async def test_nothing_is_left_in_the_broker_of_a_cancelled_running_call(example: Project, tmp_path: Path) -> None:
    """Else it would run again once its worker is gone: the record of what a worker holds is looked at."""
    from src.apps.probe.tasks import nap

    file = tmp_path / "marks"
    result = await nap.delay(30, str(file))
    await begun(file)
    await running(result)
    with Redis(unix_socket_path=str(example.root / ".core" / "broker.sock")) as broker:

        def is_held() -> bool:
            return any(result.id.encode() in message for message in held(broker))

        async def not_held() -> bool:
            return not is_held()

        assert is_held()
        await result.cancel()
        await ended(result)
        await eventually(not_held, 20, "the call is acknowledged")
        waiting = [message for key in broker.scan_iter("default*") for message in broker.lrange(key, 0, -1)]

    assert not [message for message in waiting if result.id.encode() in message]
