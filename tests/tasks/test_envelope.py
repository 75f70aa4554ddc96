"""The message of a call that the loop sends itself: what Celery's own `apply_async` sends, word for word."""

import asyncio
import base64
import json
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from celery.utils.saferepr import saferepr
from kombu.serialization import register
from kombu.utils.json import dumps, loads
from pydantic import SecretStr
from redis import Redis
from support import redis_server

from core import config
from core.config import Settings, configure
from core.tasks import CurrentTask, bridge, celery_app, periodic_task, publish, task
from core.tasks.context import current_or_none, enter
from core.tasks.envelope import Call, as_text, new_id

NOW = datetime.now(UTC)


def named(value: Any) -> str:
    """A name for a case that is the same in every process: moments and functions have none."""
    return ", ".join(map(str, value))


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with redis_server() as (url, _), Redis.from_url(url) as client:
        yield client


@pytest.fixture
def project(server: Redis) -> Iterator[Callable[..., None]]:
    """Configure a project whose broker is the test's server."""
    server.flushdb()
    port = server.get_connection_kwargs()["port"]

    def made(**settings: Any) -> None:
        class Own(Settings):
            redis_url: SecretStr | None = SecretStr(f"redis://127.0.0.1:{port}/0")
            task_queues: tuple[str, ...] = ("other",)

        configure(type("Own", (Own,), {"__annotations__": dict.fromkeys(settings, Any), **settings}))

    yield made
    if config._current.settings is not None:
        celery_app.drop_producer()
        celery_app.get_app().close()


def declared() -> Any:
    @task(name="mail.send", timeout=30)
    async def send(*args: Any, **kwargs: Any) -> None: ...

    return send


async def both(
    server: Redis, of: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
) -> tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]:
    """List and message of a call that was sent by `delay`, and of the same by `apply_async`."""
    kwargs = kwargs or {}
    call = await of.options(**options).delay(*args, **kwargs)
    ours = one(server)
    call = Call(of, call.id, list(args), kwargs, {k: v for k, v in options.items() if k != "task_id"}, None)
    way = publish._known(call)
    assert way is not None
    assert way.envelope is not None, "it did not go through apply_async itself"
    lineage = {} if (here := current_or_none()) is None else {"parent_id": here.id, "root_id": here.root_id}
    of.celery_task.apply_async(list(args), kwargs, task_id=call.id, **lineage, **call.options)
    return ours, one(server)


def one(server: Redis) -> tuple[str, dict[str, Any]]:
    """The one message that is queued anywhere, which is taken."""
    lists = [key for key in server.scan_iter() if server.type(key) == b"list"]
    assert len(lists) == 1, lists
    message = server.rpop(lists[0])
    assert server.llen(lists[0]) == 0
    return lists[0].decode(), json.loads(message)


def compare(ours: tuple[str, dict[str, Any]], theirs: tuple[str, dict[str, Any]], *times: str) -> None:
    """Compare two messages word for word, but for random ids, and moments that were counted from now."""
    assert ours[0] == theirs[0], "the list"
    for _, message in (ours, theirs):
        UUID(message["properties"].pop("delivery_tag"))
        assert abs(message["properties"].pop("timestamp") - time.time()) < 60
        UUID(message["properties"].pop("reply_to"))  # the thread's own, which only Celery's RPC results read
    for name in times:
        words = "properties" if name == "expiration" else "headers"
        here, there = ours[1][words].pop(name), theirs[1][words].pop(name)
        if name == "expiration":
            assert 0 <= int(here) - int(there) < 1000
            continue
        assert here[-6:] == there[-6:], "the time zone"
        assert abs(datetime.fromisoformat(here) - datetime.fromisoformat(there)) < timedelta(seconds=1)
    assert list(ours[1]) == list(theirs[1])
    assert base64.b64decode(ours[1]["body"]) == base64.b64decode(theirs[1]["body"])
    for name in ours[1]:
        assert ours[1][name] == theirs[1][name], name


ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1, "two", 3.5, None, True, -(2**70)), {"b": False, "c": "d", "e": 1e300}),
    (("ünïcödé ☃ \U0001f600", 'a "quoted" it\'s \\ \n % %(id)s {}'), {"ключ": "\ud800"}),
    (([1, {"a": [None, {"b": [[["deep"]]]}]}], {"x": "y"}), {"list": [], "map": {}}),
    (("long " * 500,), {"k": "x" * 1019}),
    (("y" * 1018,), {"k": "x" * 1013}),
    (tuple(range(400)), {f"name{n}": n for n in range(200)}),
]


@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
async def test_arguments_travel_and_are_shown_as_celery_does_it(
    project: Callable[..., None], server: Redis, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    project()
    compare(*await both(server, declared(), args, kwargs))


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"countdown": 90.5}, ["eta"]),
        ({"countdown": 0}, []),
        ({"eta": NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))}, []),
        ({"expires": 90}, ["expires", "expiration"]),
        ({"expires": 0.25, "countdown": 5}, ["expires", "eta", "expiration"]),
        ({"expires": NOW + timedelta(days=2)}, ["expiration"]),
        ({"expires": NOW - timedelta(days=2)}, []),
        ({"queue": "other"}, []),
        ({"task_id": 'order "7" ü %s \\'}, []),
        *[({"priority": n}, []) for n in range(10)],
        ({"queue": "other", "priority": 9, "countdown": 1, "expires": 2, "task_id": "all"},
         ["eta", "expires", "expiration"]),
    ],
    ids=named,
)  # fmt: skip
async def test_every_option_gives_the_message_that_celery_makes_of_it(
    project: Callable[..., None], server: Redis, options: dict[str, Any], times: list[str]
) -> None:
    project()
    send = declared()
    compare(*await both(server, send))  # a message that others must not be made from
    compare(*await both(server, send, ("a@b",), {"n": 1}, **options), *times)


@pytest.mark.parametrize(
    "options",
    [
        {"ignore_result": True},
        {"timeout": None},
        {"queue": "other"},
        {"priority": 6},
        {"queue": "other", "priority": 3},
    ],
    ids=named,
)
async def test_every_option_of_a_task_gives_the_message_that_celery_makes_of_it(
    project: Callable[..., None], server: Redis, options: dict[str, Any]
) -> None:
    project()

    @task(name="own", **options)
    async def own(value: int) -> None: ...

    compare(*await both(server, own, (1,)))


async def test_a_periodic_task_can_be_called(project: Callable[..., None], server: Redis) -> None:
    project()

    @periodic_task(interval=60, name="own")
    async def own(value: int = 1) -> None: ...

    compare(*await both(server, own))


async def test_a_call_inside_a_task_names_it(project: Callable[..., None], server: Redis) -> None:
    project()
    send = declared()
    for number in range(2):  # the message is made by the first one
        enter(CurrentTask(f"caller-{number}", "x", 1, "default", {}, None, "first", f'the "root" {number}'))
        compare(*await both(server, send))
        enter(None)  # type: ignore[arg-type]
        compare(*await both(server, send))


@pytest.mark.parametrize(
    "settings",
    [
        {"task_timezone": "Asia/Kolkata"},
        {"task_default_queue": "50% of %s"},
        {"task_broker_transport": "stock"},
        {"celery": {"broker_transport_options": {"global_keyprefix": "app:"}}},
        {"celery": {"broker_transport_options": {"priority_steps": [0, 5], "sep": ":"}}},
        {"celery": {"task_routes": {"mail.*": {"queue": "routed", "priority": 8}}}},
        {"celery": {"task_routes": {"mail.send": "routed"}}},
        {"celery": {"task_repr_maxlevels": 1, "task_default_delivery_mode": 1, "task_default_priority": 3}},
        {"celery": {"result_backend": "cache+memory://"}},
    ],
    ids=named,
)
async def test_every_setting_that_changes_messages_changes_ours(
    project: Callable[..., None], server: Redis, settings: dict[str, Any]
) -> None:
    project(**settings)
    send = declared()
    for options in ({}, {"priority": 7}):
        compare(*await both(server, send, ([[1]],), countdown=9, **options), "eta")


async def test_calls_that_come_before_the_first_one_is_known_do_not_each_make_its_message(
    project: Callable[..., None], server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of them took seconds otherwise, one after the other in a few threads."""
    project()
    send, made, make = declared(), [], publish.envelope
    monkeypatch.setattr(publish, "envelope", lambda *of: made.append(of) or make(*of))

    await asyncio.gather(*(send.delay(str(number)) for number in range(200)))

    assert server.llen("default") == 200
    assert 1 <= len(made) <= bridge.THREADS


def a_router(name: str, *_: Any, **__: Any) -> dict[str, str] | None:
    return {"queue": "routed"} if name == "mail.send" else None


@pytest.mark.parametrize(
    "settings",
    [
        {"task_send_sent_event": True},
        {"task_routes": (a_router,)},
        {"task_protocol": 1},
        {"task_compression": "zlib"},
        {"result_backend": "rpc://"},
        {"task_default_exchange_type": "topic", "task_default_exchange": "own"},
        {"broker_write_url": "memory://"},
    ],
    ids=named,
)
async def test_what_is_more_than_one_push_or_another_format_goes_through_apply_async(
    project: Callable[..., None], server: Redis, settings: dict[str, Any]
) -> None:
    project(celery=settings)
    send = declared()

    await send.delay("a@b")

    way = publish._known(Call(send, "x", ["a@b"], {}, {}))
    assert way is not None
    assert way.envelope is None
    if "broker_write_url" not in settings:
        one(server)


async def test_json_that_somebody_writes_in_another_way_goes_through_apply_async(
    project: Callable[..., None], server: Redis
) -> None:
    """Nothing but the comparison with Celery's own message can tell."""
    how = {"content_type": "application/json", "content_encoding": "utf-8"}
    register("json", lambda value: json.dumps(value, separators=(",", ":")), json.loads, **how)
    try:
        project()
        send = declared()
        await send.delay("a@b")
    finally:
        register("json", dumps, loads, **how)

    assert base64.b64decode(one(server)[1]["body"]).startswith(b'[["a@b"],{},')


async def test_a_task_that_runs_where_it_is_called_is_not_queued(project: Callable[..., None], server: Redis) -> None:
    ran = []
    project(celery={"task_always_eager": True, "task_store_eager_result": False})

    @task
    def here(value: int) -> None:
        ran.append(value)

    await here.delay(1)

    assert ran == [1]
    assert not [key for key in server.scan_iter() if server.type(key) == b"list"]


def random_values(dice: random.Random, depth: int) -> Any:
    plain: list[Callable[[], Any]] = [
        lambda: dice.randint(-(10**12), 10**12), dice.random, lambda: None, lambda: dice.random() < 0.5,
        lambda: "".join(dice.choices("ab'\"\\ é☃\n%{}", k=dice.randint(0, 60))),
        lambda: "x" * dice.randint(0, 1100),
    ]  # fmt: skip
    if depth and dice.random() < 0.2:
        values = [random_values(dice, depth - 1) for _ in range(dice.randint(0, 5))]
        return values if dice.random() < 0.5 else {str(n): value for n, value in enumerate(values)}
    return dice.choice(plain[: 6 if dice.random() < 0.05 else 5])()


def test_arguments_are_shown_as_saferepr_shows_them() -> None:
    dice = random.Random(5)
    for _ in range(3000):
        values = [random_values(dice, 3) for _ in range(dice.randint(0, 12))]
        named = {random_values(dice, 0) if dice.random() < 0.2 else f"n{n}": v for n, v in enumerate(values)}
        most, levels = dice.choice([1024, 50, 3, None]), dice.choice([None, 1, 3])

        assert as_text(values, most, levels) == saferepr(values, most, maxlevels=levels)
        assert as_text(named, most, levels) == saferepr(named, most, maxlevels=levels)


def test_an_id_is_a_random_uuid() -> None:
    ids = {new_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(str(UUID(one)) == one and UUID(one).version == 4 for one in ids)
    assert {UUID(one).variant for one in ids} == {"specified in RFC 4122"}
