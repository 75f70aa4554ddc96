"""A call's arguments and result, to JSON and back, validated.

What goes over the wire is plain JSON, which any Celery producer can write and Flower can show. The types
are in the function's signature: pydantic reads them there, checks in the caller, and rebuilds in the
worker. A value that would not come back as it was is refused in the caller, by name.
"""

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.errors import ArgumentsError, ResultUnavailable, TaskDefinitionError

Bound = tuple[tuple[Any, ...], dict[str, Any]]

# Values of exactly these types are the same before and after JSON, so nothing has to be compared.
_PLAIN = frozenset({str, int, bool, type(None)})


#: Stands where a value is not shown.
MASK = "********"


class Arguments:
    """The parameters of one task's function, and its return type."""

    def __init__(self, function: Callable[..., Any], name: str, sensitive: tuple[str, ...] = ()) -> None:
        self._function = function
        self.name = name
        #: Parameters whose values are not for people to read.
        self.sensitive = sensitive
        self.signature = inspect.signature(function)
        #: Checks arguments against them.
        self._parameters: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None
        self._returns: Any = None

    def prepare(self) -> bool:
        """Build the validators now, where that is possible, and say whether it was.

        Annotations that cannot be resolved yet (a class further down, a name that only type checkers see)
        are left for the first call.

        Raises:
            TaskDefinitionError: A parameter's type, or the return type, has no form in JSON.
        """
        with contextlib.suppress(NameError):
            self._build()
        return self._parameters is not None

    def _build(self) -> None:
        from pydantic import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, TypeAdapter
        from pydantic.errors import PydanticUserError
        from pydantic_core import ArgsKwargs, SchemaValidator

        if self._parameters is not None:
            return
        try:
            schema = TypeAdapter[Any](self._function).core_schema  # type: ignore[arg-type]  # a function is no type, but it works
            returns = inspect.get_annotations(self._function, eval_str=True).get("return", Any)
            self._returns = TypeAdapter(None if returns is None else returns)
        except PydanticSchemaGenerationError as error:
            raise TaskDefinitionError(
                f"{self.name} takes or returns a type that cannot travel as JSON: "
                f"{str(error).partition('. ')[0]}. Pass an id or a model instead."
            ) from error
        except PydanticUndefinedAnnotation as error:
            raise NameError(str(error).splitlines()[0]) from error
        except SyntaxError as error:
            raise TaskDefinitionError(f"{self.name} has an annotation that cannot be read: {error.msg}.") from error
        except PydanticUserError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            if error.code == "class-not-fully-defined":
                raise NameError(reason) from error
            raise TaskDefinitionError(f"{self.name} has an annotation that cannot be used: {reason}.") from error
        check = SchemaValidator(_only_arguments(schema)).validate_python
        self._parameters = lambda args, kwargs: check(ArgsKwargs(args, kwargs))

    def _validator(self) -> Any:
        if self._parameters is None:
            try:
                self._build()
            except NameError as error:
                raise ArgumentsError(
                    f"The annotations of {self.name} cannot be resolved: {error}. "
                    "Import the type where the program runs, not only under TYPE_CHECKING."
                ) from error
        return self._parameters

    def encode(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], max_bytes: int
    ) -> tuple[list[Any], dict[str, Any]]:
        """Check a call's arguments against the signature and return them as JSON's own values.

        Args:
            max_bytes: The largest size as JSON text.

        Raises:
            ArgumentsError: One is missing, unknown, of the wrong type, too large, or would not come back equal.
        """
        checked = self._validate(args, dict(kwargs))
        if all(type(value) in _PLAIN for value in (*args, *kwargs.values())):
            wire_args, wire_kwargs = list(args), dict(kwargs)
            if max_bytes >= 1024 and sum(len(v) for v in (*args, *kwargs.values()) if type(v) is str) * 6 < max_bytes:
                return wire_args, wire_kwargs
        else:
            names = self._names(args)
            wire_args = [to_json(value, f"{self.name}: {name}") for name, value in zip(names, args, strict=True)]
            wire_kwargs = {name: to_json(value, f"{self.name}: {name}") for name, value in kwargs.items()}
            self._compare(checked, self._validate(tuple(wire_args), wire_kwargs))
        size = len(json.dumps([wire_args, wire_kwargs], ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if size > max_bytes:
            largest = max(
                [*zip(self._names(args), wire_args, strict=True), *wire_kwargs.items()],
                key=lambda pair: len(json.dumps(pair[1])),
            )[0]
            raise ArgumentsError(
                f"{self.name}: the arguments are {size:,} bytes as JSON, most of it in {largest!r}; "
                f"task_max_argument_bytes allows {max_bytes:,}. Store the value and pass its id."
            )
        return wire_args, wire_kwargs

    def decode(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Rebuild a call's arguments in the worker.

        Raises:
            ArgumentsError: They do not fit the signature: another version of the code, or another producer, sent them.
        """
        return self._validate(tuple(args), dict(kwargs))

    def blank(self) -> tuple[list[Any], dict[str, Any]]:
        """As many arguments as a call has at least, without their values."""
        needed = [p for p in self.signature.parameters.values() if p.default is p.empty]
        named = {p.name: None for p in needed if p.kind is p.KEYWORD_ONLY}
        return [None for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)], named

    def shown(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """A call's arguments as people may read them. What is no parameter's may be a sensitive one's."""
        if not self.sensitive:
            return args, kwargs
        known = self.signature.parameters
        rest = next((name for name, parameter in known.items() if parameter.kind is parameter.VAR_KEYWORD), "")

        def of(owner: str, value: Any) -> Any:
            return value if owner in known and owner not in self.sensitive else MASK

        places = [name.strip("*").partition("[")[0] for name in self._names(tuple(args))]
        return (
            [of(place, value) for place, value in zip(places, args, strict=True)],
            {name: of(name if name in known else rest, value) for name, value in kwargs.items()},
        )

    def partial(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Some of a call's arguments as JSON's own values, for a signature that a chain completes later."""
        return (
            [to_json(value, f"{self.name}: argument {number}") for number, value in enumerate(args, 1)],
            {name: to_json(value, f"{self.name}: {name}") for name, value in kwargs.items()},
        )

    def encode_result(self, value: Any) -> Any:
        """What the body returned, as JSON's own values.

        Raises:
            ArgumentsError: It would not come back equal: the task has no return annotation, or another one.
        """
        if type(value) in _PLAIN:
            return value
        what = f"{self.name}: the result"
        wire = to_json(value, what)
        if wire != value or type(wire) is not type(value):
            self._validator()
            try:
                same = self._returns.validate_python(wire) == value
            except ValueError:
                same = False
            if not same:
                raise ArgumentsError(f"{what} is a {type(value).__name__}, which would not come back as one. "
                                     "Annotate what the task returns.")  # fmt: skip
        return wire

    def decode_result(self, wire: Any) -> Any:
        """What the task returned, rebuilt in the caller.

        Raises:
            ResultUnavailable: It does not fit the return annotation: another version of the code stored it.
        """
        if type(wire) in _PLAIN and self.signature.return_annotation is inspect.Signature.empty:
            return wire
        self._validator()
        try:
            return self._returns.validate_python(wire)
        except ValueError as error:
            if type(wire) in _PLAIN:
                return wire  # the body returned what its annotation does not say; that is between it and mypy
            raise ResultUnavailable(
                f"The result of {self.name} does not fit its annotation: {_reasons(error)}"
            ) from error

    def _validate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
        check = self._parameters or self._validator()
        try:
            bound_args, bound_kwargs = check(args, kwargs)
        except ValueError as error:
            from pydantic import ValidationError

            if not isinstance(error, ValidationError):
                raise
            raise ArgumentsError(
                f"{self.name}{self.signature} was called wrongly: {self._reasons(error, args)}"
            ) from None
        return tuple(bound_args), dict(bound_kwargs)

    def _reasons(self, error: Any, args: tuple[Any, ...]) -> str:
        # One that is missing has a place too: the error counts positions past those that were given.
        names = [*self._names(args), *list(self.signature.parameters)[len(args) :]]
        return _reasons(error, lambda place: names[place] if isinstance(place, int) and place < len(names) else place)

    def _names(self, args: tuple[Any, ...]) -> list[str]:
        """The parameter that each positional argument goes to."""
        names: list[str] = []
        for parameter in self.signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                names += [f"*{parameter.name}[{i}]" for i in range(len(args) - len(names))]
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                names.append(parameter.name)
        return (names + [f"argument {i + 1}" for i in range(len(names), len(args))])[: len(args)]

    def _compare(self, before: Bound, after: Bound) -> None:
        names = self._names(before[0])
        pairs = [*zip(names, before[0], after[0], strict=True)]
        pairs += [(name, value, after[1][name]) for name, value in before[1].items()]
        for name, sent, received in pairs:
            if not (sent == received and type(sent) is type(received)):
                raise ArgumentsError(
                    f"{self.name}: {name!r} would not come back from JSON as it was sent "
                    f"({type(sent).__name__} → {type(received).__name__}). Annotate the parameter with its type; "
                    "without one it takes JSON's own values only, with text as keys."
                )


def _only_arguments(schema: Any) -> Any:
    """The part of a function's schema that checks the arguments and leaves out the call."""
    if schema["type"] == "definitions":
        return {**schema, "schema": _only_arguments(schema["schema"])}
    return schema["arguments_schema"]


def to_json(value: Any, what: str) -> Any:
    """One value as JSON's own values.

    Raises:
        ArgumentsError: It has no form in JSON, or is not a finite number; *what* names it.
    """
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        wire = to_jsonable_python(value)
        json.dumps(wire, allow_nan=False)
    except (PydanticSerializationError, RecursionError) as error:
        raise ArgumentsError(f"{what} is a {type(value).__name__}, which has no form in JSON ({error}).") from None
    except UnicodeDecodeError:
        raise ArgumentsError(
            f"{what} holds bytes that are no text; encode them yourself, for example as base64."
        ) from None
    except ValueError:
        raise ArgumentsError(f"{what} holds NaN or an infinite number, which JSON does not have.") from None
    return wire


def _reasons(error: Any, named: Callable[[Any], Any] = lambda place: place) -> str:
    """A validation error in one line, without the values: they may be secrets."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    lines = []
    for problem in problems:
        place = (
            ".".join(str(part) for part in (named(problem["loc"][0]), *problem["loc"][1:])) if problem["loc"] else ""
        )
        lines.append(f"{place}: {problem['msg']}" if place else str(problem["msg"]))
    return "; ".join(lines)
