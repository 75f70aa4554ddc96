"""The kinds of values that a setting may have."""

import json
import math
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("True and False are not numbers")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the number must be finite")
    return value


def _queue(value: str) -> str:
    if not value.strip() or value != value.strip():
        raise ValueError("a queue has a name without spaces around it")
    return value


def _listed(value: Any) -> Any:
    """`a,b` beside `["a", "b"]`: an environment variable is easier to write the first way."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


Seconds = Annotated[float, BeforeValidator(_number), AfterValidator(_finite), Field(gt=0)]
SecondsOrZero = Annotated[float, BeforeValidator(_number), AfterValidator(_finite), Field(ge=0)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(_number), Field(ge=0)]
QueueName = Annotated[str, AfterValidator(_queue)]
QueueNames = Annotated[tuple[QueueName, ...], NoDecode, BeforeValidator(_listed)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_listed)]
