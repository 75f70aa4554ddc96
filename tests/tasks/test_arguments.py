"""A call's arguments come back from JSON as they were sent, or are refused before anything is sent."""

import dataclasses
import decimal
import enum
import json
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest
from pydantic import BaseModel

from core.errors import ArgumentsError, ResultUnavailable, TaskDefinitionError
from core.tasks.arguments import Arguments

if TYPE_CHECKING:
    from fractions import Fraction

LIMIT = 262_144
SECRET = "Kq7xSecret"


class Order(BaseModel):
    id: int
    at: datetime | None = None
    price: float = 1.5


class Express(Order):
    by: date


@dataclasses.dataclass
class Point:
    x: int
    tags: list[str]


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


class Pair(NamedTuple):
    left: int
    right: str


class NoJson: ...


NOW = datetime(2025, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")


def of(function: Callable[..., Any]) -> Arguments:
    return Arguments(function, function.__name__)


def taking(annotation: Any) -> Arguments:
    """The arguments of a function with one parameter that is annotated so."""

    def send(value):
        return None

    send.__annotations__["value"] = annotation
    return of(send)


def there_and_back(arguments: Arguments, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a worker gets of a call, through real JSON text."""
    wire = json.dumps(arguments.encode(args, kwargs, LIMIT), allow_nan=False)
    return arguments.decode(*json.loads(wire))


VALUES = [
    (Order, Order(id=1, at=NOW)),
    (Express, Express(id=1, by=date(2025, 1, 1))),
    (Point, Point(1, ["a", "b"])),
    (datetime, NOW),
    (datetime, NOW.replace(tzinfo=None)),
    (datetime, NOW.replace(tzinfo=timezone(timedelta(hours=5, minutes=30)))),
    (date, date(2025, 1, 2)),
    (time, time(3, 4, 5, 6)),
    (timedelta, timedelta(days=400, microseconds=1)),
    (timedelta, timedelta(seconds=-1)),
    (uuid.UUID, ID),
    (decimal.Decimal, decimal.Decimal("1.10")),
    (Color, Color.RED),
    (Color, Color.BLUE),
    (Level, Level.LOW),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (Path, Path("/var/x")),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (Pair, Pair(1, "a")),
    (bytes, b"text"),
    (Literal["a", "b"], "a"),
    (float, 0.1 + 0.2),
    (int, 2**70),
    (str, "ü\x00\U0001f600"),
    (bool, False),
]


@pytest.mark.parametrize(("kind", "value"), VALUES)
def test_a_value_comes_back_equal_and_of_its_type(kind: Any, value: Any) -> None:
    (back,), _ = there_and_back(taking(kind), value)

    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(("kind", "value"), VALUES)
def test_a_value_comes_back_equal_from_inside_lists_and_dicts(kind: Any, value: Any) -> None:
    (back,), _ = there_and_back(taking(dict[str, list[kind]]), {"key": [value, value]})

    assert back == {"key": [value, value]}
    assert type(back["key"][0]) is type(value)


@pytest.mark.parametrize(("kind", "value"), VALUES)
def test_a_value_that_may_be_missing_comes_back_either_way(kind: Any, value: Any) -> None:
    assert there_and_back(taking(kind | None), value) == ((value,), {})
    assert there_and_back(taking(kind | None), None) == ((None,), {})


@pytest.mark.parametrize("annotation", [Any, object])
@pytest.mark.parametrize("value", [None, True, 1, 2**70, 1.5, "a", [], {}, [1, {"a": [None, "b"]}], {"": 0}])
def test_a_parameter_without_a_type_takes_jsons_own_values(annotation: Any, value: Any) -> None:
    (back,), _ = there_and_back(taking(annotation), value)

    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("annotation", [Any, object])
@pytest.mark.parametrize(
    "value",
    [(1, 2), {1}, NOW, Order(id=1), Point(1, []), Color.RED, Level.LOW, ID, decimal.Decimal(1), b"x", Path("/x"),
     [(1, 2)], {"a": {"b": {1}}}],
    ids=repr,
)  # fmt: skip
def test_a_parameter_without_a_type_refuses_what_would_come_back_changed(annotation: Any, value: Any) -> None:
    with pytest.raises(ArgumentsError, match=r"send: 'value' would not come back .* Annotate the parameter"):
        taking(annotation).encode((value,), {}, LIMIT)


@pytest.mark.parametrize("value", [{1: "a"}, {None: 1}, {True: 1}, {"a": [{1: 2}]}, {(1, 2): 3}])
def test_keys_that_are_no_text_are_refused_without_a_type(value: Any) -> None:
    with pytest.raises(ArgumentsError, match=r"'value' .* text as keys"):
        taking(Any).encode((value,), {}, LIMIT)


@pytest.mark.parametrize(("kind", "value"), [(dict[int, str], {1: "a"}), (dict[uuid.UUID, int], {ID: 1})])
def test_keys_that_are_no_text_come_back_where_the_type_says_what_they_are(kind: Any, value: Any) -> None:
    assert there_and_back(taking(kind), value) == ((value,), {})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("kind", "wrapped"),
    [
        (Any, lambda n: n),
        (float, lambda n: n),
        (list[float], lambda n: [1.0, n]),
        (dict[str, Any], lambda n: {"a": {"b": n}}),
        (Order, lambda n: Order(id=1, price=n)),
    ],
)
def test_nan_and_infinity_are_refused_by_name_however_deep(kind: Any, wrapped: Any, number: float) -> None:
    with pytest.raises(ArgumentsError, match=r"send: value holds NaN or an infinite number"):
        taking(kind).encode((wrapped(number),), {}, LIMIT)
    with pytest.raises(ArgumentsError, match=r"send: value holds NaN or an infinite number"):
        taking(kind).encode((), {"value": wrapped(number)}, LIMIT)


@pytest.mark.parametrize("value", [object(), NoJson(), print, lambda: None, [object()]])
def test_a_value_without_a_form_in_json_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ArgumentsError, match=r"send: value is a \w+, which has no form in JSON"):
        taking(Any).encode((value,), {}, LIMIT)


def test_bytes_that_are_no_text_are_refused_with_advice() -> None:
    with pytest.raises(ArgumentsError, match=r"value holds bytes that are no text; .* base64"):
        taking(bytes).encode((b"\xff",), {}, LIMIT)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)

    with pytest.raises(ArgumentsError, match="value"):
        taking(Any).encode((value,), {}, LIMIT)


def test_a_model_of_a_subclass_is_refused_since_its_own_fields_would_be_lost() -> None:
    with pytest.raises(ArgumentsError, match="Express → Order"):
        taking(Order).encode((Express(id=1, by=date(2025, 1, 1)),), {}, LIMIT)


# The signature


def everything(a: int, /, b: str = "b", *rest: datetime, c: uuid.UUID, d: Path = Path("/d"), **more: Color) -> None: ...


def everything_of(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """What the body of `everything` sees of a call."""
    bound = of(everything).signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {"c": ID}),
        ((1, "x"), {"c": ID, "d": Path("/e")}),
        ((1,), {"b": "y", "c": ID}),
        ((1, "x", NOW, NOW), {"c": ID}),
        ((1, "x", NOW), {"c": ID, "d": Path("/e"), "red": Color.RED, "blue": Color.BLUE}),
    ],
)
def test_every_kind_of_parameter_comes_back(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    back_args, back_kwargs = there_and_back(of(everything), *args, **kwargs)
    sent, received = everything_of(*args, **kwargs), everything_of(*back_args, **back_kwargs)

    assert received == sent


def test_defaults_are_left_to_the_worker() -> None:
    """A default that changes with a deployment is that of the code which runs."""
    assert of(everything).encode((1,), {"c": ID}, LIMIT) == ([1], {"c": str(ID)})


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {"c": ID}, "a: Missing"),
        ((1,), {}, "c: Missing required keyword"),
        (("x",), {"c": ID}, "a: Input should be a valid integer"),
        ((1, 2), {"c": ID}, "b: Input should be a valid string"),
        ((1, "b", "not a date"), {"c": ID}, r"\*rest\[0\]: "),
        ((1,), {"c": "not an id"}, "c: Input should be a valid UUID"),
        ((1,), {"c": ID, "x": "green"}, "x: Input should be 'red' or 2"),
        ((1,), {"a": 1, "c": ID}, "a: "),
        ((1, "b"), {"b": "c", "c": ID}, "b: Got multiple values"),
    ],
)
def test_arguments_that_do_not_fit_the_signature_are_refused_by_name(
    args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArgumentsError, match=r"^everything\(a: int, /, .*was called wrongly: " + ".*" + said) as caught:
        of(everything).encode(args, kwargs, LIMIT)

    assert isinstance(caught.value, TypeError)


def two(a: int, b: int = 1) -> None: ...


def test_too_many_arguments_are_refused() -> None:
    with pytest.raises(ArgumentsError, match=r"argument 3: Unexpected positional"):
        of(two).encode((1, 2, 3), {}, LIMIT)


def test_a_mistyped_argument_or_option_is_refused_by_name() -> None:
    with pytest.raises(ArgumentsError, match=r"conutdown: Unexpected keyword"):
        of(two).encode((1,), {"conutdown": 60}, LIMIT)


def test_a_refused_argument_is_not_repeated_in_the_message() -> None:
    """It may be a password."""
    for arguments, value in ((taking(int), SECRET), (taking(Order), {"id": SECRET}), (taking(Any), {SECRET.encode()})):
        with pytest.raises(ArgumentsError) as caught:
            arguments.encode((value,), {}, LIMIT)
        assert SECRET not in str(caught.value)


def test_what_another_version_of_the_code_sent_is_refused_by_the_worker() -> None:
    with pytest.raises(ArgumentsError, match=r"two\(a: int, b: int = 1\) .*was called wrongly: c: Unexpected"):
        of(two).decode([1], {"c": 2})


# Size


def test_arguments_that_are_too_large_are_refused_with_sizes_and_the_largest_name() -> None:
    def send(small: str, large: list[str]) -> None: ...

    with pytest.raises(ArgumentsError) as caught:
        of(send).encode(("a" * 100, ["b" * 300_000]), {}, LIMIT)

    assert "most of it in 'large'" in str(caught.value)
    assert "300,1" in str(caught.value)
    assert "task_max_argument_bytes allows 262,144" in str(caught.value)


@pytest.mark.parametrize("text", ["a", "ü", "\U0001f600", '"', "\n"])
def test_the_limit_counts_bytes_of_json(text: str) -> None:
    arguments = taking(str)
    size = len(json.dumps([[text * 500], {}], ensure_ascii=False).encode())

    assert arguments.encode((text * 500,), {}, size) == ([text * 500], {})
    with pytest.raises(ArgumentsError, match="most of it in 'value'"):
        arguments.encode((text * 500,), {}, size - 1)


# Annotations


def test_a_class_further_down_in_the_module_is_resolved_at_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("somewhere")
    monkeypatch.setitem(sys.modules, "somewhere", module)
    exec("def send(value: 'Later') -> 'Later': ...", vars(module))
    arguments = of(vars(module)["send"])

    assert arguments.prepare() is False
    vars(module)["Later"] = Order
    assert there_and_back(arguments, Order(id=1)) == ((Order(id=1),), {})
    assert arguments.decode_result({"id": 2}) == Order(id=2)


def test_annotations_that_are_text_are_resolved() -> None:
    def send(value: "Order", more: "list[Point] | None" = None) -> None: ...

    assert of(send).prepare() is True
    assert there_and_back(of(send), Order(id=1), [Point(1, [])]) == ((Order(id=1), [Point(1, [])]), {})


def test_a_type_that_only_checkers_see_does_not_raise_at_import_but_at_the_first_call() -> None:
    def send(value: "Fraction") -> None: ...

    arguments = of(send)

    assert arguments.prepare() is False
    with pytest.raises(ArgumentsError, match=r"annotations of send cannot be resolved: .*Fraction.* TYPE_CHECKING"):
        arguments.encode((1,), {}, LIMIT)


@pytest.mark.parametrize("annotation", [NoJson, range, memoryview, 3, list[NoJson]])
def test_a_type_without_a_form_in_json_is_refused_at_import(annotation: Any) -> None:
    with pytest.raises(TaskDefinitionError, match="send takes or returns a type that cannot travel as JSON"):
        taking(annotation).prepare()

    def send():
        return None

    send.__annotations__["return"] = annotation
    with pytest.raises(TaskDefinitionError, match="send takes or returns a type that cannot travel as JSON"):
        of(send).prepare()


def test_an_annotation_that_cannot_be_read_is_refused_at_import() -> None:
    with pytest.raises(TaskDefinitionError, match="send has an annotation that cannot be read"):
        taking("not an (expression").prepare()


# Results


def returning(annotation: Any) -> Arguments:
    def send():
        return None

    send.__annotations__["return"] = annotation
    return of(send)


@pytest.mark.parametrize(("kind", "value"), VALUES)
def test_a_result_comes_back_equal_and_of_its_type(kind: Any, value: Any) -> None:
    arguments = returning(kind)
    back = arguments.decode_result(json.loads(json.dumps(arguments.encode_result(value))))

    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [{1, 2}, (1, 2), NOW, Order(id=1), {1: 2}])
def test_a_result_that_would_come_back_changed_is_refused_without_an_annotation(value: Any) -> None:
    def send():
        return None

    with pytest.raises(ArgumentsError, match=r"send: the result is a \w+, .*Annotate what the task returns"):
        of(send).encode_result(value)


def test_a_result_that_is_no_finite_number_is_refused() -> None:
    with pytest.raises(ArgumentsError, match="send: the result holds NaN"):
        returning(float).encode_result(float("nan"))


def test_a_result_that_another_version_of_the_code_stored_is_no_result() -> None:
    with pytest.raises(ResultUnavailable, match="result of send does not fit its annotation: id: Field required"):
        returning(Order).decode_result({"number": 1})


def test_a_task_that_returns_nothing_gives_none() -> None:
    assert returning(None).decode_result(returning(None).encode_result(None)) is None


# Signatures for chains


def test_partial_arguments_are_json_without_being_complete() -> None:
    assert of(everything).partial((1,), {"c": ID}) == ([1], {"c": str(ID)})
    with pytest.raises(ArgumentsError, match="everything: argument 1 holds NaN"):
        of(everything).partial((float("nan"),), {})


# What people may read


def _f(a: int, b: str, /, c: str = "", *more: str, d: str = "", **rest: str) -> None: ...


@pytest.mark.parametrize(
    ("sensitive", "args", "kwargs", "shown"),
    [
        ((), (1, "b"), {"d": "d"}, ([1, "b"], {"d": "d"})),
        (("b",), (1, "b", "c"), {"d": "d", "x": "y"}, ([1, "*", "c"], {"d": "d", "x": "y"})),
        (("c",), (1, "b"), {"c": "c"}, ([1, "b"], {"c": "*"})),
        (("more",), (1, "b", "c", "m", "m"), {}, ([1, "b", "c", "*", "*"], {})),
        (("rest",), (1, "b"), {"d": "d", "x": "y"}, ([1, "b"], {"d": "d", "x": "*"})),
        (("d", "a"), (1,), {"d": "d"}, (["*"], {"d": "*"})),
    ],
)
def test_what_is_sensitive_is_masked(
    sensitive: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any], shown: Any
) -> None:
    masked_args, masked_kwargs = Arguments(_f, "f", sensitive).shown(args, kwargs)

    assert [[*masked_args], masked_kwargs] == json.loads(json.dumps(shown).replace('"*"', '"********"'))


def test_what_is_no_parameters_value_may_be_that_of_a_sensitive_one() -> None:
    """A call of somebody else with one argument too many, or a name that is not quite right."""

    def f(a: int, password: str) -> None: ...

    assert Arguments(f, "f", ("password",)).shown((1, "p", "p"), {"pasword": "p"}) == (
        [1, "********", "********"], {"pasword": "********"},
    )  # fmt: skip
