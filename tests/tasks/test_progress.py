"""Progress: what may be said, and when it leaves."""

import threading
import time
from typing import Any

import pytest
from support import wait_until

from core.errors import OptionError, OutsideTask, SyncInLoop
from core.tasks import CurrentTask, Progress, bridge, current
from core.tasks.context import enter
from core.tasks.progress import INTERVAL, Reports, progress_of


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ((-1,), r"progress\(done=-1\): done is a number from 0 on"),
        ((True,), r"done=True"),
        (("3",), r"done='3'"),
        ((None,), r"done=None\): done is a number from 0 on\.$"),
        ((float("nan"),), r"done=nan"),
        ((float("inf"),), r"done=inf"),
        ((1, -0.5), r"total=-0\.5\): total is a number from 0 on, or None where nobody knows it"),
        ((1, "2"), r"total='2'"),
        ((1, 2, 3), r"message=3\): the message is text"),
    ],
)
def test_what_is_no_progress_is_refused_with_its_value(said: tuple[Any, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message) as refused:
        Progress(*said)

    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize(
    ("progress", "percent"),
    [
        (Progress(0, 4), 0),
        (Progress(1, 4), 25),
        (Progress(0.5, 2.0), 25),
        (Progress(5, 4), 100),
        (Progress(3), None),
        (Progress(0, 0), None),
        (Progress(10**300, 1), 100),
    ],
    ids=str,
)
def test_percent_is_the_share_of_the_total(progress: Progress, percent: float | None) -> None:
    assert progress.percent == percent


@pytest.mark.parametrize(
    "meta",
    [
        {"status": "STARTED", "result": {"done": 1}},
        {"status": "PROGRESS", "result": {"current": 1}},
        {"status": "PROGRESS", "result": {"done": "1"}},
        {"status": "PROGRESS", "result": [1, 2]},
        {"status": "PROGRESS"},
    ],
    ids=str,
)
def test_what_others_store_is_no_progress_of_ours(meta: dict[str, Any]) -> None:
    assert progress_of(meta) is None


def test_what_is_stored_is_read_as_it_was_said() -> None:
    meta = {"status": "PROGRESS", "result": {"done": 1, "total": 2, "message": "half"}}

    assert progress_of(meta) == Progress(1, 2, "half")
    assert progress_of({"status": "PROGRESS", "result": {"done": 1.5}}) == Progress(1.5)


# On its way out


class Store:
    """Keeps what is stored, and when."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.done: list[float] = []
        self.times: list[float] = []

    def __call__(self, said: dict[str, Any]) -> None:
        self.times.append(time.monotonic())
        self.done.append(said["done"])
        time.sleep(self.seconds)


def test_of_many_one_leaves_now_and_then_and_the_last_one_does() -> None:
    store = Store(seconds=0.02)
    reports = Reports(store)
    until = time.monotonic() + 3 * INTERVAL
    said = 0
    while time.monotonic() < until:
        said += 1
        reports.add(Progress(said))
        time.sleep(0.001)
    reports.close()

    pauses = [after - before for before, after in zip(store.times, store.times[1:], strict=False)]
    assert len(pauses) >= 2
    assert store.done[-1] == said
    assert all(pause >= INTERVAL for pause in pauses[:-1])  # the last one leaves with the end
    assert store.done == sorted(set(store.done))


def test_what_comes_last_leaves_though_nothing_follows_it() -> None:
    store = Store()
    reports = Reports(store)
    reports.add(Progress(1))
    wait_until(lambda: store.done == [1], 10, "the first one left")

    reports.add(Progress(2))
    reports.add(Progress(3))

    wait_until(lambda: store.done == [1, 3], 10, "the last one left")


def test_nothing_leaves_once_the_attempt_has_ended() -> None:
    store = Store()
    reports = Reports(store)
    reports.close()
    reports.add(Progress(1))
    other = Reports(store)
    other.add(Progress(2))

    wait_until(lambda: 2 in store.done, 10, "what was said afterwards left")
    assert store.done == [2]
    assert not reports.used


def test_the_end_of_an_attempt_waits_for_what_is_just_being_stored() -> None:
    begun, go_on, stored = threading.Event(), threading.Event(), list[float]()

    def store(said: dict[str, Any]) -> None:
        begun.set()
        assert go_on.wait(20)
        stored.append(said["done"])

    reports = Reports(store)
    reports.add(Progress(1))
    assert begun.wait(20)
    closing = threading.Thread(target=reports.close)
    closing.start()
    reports.add(Progress(2))
    assert closing.is_alive()

    go_on.set()
    closing.join(20)

    assert stored == [1, 2]


def test_a_store_that_fails_is_told_of_once_and_fails_nobody(caplog: pytest.LogCaptureFixture) -> None:
    tries = list[float]()

    def store(said: dict[str, Any]) -> None:
        tries.append(said["done"])
        raise ConnectionError("redis://:s3cret@host")

    reports = Reports(store)
    reports.add(Progress(1))
    wait_until(lambda: tries == [1], 10, "it was tried")
    reports.add(Progress(2))
    reports.close()

    assert tries == [1, 2]
    assert [record.getMessage() for record in caplog.records] == ["progress could not be stored: ConnectionError"]


# What a body says


def running(said: list[Progress]) -> CurrentTask:
    return CurrentTask(
        id="1", name="f", attempt=1, queue="q", headers={}, deadline=None, parent_id=None, root_id="1",
        _report=said.append,
    )  # fmt: skip


async def test_a_coroutine_says_it_with_await() -> None:
    said: list[Progress] = []
    enter(running(said))

    await current().progress(1)
    await current().progress(2, total=4, message="half")
    with pytest.raises(OptionError):
        await current().progress(-1)
    with pytest.raises(SyncInLoop, match=r"progress_sync\(\).*await progress\(\)"):
        current().progress_sync(3)

    assert said == [Progress(1), Progress(2, 4, "half")]


def test_a_plain_function_says_it_without_a_loop() -> None:
    said: list[Progress] = []

    def body() -> None:
        enter(running(said))
        current().progress_sync(1, 2, "half")

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(20)
    bridge.close()

    assert said == [Progress(1, 2, "half")]


async def test_outside_a_task_there_is_nothing_to_say() -> None:
    with pytest.raises(OutsideTask, match="no task is running"):
        await current().progress(1)
