"""What Celery does for a call on every pool: hooks, signals, events, limits, callbacks and canvas."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group, states
from marks import core_transport
from stock.world import Call, World, world
from support import held, wait_until

pytestmark = core_transport

#: Signals of a hard limit: Celery's prefork pool sends its own twice.
LIMITED = {"asyncio": ["task_failure"], "prefork": ["task_failure"] * 2}
#: Whatever says that a call has come to an end, or is to be tried again.
OUTCOMES = ("task_success", "task_failure", "task_retry", "task_revoked", "task_rejected", "task_internal_error")


@pytest.fixture(scope="module")
def made(pool: str) -> Iterator[World]:
    """A worker on this pool, four calls at once."""
    with world() as made:
        made.start("--pool", pool, "--concurrency", "4")
        yield made
        assert made.worker.stop() == 0


def whole(made: World, call: Call, *only: str) -> list[str]:
    """The marks of a call that has ended: the last of them come after its result."""
    wait_until(lambda: made.names(call, "task_postrun"), 10, "it is over")
    made.gone(call)
    return made.names(call, *only)


# Hooks, signals, events, and whose call it is


def test_the_hooks_and_signals_of_a_success_come_once_and_in_order(made: World) -> None:
    call = made.call("plain")

    assert call.get() == [call.id, call.id, 0]
    assert whole(made, call) == [
        "task_received", "task_prerun", "before_start", "on_success", "task_success", "after_return", "task_postrun",
    ]  # fmt: skip


def test_the_hooks_and_signals_of_a_retry_and_a_failure_come_once_and_in_order(made: World) -> None:
    call = made.call("plain", 99)

    assert call.ended() == (states.FAILURE, "ValueError")
    wait_until(lambda: len(made.marks(call, "task_postrun")) == 2, 10, "both attempts are over")
    assert whole(made, call) == [
        "task_received", "task_prerun", "before_start", "on_retry", "task_retry", "task_postrun",
        "task_received", "task_prerun", "before_start", "on_failure", "task_failure", "after_return", "task_postrun",
    ]  # fmt: skip
    assert [mark["state"] for mark in made.marks(call, "task_postrun")] == [states.RETRY, states.FAILURE]


def test_the_signals_of_our_own_tasks_are_the_same(made: World) -> None:
    call = made.call("ours", 1)

    call.get()
    wait_until(lambda: len(made.marks(call, "task_postrun")) == 2, 10, "both attempts are over")
    assert whole(made, call) == [
        "task_received", "task_prerun", "task_retry", "task_postrun",
        "task_received", "task_prerun", "task_success", "task_postrun",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "ours"])
def test_hooks_and_signals_know_their_call_and_its_task_where_many_run(made: World, name: str) -> None:
    calls = [made.call(name, i % 2) for i in range(12)]
    for call in calls:
        call.get()
        whole(made, call)

    for call in calls:
        ran = [mark for mark in made.marks(call) if mark["what"] != "task_received"]
        assert {mark["here"] for mark in ran} == {call.id}, ran
        assert {mark.get("own", call.id) for mark in ran} == {call.id}
        senders = {mark["sender"] for mark in ran if mark["what"].startswith("task_")}
        assert senders == {f"src.tasks.{name}"}


def test_a_coroutine_and_what_it_starts_know_their_call(made: World) -> None:
    calls = [made.call("ours") for _ in range(8)]

    assert [call.get() for call in calls] == [[call.id] * 4 for call in calls]


@contextmanager
def events(made: World) -> Iterator[list[dict[str, Any]]]:
    """What the worker announces meanwhile, since somebody asks."""
    found: list[dict[str, Any]] = []
    made.ask("enable_events")
    with made.app.connection_for_read() as connection:
        receiver = made.app.events.Receiver(connection, handlers={"*": found.append})
        ready, over = threading.Event(), threading.Event()

        def receive() -> None:
            with receiver.consumer_context(wakeup=False) as (own, _, _):
                ready.set()
                while not over.is_set():
                    try:
                        own.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

        thread = threading.Thread(target=receive)
        thread.start()
        ready.wait()
        try:
            wait_until(lambda: made.call("add", 1).get() and found, 10, "the first event")  # it listens from then on
            yield found
        finally:
            made.ask("disable_events")
            over.set()
            thread.join()


RETRIED = ("task-received", "task-started", "task-retried")


def test_events_tell_of_every_step_once(made: World) -> None:
    expected = {
        "plain": [*RETRIED, "task-received", "task-started", "task-succeeded"],
        "ours": [*RETRIED, "task-received", "task-started", "task-succeeded"],
        "fails": ["task-received", "task-started", "task-failed"],
        "ignores": ["task-received", "task-started"],
    }
    with events(made) as found:
        calls = {name: made.call(name, *((1,) if name in ("plain", "ours") else ("no",) if name == "fails" else ()))
                 for name in expected}  # fmt: skip

        def seen(call: Call) -> list[str]:
            return sorted(event["type"] for event in list(found) if event.get("uuid") == call.id)

        for name, call in calls.items():
            wait_until(lambda name=name, call=call: seen(call) == sorted(expected[name]), 10, f"events of {name}")
        made.works()
        assert {name: seen(call) for name, call in calls.items()} == {n: sorted(e) for n, e in expected.items()}
        said = {event["uuid"]: event["exception"] for event in found if event["type"] == "task-retried"}
        assert said == {calls["ours"].id: "TaskError('attempt 1')", calls["plain"].id: "ValueError('attempt 1')"}
        made.ask("disable_events")
        unseen = made.call("ours")
        unseen.get()
        made.ask("enable_events")
        last = made.call("ours")
        last.get()
        wait_until(lambda: "task-succeeded" in seen(last), 10, "events of the last call")
        assert seen(unseen) == []


# How a call ends


def test_celerys_own_retries_go_on_until_they_succeed(made: World) -> None:
    assert made.call("retried_by_celery", 2).get() == 2
    assert made.call("retried_by_celery", 3).ended() == (states.FAILURE, "KeyError")


def test_a_rejected_call_is_delivered_again(made: World, tmp_path: Path) -> None:
    call = made.call("rejects", str(tmp_path / "deliveries"), True)

    assert call.get() == 2
    assert whole(made, call, "task_success", "task_failure", "task_postrun").count("task_success") == 1


def test_a_call_that_is_rejected_for_good_has_failed(made: World, tmp_path: Path) -> None:
    call = made.call("rejects", str(tmp_path / "deliveries"), False)

    assert call.ended() == (states.FAILURE, "Reject")
    made.gone(call)
    assert (tmp_path / "deliveries").read_text() == "x"


def test_an_ignored_call_has_no_outcome_and_is_done(made: World) -> None:
    call = made.call("ignores")

    assert whole(made, call, "ran", *OUTCOMES) == ["ran"]
    assert call.state not in states.READY_STATES


def test_a_call_that_is_acknowledged_early_is_held_by_nobody_while_it_runs(made: World) -> None:
    call = made.running("acks_early", 0.7)

    wait_until(lambda: not held(made.redis), 5, "nobody holds it")
    assert call.state not in states.READY_STATES
    assert call.get() == 0.7
    assert made.names(call, "begun") == ["begun"]


def test_a_task_is_replaced_by_another(made: World) -> None:
    assert made.call("replaced", 1).get() == 101


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "CancelledError"])
def test_what_must_not_leave_a_body_of_celerys_own_ends_neither_the_worker_nor_other_calls(
    made: World, pool: str, kind: str
) -> None:
    if pool == "threads":
        pytest.skip("Celery's thread pool holds such a call for as long as it lives")
    beside = made.running("nap", 0.5)

    call = made.call("plain_raises", kind)

    assert call.ended(40)[0] == states.FAILURE  # prefork looks every five seconds for a process that was lost
    made.gone(call)
    made.works()
    assert beside.get() == 0.5
    assert made.worker.popen.poll() is None


# Limits of a stock producer


def test_a_soft_limit_cancels_a_coroutine(made: World, pool: str) -> None:
    call = made.call("nap", 1, soft_time_limit=0.3)

    if pool == "threads":  # where Celery keeps none
        assert call.get() == 1
        return
    assert call.ended() == (states.FAILURE, "SoftTimeLimitExceeded")
    wait_until(lambda: made.names(call, "cleaned up"), 5, "its finally ran")
    assert whole(made, call, "begun", "cancelled", *OUTCOMES) == ["begun", "cancelled", "task_failure"]


def test_a_hard_limit_ends_a_coroutine(made: World, pool: str) -> None:
    call = made.call("nap", 1, time_limit=0.3)

    if pool == "threads":
        assert call.get() == 1
        return
    assert call.ended() == (states.FAILURE, "TimeLimitExceeded")
    made.gone(call)
    if pool == "asyncio":
        wait_until(lambda: made.names(call, "cleaned up"), 5, "its finally ran")
    made.works()
    assert made.names(call, "begun", *OUTCOMES) == ["begun", *LIMITED[pool]]
    assert call.state == states.FAILURE


def test_a_coroutine_that_goes_on_after_its_hard_limit_has_failed_all_the_same(made: World, pool: str) -> None:
    call = made.call("swallows", 1, time_limit=0.3)

    if pool == "threads":
        assert call.get() == "went on"
        return
    assert call.ended() == (states.FAILURE, "TimeLimitExceeded")
    if pool == "asyncio":
        wait_until(lambda: made.names(call, "went on"), 5, "it has ended")
    made.gone(call)
    made.works()
    assert made.names(call, "begun", *OUTCOMES) == ["begun", *LIMITED[pool]]
    assert call.state == states.FAILURE


def test_limits_of_a_plain_function_are_kept_where_it_has_a_process(made: World, pool: str) -> None:
    soft, hard = made.call("nap_sync", 1, soft_time_limit=0.3), made.call("nap_sync", 1, time_limit=0.3)

    assert soft.get() == ("caught" if pool == "prefork" else "slept")
    assert hard.ended() == ((states.FAILURE, "TimeLimitExceeded") if pool == "prefork" else (states.SUCCESS, "slept"))
    made.gone(soft, hard)
    made.works()
    assert made.names(hard, "begun", *OUTCOMES) == [
        "begun",
        *(LIMITED[pool] if pool == "prefork" else ["task_success"]),
    ]


# Callbacks and canvas


def test_a_callback_gets_the_result_and_an_error_callback_the_error(made: World) -> None:
    """Of our tasks and of Celery's own."""
    for name, good, bad in (("add", (1, 2), None), ("plain_add", (1, 2), None), ("fails", None, ("no",))):
        options = {"link": made.sign("callback", f"of {name}"), "link_error": made.sign("errback")}
        call = made.call(name, *(good or bad or ()), **options)
        call.ended()
        if good:
            wait_until(lambda name=name: made.names(f"of {name}", "callback"), 10, "it is called back")
            assert [mark["value"] for mark in made.marks(f"of {name}")] == [3]
            assert not made.names(call, "errback")
        else:
            wait_until(lambda call=call: made.names(call, "errback"), 10, "it is called back")
            assert [mark["error"] for mark in made.marks(call, "errback")] == ["no"]
            assert not made.names(f"of {name}", "callback")


def result(made: World, canvas: Any) -> Any:
    """What a canvas comes to."""
    return Call(made.redis, canvas.apply_async().id).get()


def test_a_chain_goes_through_tasks_of_both_kinds(made: World) -> None:
    steps = [made.sign("add", 1, 2), made.sign("plain_add", 10), made.sign("add", 5, 5, immutable=True)]

    assert result(made, chain(*steps[:2])) == 13
    assert result(made, chain(*steps)) == 10


def test_a_group_of_two_hundred(made: World) -> None:
    names = ("add", "plain_add")
    sent = group(made.sign(names[i % 2], i, 1) for i in range(200)).apply_async()
    calls = [Call(made.redis, child.id) for child in sent.results]

    assert [call.get(30) for call in calls] == [i + 1 for i in range(200)]


@pytest.mark.parametrize("body", ["total", "plain_total"])
def test_a_chord_of_twenty(made: World, body: str) -> None:
    names = ("add", "plain_add")

    assert result(made, chord([made.sign(names[i % 2], i, 1) for i in range(20)], made.sign(body))) == 210


def test_a_chord_with_a_failure_fails_its_body_once(made: World) -> None:
    body = made.sign("total").on_error(made.sign("errback"))
    sent = chord([made.sign("add", 1), made.sign("fails", "no"), made.sign("plain_add", 2)], body).apply_async()
    call = Call(made.redis, sent.id)

    assert call.ended() == (states.FAILURE, "ChordError")
    wait_until(lambda: made.names(call, "errback"), 10, "it is called back")
    made.gone(call)
    assert Counter(made.names(call)) == {"errback": 1}


def test_a_rate_limit_of_a_task_is_kept(made: World) -> None:
    """Ten a second, of a bucket that is full at first: eight more calls take 0.8 s."""
    began = time.monotonic()
    for call in [made.call("ten_a_second") for _ in range(9)]:
        call.get()

    assert 0.6 < time.monotonic() - began < 5
