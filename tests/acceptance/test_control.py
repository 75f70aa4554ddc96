"""Celery's remote control, on every pool: looking at a worker, changing it, and stopping what runs."""

import os
import time
from collections.abc import Iterator

import pytest
from celery import states
from marks import core_transport
from stock.world import Call, World, world
from support import Project, wait_until

pytestmark = core_transport


@pytest.fixture(scope="module")
def made(pool: str) -> Iterator[World]:
    """A worker on this pool, four calls at once."""
    with world() as made:
        made.start("--pool", pool, "--concurrency", "4")
        yield made
        assert made.worker.stop() == 0


def revoked(made: World, call: Call) -> None:
    """Its outcome is that it was revoked, said once, and nothing of it is left."""
    assert call.ended() == (states.REVOKED, "TaskRevokedError")
    made.gone(call)
    made.works()
    assert call.state == states.REVOKED
    assert made.names(call, "task_revoked", "task_success", "task_failure", "task_retry") == ["task_revoked"]
    assert made.names(call, "begun") == ["begun"]


# Looking


def test_ping(made: World) -> None:
    assert made.ask("ping") == {"ok": "pong"}


def test_registered_names_every_task(made: World) -> None:
    assert {"src.tasks.add", "src.tasks.plain_add"} <= set(made.ask("registered"))


def test_active_and_query_task_tell_what_runs(made: World) -> None:
    calls = [made.running("nap", 1.5), made.running("nap_sync", 1.5)]

    active = {info["id"]: info for info in made.ask("active")}
    assert set(active) == {call.id for call in calls}
    assert all(info["acknowledged"] is False and info["time_start"] for info in active.values())
    assert made.ask("reserved") == []  # a worker takes no more than it runs at once
    queried = made.ask("query_task", ids=[calls[0].id, "of nobody"])
    assert {id: state for id, (state, _) in queried.items()} == {calls[0].id: "active"}

    assert [call.get() for call in calls] == [1.5, "slept"]
    wait_until(lambda: made.ask("active") == [], 10, "nothing runs any more")


def test_revoked_names_what_was_revoked(made: World) -> None:
    call = made.call("add", 1, countdown=600)
    made.ask("revoke", task_id=call.id)

    assert call.id in made.ask("revoked")
    assert call.ended() == (states.REVOKED, "TaskRevokedError")


def test_stats_tell_of_the_pool(made: World, pool: str) -> None:
    before = made.ask("stats")
    assert made.call("add", 1, 1).get() == 2
    after = made.ask("stats")

    assert after["pool"]["max-concurrency"] == 4
    assert after["prefetch_count"] == 4
    assert after["total"]["src.tasks.add"] == before["total"].get("src.tasks.add", 0) + 1
    assert after["pid"] == made.worker.pid
    if pool == "prefork":
        assert len(after["pool"]["processes"]) == 4
    if pool == "asyncio":
        assert (after["pool"]["running"], after["pool"]["waiting"]) == (0, 0)


# Changing


def test_a_pool_grows_and_shrinks_and_what_it_takes_with_it(made: World, pool: str) -> None:
    if pool == "threads":  # Celery's cannot
        said = {"error": "this pool keeps its size: start the worker anew, with another --concurrency."}
        assert [made.ask("pool_grow", n=2), made.ask("pool_shrink")] == [said, said]
        return

    def at_once() -> int:
        return int(made.ask("stats")["prefetch_count"])

    made.ask("pool_grow", n=2)
    wait_until(lambda: at_once() == 6, 10, "it takes six")
    if pool == "prefork":  # which looks every five seconds
        wait_until(lambda: len(made.ask("stats")["pool"]["processes"]) == 6, 10, "it has six processes")
    calls = [made.call("nap", 1.5) for _ in range(6)]
    wait_until(lambda: len(made.ask("active")) == 6, 10, "all six run")
    assert [call.get() for call in calls] == [1.5] * 6

    made.ask("pool_shrink", n=5)
    wait_until(lambda: at_once() == 1, 10, "it takes one")
    calls = [made.call("nap", 0.3) for _ in range(3)]
    most = 0
    while any(call.state not in states.READY_STATES for call in calls):
        most = max(most, len(made.ask("active")))
    assert most == 1

    made.ask("pool_grow", n=3)
    wait_until(lambda: at_once() == 4, 10, "it takes four again")
    made.works()


def test_what_a_pool_cannot_do_is_answered_in_words(made: World, pool: str) -> None:
    """Celery logs a traceback for each, and answers with the name of an exception."""
    call = made.running("nap_sync", 1.5) if pool == "prefork" else None

    assert "started with --autoscale" in made.ask("autoscale", max=8, min=2)["error"]
    assert made.ask("pool_restart") == {"error": "pools are not restarted here: start the worker anew."}
    if call:
        assert "Can't shrink pool" in made.ask("pool_shrink", n=4)["error"]
        assert call.get() == "slept"
    assert "pidbox command error" not in made.worker.text()


def test_a_rate_limit_holds_calls_back(made: World) -> None:
    """Five a second, of a bucket that is full at first: six calls take a second."""
    made.ask("rate_limit", task_name="src.tasks.limited", rate_limit="5/s")
    began = time.monotonic()
    calls = [made.call("limited") for _ in range(6)]
    assert [call.get() for call in calls] == [1] * 6
    took = time.monotonic() - began
    made.ask("rate_limit", task_name="src.tasks.limited", rate_limit="0")

    assert 0.7 < took < 5
    assert made.ask("rate_limit", task_name="src.tasks.limited", rate_limit="often")["error"]
    assert [call.get() for call in [made.call("limited") for _ in range(8)]] == [1] * 8


def test_a_time_limit_of_a_task_is_changed(made: World, pool: str) -> None:
    """Celery's thread pool knows none."""
    assert made.ask("time_limit", task_name="src.tasks.limited", hard=0.4)["ok"]
    if pool != "threads":
        call = made.call("limited", 5)
        assert call.ended() == (states.FAILURE, "TimeLimitExceeded")
        made.gone(call)
        made.works()


def test_a_queue_is_added_and_cancelled(made: World) -> None:
    made.ask("add_consumer", queue="extra")
    assert made.call("add", 1, 1, queue="extra").get() == 2
    assert "extra" in [queue["name"] for queue in made.ask("active_queues")]

    made.ask("cancel_consumer", queue="extra")
    wait_until(lambda: "extra" not in [queue["name"] for queue in made.ask("active_queues")], 10, "it is cancelled")
    waits = made.call("add", 1, 1, queue="extra")
    made.works()
    assert waits.state == states.PENDING
    assert made.redis.llen("extra") == 1
    made.redis.delete("extra")


# Stopping what runs


def test_a_running_coroutine_is_terminated(made: World, pool: str) -> None:
    call = made.running("nap", 30)

    made.ask("revoke", task_id=call.id, terminate=True)

    revoked(made, call)
    if pool != "prefork":
        assert made.names(call, "cancelled", "cleaned up") == ["cancelled", "cleaned up"]


def test_one_that_swallows_it_was_terminated_all_the_same(made: World) -> None:
    call = made.running("swallows", 1)

    made.ask("revoke", task_id=call.id, terminate=True)

    revoked(made, call)


def test_several_are_terminated_at_once(made: World) -> None:
    calls = [made.running("nap", 30) for _ in range(3)]
    stays = made.running("nap", 1)

    made.ask("revoke", task_id=[call.id for call in calls], terminate=True)

    for call in calls:
        revoked(made, call)
    assert stays.get() == 1


def test_a_plain_function_of_ours_is_terminated(made: World, pool: str) -> None:
    """In a thread it goes on to its end, and what it returns is not wanted."""
    call = made.running("nap_sync", 1)

    made.ask("revoke", task_id=call.id, terminate=True)

    revoked(made, call)


def test_a_task_of_celerys_own_is_terminated(made: World, pool: str) -> None:
    call = made.running("plain_nap", 1)

    answer = made.ask("revoke", task_id=call.id, terminate=True)

    if pool == "threads":  # where Celery cannot
        assert "error" in answer
        assert call.ended() == (states.SUCCESS, 1)
        return

    assert call.ended() == (states.REVOKED, "TaskRevokedError")
    made.gone(call)
    if pool == "asyncio":  # in a thread, too; its late result is not wanted
        wait_until(lambda: made.marks(call, "slept"), 10, "it went on to its end")
    made.works()
    assert call.state == states.REVOKED


def test_calls_of_a_stamp_are_terminated(made: World, pool: str) -> None:
    stamp = f"stamp-{pool}"
    call = made.running("nap", 30, headers={"batch": stamp, "stamped_headers": ["batch"], "stamps": {"batch": stamp}})
    other = made.running("nap", 1)

    made.ask("revoke_by_stamped_headers", headers={"batch": [stamp]}, terminate=True)

    revoked(made, call)
    assert other.get() == 1
    if pool != "prefork":
        assert made.names(call, "cancelled", "cleaned up") == ["cancelled", "cleaned up"]


def test_a_call_that_has_just_ended_is_not_terminated_too(made: World) -> None:
    """Each has one outcome, and whoever waits for it is told that one."""
    for round in range(3):
        calls = [made.call("nap", 0.01 * i) for i in range(4)]
        made.ask("revoke", task_id=[call.id for call in calls], terminate=True)
        for call in calls:
            call.ended()
        made.gone(*calls)
        states_seen = [call.state for call in calls]
        made.works()
        assert [call.state for call in calls] == states_seen, f"round {round}"


def test_a_call_that_waits_in_the_worker_is_revoked_and_never_runs(pool: str) -> None:
    """With a prefetch of two a worker holds twice what it runs; `terminate` of what waits is a plain `revoke`."""
    with world() as made:
        made.start("--pool", pool, "--concurrency", "1", CELERY='{"worker_prefetch_multiplier": 3}')
        running, revoked_call, terminated = made.running("nap", 1), made.call("nap", 0), made.call("nap", 0)
        wait_until(lambda: len(made.ask("reserved")) == 2, 10, "both wait in the worker")

        assert {info["id"] for info in made.ask("reserved")} == {revoked_call.id, terminated.id}
        assert made.ask("query_task", ids=[terminated.id])[terminated.id][0] == "reserved"
        made.ask("revoke", task_id=revoked_call.id)
        made.ask("revoke", task_id=terminated.id, terminate=True)

        assert running.get() == 1
        for call in (revoked_call, terminated):
            assert call.ended() == (states.REVOKED, "TaskRevokedError")
        made.works()
        made.gone(revoked_call, terminated)
        for call in (revoked_call, terminated):
            assert made.names(call, "begun", "task_revoked") == ["task_revoked"]
        assert made.worker.stop() == 0


# Last, since it ends the worker


def test_shutdown_stops_the_worker_when_what_runs_has_ended(pool: str) -> None:
    with world() as made:
        made.start("--pool", pool, "--concurrency", "2")
        call = made.running("nap", 0.7)

        made.app.control.shutdown(destination=[made.node])

        assert made.worker.wait(20) == 0
        assert call.get(timeout=5) == 0.7
        made.gone(call)
        assert "Traceback" not in made.worker.text()


# What a pool refuses, and which one runs


# What a worker is told that follows safe commands only

REFUSED = {"error": "this worker refuses it: task_remote_control is safe. Set it to full."}


@pytest.mark.parametrize("environment", [{"TASK_REMOTE_CONTROL": "safe"}, {"ENVIRONMENT": "production"}])
def test_a_safe_worker_is_neither_stopped_nor_slowed(environment: dict[str, str]) -> None:
    with world() as made:
        made.project.run("core", "broker", "start")
        made.project.environment |= environment | {"REDIS_URL": f"unix://{made.socket}"}
        made.start("--pool", "asyncio", "--concurrency", "4")

        for command, arguments in {
            "shutdown": {}, "pool_shrink": {"n": 1}, "pool_grow": {"n": 1}, "pool_restart": {}, "autoscale": {"max": 1},
            "rate_limit": {"task_name": "src.tasks.nap", "rate_limit": "1/h"}, "memdump": {},
            "time_limit": {"task_name": "src.tasks.nap", "hard": 1}, "add_consumer": {"queue": "other"},
            "cancel_consumer": {"queue": "default"},
        }.items():  # fmt: skip
            assert made.ask(command, **arguments) == REFUSED, command

        assert made.ask("ping") == {"ok": "pong"}
        assert "ok" in made.ask("enable_events")
        assert made.ask("stats")["pool"]["max-concurrency"] == 4
        call = made.running("nap", 60)
        made.app.control.revoke(call.id, terminate=True)
        revoked(made, call)


def test_a_worker_without_remote_control_answers_nobody() -> None:
    with world() as made:
        made.project.environment |= {"TASK_REMOTE_CONTROL": "off"}
        made.start("--pool", "asyncio", "--concurrency", "4")

        assert made.running("nap", 0.1).get() == 0.1
        assert made.app.control.ping(timeout=1) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--autoscale", "4,1"), "--autoscale is not for the asyncio pool"),
        (("--max-tasks-per-child", "10"), "is not for the asyncio pool"),
        (("--max-memory-per-child", "100000"), "is not for the asyncio pool"),
        (("-P", "threads", "--autoscale", "4,1"), "--autoscale is not for the threads pool"),
    ],
)
@pytest.mark.parametrize(
    "command", [("core", "runworker", "--"), ("celery", "-A", "core", "worker")], ids=["core", "celery"]
)
def test_what_makes_no_sense_on_a_pool_is_refused(
    empty: Project, command: tuple[str, ...], options: tuple[str, ...], said: str
) -> None:
    empty.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
    empty.write("src/tasks.py", "from core.tasks import task\n\n\n@task\nasync def f() -> None: ...\n")

    done = empty.run(*command, *options, TASK_WORKER_PROCESSES="1")

    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if said in line]) == 1


@pytest.mark.parametrize(
    ("options", "serving"),
    [
        ((), "100 at once · asyncio, 1 process"),
        (("-P", "prefork"), f"{os.cpu_count()} at once · prefork"),
        (("-P", "threads"), "50 at once · threads"),
    ],
    ids=["default", "prefork", "threads"],
)
def test_celery_worker_runs_the_pool_that_it_says(options: tuple[str, ...], serving: str) -> None:
    with world() as made:
        worker = made.project.start("celery", "-A", "core", "worker", "-l", "info", *options)
        worker.wait_for("serving ")
        assert serving in worker.text()
        made.works()
        assert worker.stop() == 0
        assert "Traceback" not in worker.text()
