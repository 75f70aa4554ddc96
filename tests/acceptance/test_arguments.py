"""Arguments and results: they come back equal, or are refused in the caller by name with nothing sent."""

import math
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from support import Project

from core.tasks import ArgumentsError

EVENING = datetime(2031, 12, 31, 23, 59, 58, 123456, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))


@pytest.fixture
def broker(example: Project) -> Iterator[Redis]:
    """The example project's server, to look at what lies in it."""
    example.run("core", "broker", "start")
    with Redis(unix_socket_path=str(example.root / ".core" / "broker.sock")) as client:
        yield client


def _values() -> dict[str, Any]:
    from src.apps.probe.tasks import Colour, Order, Point

    orders = [Order(number=1, placed=EVENING), Order(number=2, placed=datetime(2030, 1, 1, tzinfo=UTC))]
    return {
        "model": orders[0],
        "data": Point(1.5, -0.1),
        "moment": EVENING,
        "day": date(2028, 2, 29),
        "span": timedelta(days=-1, seconds=3, microseconds=7),
        "key": UUID("12345678-1234-5678-1234-567812345678"),
        "price": Decimal("1234567890.12345678901234567890"),
        "colour": Colour.RED,
        "tags": {"a", "ß", ""},
        "path": Path("some/where/über.txt"),
        "orders": orders,
        "places": {"home": [Point(0, 0)], "": []},
    }


@pytest.mark.usefixtures("example")
def test_every_type_of_the_probe_task_is_looked_at() -> None:
    from src.apps.probe.tasks import Seen

    assert set(_values()) == {field.name for field in fields(Seen)} - {"kinds"}


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "name",
    ["model", "data", "moment", "day", "span", "key", "price", "colour", "tags", "path", "orders", "places"],
)
async def test_a_value_reaches_the_body_and_comes_back_equal_and_of_its_own_type(name: str) -> None:
    from src.apps.probe.tasks import typed

    value = _values()[name]
    seen = await (await typed.delay(**{name: value})).get(timeout=20)

    assert getattr(seen, name) == value
    # A path is a PosixPath on its way and at its end.
    assert seen.kinds == {name: type(value).__name__}
    assert type(getattr(seen, name)) is type(value)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**80,
        1.5,
        1e308,
        "",
        "ü\n\x00\u2028😀",
        [],
        {},
        [1, [2, {"a": None}]],
        {"a": {"b": []}},
    ],
    ids=repr,
)
async def test_jsons_own_values_need_no_annotation(value: Any) -> None:
    from src.apps.probe.tasks import unannotated

    back = await (await unannotated.delay(value)).get(timeout=20)

    assert back == value
    assert type(back) is type(value)


@pytest.mark.usefixtures("worker")
async def test_positional_keyword_and_variadic_arguments_arrive_in_their_places() -> None:
    from src.apps.probe.tasks import many

    assert await (await many.delay(1, 2, factor=10, more=3)).get(timeout=20) == 60


@pytest.mark.usefixtures("worker")
async def test_a_result_is_rebuilt_from_its_annotation() -> None:
    from src.apps.probe.tasks import returns_a_path

    assert await (await returns_a_path.delay()).get(timeout=20) == Path("/tmp/x")


@pytest.mark.usefixtures("worker")
async def test_a_result_that_would_not_come_back_fails_the_call_and_says_what_to_annotate() -> None:
    from src.apps.probe.tasks import returns_what_json_has_not

    result = await returns_what_json_has_not.delay()

    with pytest.raises(ArgumentsError, match=r"the result is a set, .* Annotate what the task returns"):
        await result.get(timeout=20)


@pytest.mark.usefixtures("worker")
async def test_a_stock_producer_whose_arguments_do_not_fit_gets_a_failed_call() -> None:
    """Another program may know an older signature; its call fails by name and is not retried."""
    from core.tasks import TaskResult
    from src.apps.probe.tasks import add

    sent = add.celery_task.app.send_task("src.apps.probe.tasks.add", args=["one"], kwargs={"c": 1})

    with pytest.raises(ArgumentsError, match=r"add\(a: int, b: int = 1\) -> int was called wrongly: .*a: .*c: "):
        await TaskResult.from_id(sent.id).get(timeout=20)


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "a: Missing required argument"),
        ((1, 2, 3), {}, "Unexpected positional argument"),
        ((1,), {"c": 1}, "c: Unexpected keyword argument"),
        ((1,), {"a": 1}, "a: Got multiple values"),
        (("one",), {}, "a: .*integer"),
        ((1,), {"b": None}, "b: .*integer"),
    ],
)
async def test_arguments_that_do_not_fit_the_signature_are_refused_by_name(
    broker: Redis, args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    from src.apps.probe.tasks import add

    before = broker.llen("default")
    with pytest.raises(ArgumentsError, match=said):
        await add.delay(*args, **kwargs)
    assert broker.llen("default") == before


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "value holds NaN or an infinite number"),
        ([1, {"a": math.inf}], "value holds NaN or an infinite number"),
        ({1: "one"}, "'value' would not come back .* with text as keys"),
        ({1, 2}, "'value' would not come back .*Annotate the parameter"),
        ((1, 2), "'value' would not come back .*Annotate the parameter"),
        (EVENING, "'value' would not come back .*Annotate the parameter"),
        (object(), "value is a object, which has no form in JSON"),
        (b"\xff", "value holds bytes that are no text"),
    ],
    ids=["nan", "infinity", "int keys", "set", "tuple", "datetime", "object", "bytes"],
)
async def test_a_value_json_does_not_have_is_refused_by_the_parameters_name(
    broker: Redis, value: Any, said: str
) -> None:
    from src.apps.probe.tasks import unannotated

    before = broker.llen("default")
    with pytest.raises(ArgumentsError, match=said):
        await unannotated.delay(value)
    assert broker.llen("default") == before


@pytest.mark.usefixtures("example")
async def test_a_list_that_holds_itself_is_refused() -> None:
    from src.apps.probe.tasks import unannotated

    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(ArgumentsError, match="value"):
        await unannotated.delay(endless)


@pytest.mark.parametrize("letter", ["a", "ü", "\x00"])
async def test_oversized_arguments_are_refused_with_the_name_of_the_largest(broker: Redis, letter: str) -> None:
    from src.apps.probe.tasks import unannotated

    before = broker.llen("default")
    with pytest.raises(ArgumentsError, match=r"most of it in 'other'; task_max_argument_bytes allows 262,144"):
        await unannotated.delay("small", other=letter * 300_000)
    assert broker.llen("default") == before


@pytest.mark.usefixtures("example")
async def test_the_error_does_not_repeat_the_values_which_may_be_secrets() -> None:
    from src.apps.probe.tasks import add

    with pytest.raises(ArgumentsError) as caught:
        await add.delay("s3cret-token")

    assert "s3cret" not in str(caught.value)
