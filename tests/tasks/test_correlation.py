"""What travels with a call is in its message, whichever way it was sent, and under its signature."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from celery.signals import before_task_publish
from pydantic import SecretStr
from redis import Redis
from support import redis_server

from core import config
from core.config import Settings, configure
from core.errors import ConfigurationError
from core.tasks import bridge, celery_app, correlation, publish, signing, task
from core.tasks.envelope import Call

request_id: ContextVar[Any] = ContextVar("request_id")
tenant: ContextVar[Any] = ContextVar("tenant", default="nobody")
no_variable = "text"
NAMES = (f"{__name__}:request_id", f"{__name__}.tenant")
REQUEST, TENANT = f"{__name__}.request_id", f"{__name__}.tenant"


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with redis_server() as (url, _), Redis.from_url(url) as client:
        yield client


@pytest.fixture
def project(server: Redis) -> Iterator[Callable[..., None]]:
    """Configure a project whose broker is the test's server."""
    server.flushdb()
    port = server.get_connection_kwargs()["port"]

    def made(*names: str, **settings: Any) -> None:
        class Own(Settings):
            redis_url: SecretStr | None = SecretStr(f"redis://127.0.0.1:{port}/0")
            task_context_headers: tuple[str, ...] = names

        configure(type("Own", (Own,), {"__annotations__": dict.fromkeys(settings, Any), **settings}))

    yield made
    if config._current.settings is not None and celery_app._process.app:
        celery_app.drop_producer()
        celery_app.get_app().close()


def declared() -> Any:
    @task(name="mail.send")
    async def send(word: str = "") -> None: ...

    return send


def came(server: Redis) -> list[Any]:
    """What travels with the calls that wait, the oldest first; they are taken away."""
    messages = [json.loads(message) for message in reversed(server.lrange("default", 0, -1))]
    server.flushdb()
    return [message["headers"].get(correlation.HEADER) for message in messages]


async def test_values_are_in_the_message_whichever_way_it_is_sent(project: Callable[..., None], server: Redis) -> None:
    project(*NAMES)
    send = declared()
    request_id.set("7")

    await send.delay()
    way = publish._known(Call(send, "id", [], {}, {}))
    assert way is not None
    assert way.envelope is not None, "the loop does not send it itself"
    await send.delay_many([("a",), ("b",)])
    await asyncio.to_thread(send.delay_sync)
    await asyncio.to_thread(send.s().apply_async)
    await asyncio.to_thread(send.celery_task.apply_async, headers={"own": "header"})

    assert came(server) == [{REQUEST: "7"}] * 6, "a default is nobody's value"


async def test_calls_that_share_a_round_trip_keep_their_own_values(project: Callable[..., None], server: Redis) -> None:
    project(*NAMES)
    send = declared()
    await send.delay()

    async def call(number: int) -> None:
        tenant.set(f"tenant {number}")
        await send.delay()

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(call(number))

    assert came(server) == [None, *({TENANT: f"tenant {number}"} for number in range(20))]


async def test_who_listens_to_calls_sees_the_values(project: Callable[..., None], server: Redis) -> None:
    project(*NAMES)
    send = declared()
    request_id.set("7")
    seen = []

    def note(headers: Any = None, **_: Any) -> None:
        seen.append(headers[correlation.HEADER])

    before_task_publish.connect(note)
    try:
        await send.delay()
    finally:
        before_task_publish.disconnect(note)

    assert came(server) == seen == [{REQUEST: "7"}]


async def test_a_signature_covers_the_values(project: Callable[..., None], server: Redis) -> None:
    project(*NAMES, task_signing_keys=["k" * 32])
    send = declared()
    request_id.set("7")

    await send.delay()
    await asyncio.to_thread(send.s().apply_async)

    for raw in server.lrange("default", 0, -1):
        message = json.loads(raw)
        assert signing.is_signed(message)
        message["headers"][correlation.HEADER] = {REQUEST: "8"}
        assert signing.is_signed(message) is False


async def test_what_is_no_text_stays_at_home_and_is_said_once(
    project: Callable[..., None], server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    project(*NAMES)
    send = declared()
    correlation._warn.cache_clear()
    request_id.set(7)
    tenant.set(None)

    with caplog.at_level(logging.WARNING, "core.tasks"):
        await send.delay()
        await send.delay()

    assert came(server) == [None, None]
    said = [record.getMessage() for record in caplog.records if "travel" in record.getMessage()]
    assert said == [f"the value of {REQUEST} does not travel with calls: it is a int, and only text does"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.to_be.found:request_id", "is not there (No module named 'nowhere')"),
        (f"{__name__}:missing", "is not there ("),
        ("request_id", "Write it as module:NAME"),
        (f"{__name__}:no_variable", "is a str and no contextvars.ContextVar"),
    ],
)
def test_a_name_that_leads_nowhere_is_said_before_anything_starts(
    project: Callable[..., None], name: str, reason: str
) -> None:
    project(name)

    with pytest.raises(ConfigurationError, match="task_context_headers names") as raised:
        celery_app.get_app()

    assert reason in str(raised.value)
    assert repr(name) in str(raised.value)


def test_without_the_setting_nothing_is_looked_at(project: Callable[..., None], server: Redis) -> None:
    project()
    send = declared()
    request_id.set("7")

    bridge.run(send.delay())

    assert came(server) == [None]
