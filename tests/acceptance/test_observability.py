"""Who looks at a worker from outside: traces, errors, request ids and log lines, with the real libraries on every pool.

One worker a pool has everything on at once, and one client makes the same few calls as a web application would.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.request import urlopen

import pytest
from support import Process, Project, free_port, project, redis_server, wait_until

SETTINGS = """
import json
from typing import Literal

import sentry_sdk
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

from core.config import Settings


def note(kind, **what):
    with open("seen.jsonl", "a") as file:
        file.write(json.dumps({"kind": kind, **what}) + "\\n")


class Exporter(SpanExporter):
    def export(self, spans):
        for span in spans:
            note("span", name=span.name, trace=f"{span.context.trace_id:032x}", id=f"{span.context.span_id:016x}",
                 parent=span.parent and f"{span.parent.span_id:016x}", status=span.status.status_code.name,
                 message=span.attributes.get("messaging.message.id"))
        return SpanExportResult.SUCCESS


class Local(Transport):
    def capture_envelope(self, envelope):
        event = envelope.get_event()
        if event:
            note("error", transaction=event["transaction"], trace=event["contexts"]["trace"]["trace_id"],
                 task=event.get("extra", {}).get("celery-job", {}).get("task_name"), tags=event.get("tags"),
                 type=event["exception"]["values"][-1]["type"], text=event["exception"]["values"][-1]["value"])


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Exporter()))
trace.set_tracer_provider(provider)
CeleryInstrumentor().instrument()
sentry_sdk.init(dsn="http://key@localhost/1", transport=Local, traces_sample_rate=1.0, default_integrations=False,
                integrations=[CeleryIntegration()])


class AppSettings(Settings):
    task_context_headers: tuple[str, ...] = ("asgi_correlation_id:correlation_id",)
    task_log_format: Literal["text", "json"] = "json"
"""
TASKS = """
import asyncio
import logging

from asgi_correlation_id import correlation_id
from celery.utils.log import get_task_logger
from opentelemetry import trace

from core.tasks import TaskError, current, task

logger = logging.getLogger("src.own")
celerys = get_task_logger(__name__)
tracer = trace.get_tracer("src")


class Broken(Exception):
    pass


@task
async def parent(word: str) -> dict:
    logger.info("in %s", word, extra={"answer": 42})
    with tracer.start_as_current_span("inside"):
        results = [await child.delay(), await asyncio.to_thread(lambda: by_celery.s().apply_async())]
    values = [await results[0].get(), await asyncio.to_thread(lambda: results[1].get(disable_sync_subtasks=False))]
    return {"here": correlation_id.get(), "below": values}


@task
async def child() -> str | None:
    celerys.warning("in the child")
    return correlation_id.get()


@task
def by_celery() -> str | None:
    logger.info("in the plain one")
    return correlation_id.get()


@task
async def here() -> str | None:
    return correlation_id.get()


@task
async def follows(before: str | None) -> list[str | None]:
    return [before, correlation_id.get()]


@task(max_retries=1, retry_delay=0.1)
async def again() -> str | None:
    if current().attempt == 1:
        raise TaskError("once more")
    return correlation_id.get()


@task
async def sleeps() -> None:
    await asyncio.sleep(60)


@task
async def breaks() -> None:
    raise Broken("as it must")
"""
CLIENT = """
import asyncio, json
import sentry_sdk
from asgi_correlation_id import correlation_id
from celery import chain
from opentelemetry import trace
from core import config
from src.tasks import again, breaks, by_celery, follows, here, parent, sleeps

config.get_settings()


async def main():
    told = {}
    correlation_id.set("request-7")
    tracer = trace.get_tracer("web")
    with tracer.start_as_current_span("request") as span, sentry_sdk.start_transaction(name="web") as transaction:
        whole, failing = await parent.delay("parent"), await breaks.delay()
        one, many = await here.delay(), await here.delay_many([()])
        chained = await asyncio.to_thread(lambda: chain(here.s(), follows.s()).apply_async())
        retried = await again.delay()
        told["trace"], told["sentry"] = f"{span.get_span_context().trace_id:032x}", transaction.trace_id
    told["ids"] = {"parent": whole.id, "breaks": failing.id}
    told["parent"], told["again"] = await whole.get(timeout=30), await retried.get(timeout=30)
    told["here"], told["many"] = await one.get(timeout=30), await many[0].get(timeout=30)
    told["chained"] = await asyncio.to_thread(chained.get, 30)
    stopped = await sleeps.delay()
    while await stopped.status() != "running":
        await asyncio.sleep(0.02)
    await stopped.cancel()
    for name, call in (("error", failing), ("cancelled", stopped)):
        try:
            await call.get(timeout=30)
        except Exception as error:
            told[name] = str(error)
    correlation_id.set(None)
    told["unset"] = [await (await here.delay()).get(timeout=30) for _ in range(8)]
    print(json.dumps(told))

asyncio.run(main())
"""


@dataclass
class Observed:
    """One worker that has run the client's calls."""

    project: Project
    worker: Process
    #: What the client has printed.
    told: dict[str, Any]
    #: Where its metrics are.
    port: int

    def seen(self, kind: str) -> list[dict[str, Any]]:
        """What was exported of one kind, by any process."""
        lines = (self.project.root / "seen.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["kind"] == kind]

    def logged(self) -> list[dict[str, Any]]:
        """The lines that the worker has logged."""
        return [json.loads(line) for line in self.worker.text().splitlines()]


@pytest.fixture(scope="module")
def observed(pool: str) -> Iterator[Observed]:
    with redis_server() as (url, _), project(copy=None) as made:
        made.environment = {"REDIS_URL": url, "PYTHONPATH": "."}
        if "TEST_TRANSPORT" not in os.environ:  # headers that others add are signed, too
            made.environment["TASK_SIGNING_KEYS"] = "a key that is long enough for everyone"
        made.write("src/settings.py", SETTINGS)
        made.write("src/tasks.py", TASKS)
        port = free_port()
        worker = made.worker("--pool", pool, "--concurrency", "4", "--metrics-port", str(port))
        done = made.python(CLIENT)
        assert done.returncode == 0, f"{done.stderr}\n{worker.text()}"
        yield Observed(made, worker, json.loads(done.stdout), port)
        worker.stop()


def test_a_context_variable_travels_with_calls_of_every_kind(observed: Observed) -> None:
    told = observed.told

    assert (told["here"], told["many"], told["again"]) == ("request-7",) * 3
    assert told["parent"] == {"here": "request-7", "below": ["request-7", "request-7"]}
    assert told["chained"] == ["request-7", "request-7"]


def test_a_variable_that_is_unset_is_so_in_the_next_call_of_the_same_worker(observed: Observed) -> None:
    assert observed.told["unset"] == [None] * 8


def test_one_trace_leads_from_a_request_to_its_task_and_on_to_the_tasks_of_that(observed: Observed) -> None:
    """Each span's parent is the one above it."""
    whole = observed.told["ids"]["parent"]

    def complete() -> list[dict[str, Any]]:
        found = [span for span in observed.seen("span") if span["trace"] == observed.told["trace"]]
        return (
            found if {"request", "run/src.tasks.parent", "run/src.tasks.breaks"} <= {s["name"] for s in found} else []
        )

    spans = wait_until(complete, 20, "all spans are exported")
    by_id = {span["id"]: span for span in spans}

    def path(span: dict[str, Any]) -> list[str]:
        above = path(by_id[span["parent"]]) if span["parent"] else []
        return [*above, span["name"].replace("src.tasks.", "")]

    paths = [path(span) for span in spans]
    to_parent = ["request", "apply_async/parent", "run/parent", "inside"]
    for child in ("child", "by_celery"):
        assert paths.count([*to_parent, f"apply_async/{child}", f"run/{child}"]) == 1
    assert [span["message"] for span in spans if span["name"] == "run/src.tasks.parent"] == [whole]
    assert [span["status"] for span in spans if span["name"] == "run/src.tasks.breaks"] == ["ERROR"]
    assert ["request", "apply_async/here", "run/here", "apply_async/follows", "run/follows"] in paths
    assert ["request", "apply_async/again", "run/again", "apply_async/again", "run/again"] in paths


def test_sentry_hears_of_an_error_once_with_its_task_and_the_trace_of_the_caller(observed: Observed) -> None:
    errors = wait_until(lambda: observed.seen("error"), 20, "an error is sent")

    assert observed.told["error"] == "as it must"
    assert [error["type"] for error in errors] == ["Broken"]
    assert errors[0]["transaction"] == errors[0]["task"] == "src.tasks.breaks"
    assert errors[0]["tags"]["celery_task_id"] == observed.told["ids"]["breaks"]
    assert errors[0]["trace"] == observed.told["sentry"]


def test_every_line_of_the_log_is_one_object_that_names_its_task(observed: Observed) -> None:
    whole, failed = observed.told["ids"]["parent"], observed.told["ids"]["breaks"]

    def lines() -> dict[str, dict[str, Any]]:
        found = {line["message"]: line for line in observed.logged()}
        return found if any(text.startswith("src.tasks.parent[") for text in found) else {}

    found = wait_until(lines, 20, "the task's line is logged")
    mine = {"task": "src.tasks.parent", "task_id": whole, "correlation_id": "request-7"}
    said = found["in parent"]
    assert said == {**mine, "time": said["time"], "level": "INFO", "logger": "src.own", "message": "in parent",
                    "answer": 42}  # fmt: skip
    assert datetime.fromisoformat(said["time"]).utcoffset() == timedelta()
    for text, name in (("in the child", "child"), ("in the plain one", "by_celery")):
        assert (found[text]["task"], found[text]["correlation_id"]) == (f"src.tasks.{name}", "request-7")
    (of_ours,) = (line for text, line in found.items() if text.startswith(f"src.tasks.parent[{whole}] success"))
    assert mine.items() <= of_ours.items()
    (error,) = (line for text, line in found.items() if text.startswith(f"src.tasks.breaks[{failed}] failed"))
    assert (error["level"], error["task_id"]) == ("ERROR", failed)
    assert error["exception"].splitlines()[-1] == "src.tasks.Broken: as it must"
    (ready,) = (line for text, line in found.items() if text.startswith("serving "))
    assert set(ready) == {"time", "level", "logger", "message"}


def test_each_outcome_is_counted_once_on_every_pool(observed: Observed) -> None:
    """What has been cancelled while it ran, too, and what pool processes did."""

    def counted() -> dict[str, int]:
        with urlopen(f"http://127.0.0.1:{observed.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        pattern = r'^core_tasks_finished_total\{.*outcome="(\w+)",task="src\.tasks\.(\w+)"\} ([1-9]\d*)\.0$'
        found = re.findall(pattern, text, re.MULTILINE)
        return {f"{name} {outcome}": int(count) for outcome, name, count in found}

    expected = {
        "again retried": 1, "again success": 1, "breaks failed": 1, "by_celery success": 1, "child success": 1,
        "follows success": 1, "here success": 11, "parent success": 1, "sleeps cancelled": 1,
    }  # fmt: skip
    wait_until(lambda: counted() == expected, 20, f"{counted()} is {expected}")


def test_the_scheduler_and_a_worker_of_celerys_own_command_log_in_the_same_way(fresh: Project) -> None:
    fresh.environment |= {"TASK_LOG_FORMAT": "json"}
    scheduler, worker = (
        fresh.start("core", "scheduler", "start"),
        fresh.start("celery", "-A", "core", "worker", "-lINFO"),
    )
    scheduler.wait_for('"message": "scheduling ')
    worker.wait_for('"message": "serving ')

    for process in (scheduler, worker):
        assert re.findall(r"^\d{4}-.*", process.text(), re.MULTILINE) == []
    assert [line for line in scheduler.text().splitlines() if not line.startswith("{")] == []
