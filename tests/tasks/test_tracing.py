"""Those who trace calls see each of them once, and their headers travel: with the real libraries, each in a process."""

import json
import sys
from typing import Any

from support import Project, redis_server

CALLS = """
import asyncio, json, sys
from redis import Redis
from src.apps.probe.tasks import add

async def calls():
    return [await add.delay(1), *await asyncio.gather(*(add.delay(n) for n in range(5))),
            *await add.delay_many([(7,), (8,)])]

def messages():
    with Redis.from_url(sys.argv[1]) as client:
        return {h["id"]: h for h in (json.loads(m)["headers"] for m in client.lrange("default", 0, -1))}

asyncio.run(calls())  # before anybody looks
earlier = set(messages())
"""

OPENTELEMETRY = """
import time
from celery.signals import before_task_publish
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
CeleryInstrumentor().instrument()
told = {}

@before_task_publish.connect
def note(headers, **_):
    told[headers["id"]] = time.time_ns()

async def request():
    with trace.get_tracer("test").start_as_current_span("request") as span:
        made = await calls()
        assert trace.get_current_span() is span
        return [call.id for call in made]

ids = asyncio.run(request())
spans = exporter.get_finished_spans()
(root,) = [span for span in spans if span.name == "request"]
print(json.dumps({
    "ids": ids,
    "seen": [[span.attributes["messaging.message.id"], span.name, f"{span.context.span_id:016x}"]
             for span in spans if span.parent and span.parent.span_id == root.context.span_id],
    "sending": all(span.end_time > told[span.attributes["messaging.message.id"]] for span in spans if span is not root),
    "trace": f"{root.context.trace_id:032x}",
    "headers": {id: headers.get("traceparent") for id, headers in messages().items() if id not in earlier},
}))
"""

SENTRY = """
import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

class Local(Transport):
    seen = []
    def capture_envelope(self, envelope):
        if event := envelope.get_transaction_event():
            self.seen.append(event)

sentry_sdk.init(dsn="http://key@localhost/1", transport=Local, traces_sample_rate=1.0, default_integrations=False,
                integrations=[CeleryIntegration()])

async def request():
    with sentry_sdk.start_transaction(name="request"):
        return [call.id for call in await calls()]

ids = asyncio.run(request())
sentry_sdk.flush()
(event,) = Local.seen
print(json.dumps({
    "ids": ids,
    "seen": [[span["op"], span["description"], span["span_id"]] for span in event["spans"]
             if span["op"] == "queue.submit.celery"],
    "trace": event["contexts"]["trace"]["trace_id"],
    "headers": {id: headers.get("sentry-trace") for id, headers in messages().items() if id not in earlier},
}))
"""


def seen(project: Project, code: str) -> Any:
    with redis_server() as (url, _):
        script = project.write("script.py", CALLS + code)
        done = project.run(sys.executable, str(script), url, REDIS_URL=url, PYTHONPATH=".")
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_opentelemetry_sees_each_call_once_and_its_trace_goes_along(fresh: Project) -> None:
    found = seen(fresh, OPENTELEMETRY)

    assert len(found["ids"]) == 8
    assert sorted(id for id, _, _ in found["seen"]) == sorted(found["ids"])
    assert {name for _, name, _ in found["seen"]} == {"apply_async/src.apps.probe.tasks.add"}
    assert found["sending"], "a span lasts until its call is sent"
    travelled = {id: header.rpartition("-")[0] for id, header in found["headers"].items()}
    assert travelled == {id: f"00-{found['trace']}-{span}" for id, _, span in found["seen"]}


def test_sentry_sees_each_call_once_and_its_trace_goes_along(fresh: Project) -> None:
    """Sentry itself tells of `apply_async`, and below it of the `send_task` that this calls."""
    found = seen(fresh, SENTRY)

    assert len(found["seen"]) == 2 * len(found["ids"]) == 16
    assert {name for _, name, _ in found["seen"]} == {"src.apps.probe.tasks.add"}
    assert sorted(found["headers"]) == sorted(found["ids"])
    assert {header.split("-")[0] for header in found["headers"].values()} == {found["trace"]}
    assert {header.split("-")[1] for header in found["headers"].values()} <= {span for _, _, span in found["seen"]}
