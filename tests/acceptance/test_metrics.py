"""What Prometheus reads of a worker of several processes, whichever of them answers, and whatever becomes of them."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

import pytest
from marks import core_transport
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from support import Process, Project, free_port, project, redis_server, wait_until

TASKS = """
import asyncio
import os

from core.tasks import periodic_task, task


@task
async def quick() -> int:
    return os.getpid()


@task
async def waits() -> None:
    while not os.path.exists("enough"):
        await asyncio.sleep(0.02)


@task
async def waits_in(file: str) -> None:
    with open(file, "w") as told:
        print(os.getpid(), file=told)
    await waits()


@task(queue="later")
async def later() -> None: ...


@periodic_task(interval=3600)
async def hourly() -> None: ...
"""
CALLS = """
import asyncio
from src.tasks import later, quick

async def main():
    pids = set()
    while len(pids) < 2:
        pids |= set(await asyncio.gather(*(call.get(timeout=20) for call in await quick.delay_many([()] * 10))))
        print("called")
    await quick.delay(countdown=600)
    await later.delay()
    await later.delay()

asyncio.run(main())
"""


def scraped(port: int) -> dict[str, float]:
    """The samples by name and labels, as Prometheus reads them."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        found = {}
        for family in families:
            for sample in family.samples:
                named = sorted(sample.labels.items(), reverse=True)  # the task first
                labels = ",".join(value.removeprefix("src.tasks.") for _, value in named)
                found[sample.name.removeprefix("core_tasks_") + (f"[{labels}]" if labels else "")] = sample.value
        return found


@dataclass
class Served:
    """A worker of two processes that has run some calls, and its port."""

    project: Project
    worker: Process
    redis: Any
    client: Any
    port: int
    #: How many calls have run.
    calls: int

    def nodes(self) -> list[int]:
        """The pids of its processes."""
        with open(f"/proc/{self.worker.pid}/task/{self.worker.pid}/children") as children:
            return [int(pid) for pid in children.read().split()]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with redis_server() as (url, server), project(copy=None) as made, Redis.from_url(url) as client:
        made.environment = {"REDIS_URL": url, "PYTHONPATH": ".", "TASK_WORKER_PROCESSES": "2"}
        made.write("src/settings.py", "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n")
        made.write("src/tasks.py", TASKS)
        port = free_port()
        worker = made.worker(
            "--queue", "default", "--concurrency", "4", "--metrics-port", str(port), TASK_WORKER_PROCESSES="2"
        )
        done = made.python(CALLS)
        assert done.returncode == 0, f"{done.stderr}\n{worker.text()}"
        yield Served(made, worker, server, client, port, 10 * done.stdout.count("called"))
        server.send_signal(signal.SIGCONT)
        worker.stop()


def test_calls_are_counted_over_all_processes(served: Served) -> None:
    def complete() -> dict[str, float]:
        found = scraped(served.port)
        return found if found["finished_total[quick,success]"] >= served.calls else {}

    found = wait_until(complete, 10, "all calls are counted")

    assert found["finished_total[quick,success]"] == found["seconds_count[quick]"] == served.calls
    assert found["seconds_bucket[quick,+Inf]"] == served.calls
    assert 0 < found["seconds_sum[quick]"] < 20
    assert found["finished_total[quick,failed]"] == found["finished_total[later,success]"] == 0
    assert "seconds_count[later]" not in found
    assert 0 <= found["loop_lag_seconds"] < 10
    assert not any("celery." in name for name in found)


def test_what_runs_is_counted_in_the_process_that_answers_and_in_the_others(served: Served) -> None:
    """Four calls at once are all that this worker has room for, two in each process."""
    done = served.project.python("import asyncio; from src.tasks import waits; asyncio.run(waits.delay_many([()] * 4))")
    assert done.returncode == 0, done.stderr

    wait_until(lambda: scraped(served.port)["in_flight"] == 4, 20, "four calls run")
    served.project.write("enough", "")
    wait_until(lambda: scraped(served.port)["in_flight"] == 0, 20, "no call runs")


@core_transport
def test_what_waits_is_read_from_redis(served: Served) -> None:
    found = wait_until(lambda: (f := scraped(served.port))["delayed"] and f, 20, "a worker has parked the countdown")

    assert found["redis_up"] == 1
    assert (found["waiting[default]"], found["waiting[later]"], found["delayed"]) == (0, 2, 1)
    assert found["oldest_seconds[default]"] == 0
    assert 0 <= found["oldest_seconds[later]"] < 60
    assert (found["dead[set-aside]"], found["dead[failed]"]) == (0, 0)
    wait_until(lambda: scraped(served.port)["oldest_seconds[later]"] > 1, 10, "they grow older")


def test_a_scheduler_that_leads_is_seen(served: Served) -> None:
    assert scraped(served.port)["scheduler_leads"] == 0

    scheduler = served.project.start("core", "scheduler", "start")

    found = wait_until(lambda: (f := scraped(served.port))["scheduler_leads"] and f, 20, "a scheduler leads")
    assert found["scheduler_overdue_seconds"] < 10
    scheduler.stop()
    assert scraped(served.port)["scheduler_leads"] == 0


def test_a_port_that_somebody_has_is_a_mistake_of_whoever_starts(served: Served) -> None:
    done = served.project.run("core", "runworker", "--metrics-port", str(served.port))

    assert done.returncode == 2
    assert f"127.0.0.1:{served.port}: another process has it, perhaps another worker" in done.stderr


def test_what_is_missing_is_named(served: Served) -> None:
    hidden = served.project.write("hidden/prometheus_client.py", "raise ImportError('hidden')")

    done = served.project.run("core", "runworker", "--metrics-port", "1", PYTHONPATH=f".:{hidden.parent}")

    assert done.returncode == 2
    assert "pip install 'core-tasks[metrics]'" in done.stderr


def test_what_a_process_has_counted_outlives_it_and_a_frozen_one_holds_nobody_up(served: Served) -> None:
    first, second = served.nodes()
    os.kill(first, signal.SIGSTOP)
    try:
        for _ in range(4):
            assert scraped(served.port)["seconds_count[quick]"] >= served.calls
    finally:
        os.kill(first, signal.SIGCONT)
    before = scraped(served.port)["finished_total[quick,success]"]

    os.kill(second, signal.SIGKILL)
    wait_until(lambda: len(served.nodes()) == 2 and second not in served.nodes(), 10, "it is started again")

    assert scraped(served.port)["finished_total[quick,success]"] == before


def test_what_a_killed_process_had_in_flight_is_not_shown_while_nobody_is_in_its_place(served: Served) -> None:
    """Its supervisor stands still, so nobody starts it again, and it is not even collected."""
    enough = served.project.root / "enough"
    enough.unlink(missing_ok=True)
    done = served.project.python("import asyncio; from src.tasks import waits; asyncio.run(waits.delay_many([()] * 4))")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: scraped(served.port)["in_flight"] == 4, 20, "four calls run")
    before = scraped(served.port)
    served.worker.signal(signal.SIGSTOP)
    try:
        os.kill(served.nodes()[0], signal.SIGKILL)

        found = wait_until(lambda: (f := scraped(served.port))["in_flight"] == 2 and f, 5, "two calls run")
        assert found["finished_total[quick,success]"] == before["finished_total[quick,success]"]
        assert found["seconds_sum[quick]"] == before["seconds_sum[quick]"]
    finally:
        served.worker.signal(signal.SIGCONT)
    enough.touch()
    wait_until(lambda: scraped(served.port)["finished_total[waits,success]"] >= before["finished_total[waits,success]"]
               + 2, 20, "the others end")  # fmt: skip


def test_a_killed_pool_process_takes_no_count_with_it(served: Served) -> None:
    """Its call runs again in another one, and is counted there."""
    made, port = served.project, free_port()
    (made.root / "enough").unlink(missing_ok=True)
    file = made.root / "pid"
    worker = made.worker("--pool", "prefork", "--queue", "later", "--concurrency", "1", "--metrics-port", str(port))
    served.client.delete("later")
    done = made.python(f"""
import asyncio
from src.tasks import quick, waits_in

async def main():
    for _ in range(3):
        await (await quick.options(queue="later").delay()).get(timeout=20)
    await waits_in.options(queue="later").delay({str(file)!r})

asyncio.run(main())
""")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: file.exists() and file.read_text().strip(), 20, "it runs")
    wait_until(lambda: scraped(port)["in_flight"] == 1, 10, "it is in flight")
    child = int(file.read_text())
    file.unlink()

    os.kill(child, signal.SIGKILL)

    wait_until(lambda: file.exists() and file.read_text().strip(), 20, "it runs in another process")
    found = scraped(port)
    assert found["finished_total[quick,success]"] == found["seconds_count[quick]"] == 3
    assert found["in_flight"] == 1
    (made.root / "enough").touch()
    found = wait_until(lambda: (f := scraped(port))["finished_total[waits_in,success]"] and f, 20, "it is counted")
    assert found["finished_total[waits_in,failed]"] == 0
    assert found["seconds_count[waits_in]"] == 1
    assert found["finished_total[quick,success]"] == 3
    wait_until(lambda: scraped(port)["in_flight"] == 0, 10, "nothing is in flight")
    worker.stop()


def test_a_redis_that_hangs_makes_no_scrape_hang(served: Served) -> None:
    """The last one here, since it leaves nobody to ask."""
    served.redis.send_signal(signal.SIGSTOP)
    began = time.monotonic()

    found = scraped(served.port)

    assert time.monotonic() - began < 8
    assert found["redis_up"] == 0
    assert found["finished_total[quick,success]"] >= served.calls
    assert "waiting[default]" not in found
    assert "scheduler_leads" not in found
    served.redis.send_signal(signal.SIGCONT)
    wait_until(lambda: scraped(served.port)["redis_up"], 20, "Redis is back")
