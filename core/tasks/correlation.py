"""Values of context variables that travel with calls, such as the id of the request that led to them.

The variables are those that the setting `task_context_headers` names. A message says which value each had where the
call was made, and the worker sets them around the call, so that they go on to the calls which that makes.
"""

import importlib
import logging
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from core import config
from core.errors import ConfigurationError

logger = logging.getLogger("core.tasks")

#: The header with the values by the names of their variables.
HEADER = "core-context"


def check() -> None:
    """See that every variable is there.

    Raises:
        ConfigurationError: A name in `task_context_headers` leads to no context variable.
    """
    _variables(config.get_settings().task_context_headers)


def values() -> dict[str, str]:
    """What the variables have here, by name. One that is unset, None or no text has nothing to send.

    Raises:
        ConfigurationError: As of `check`.
    """
    if not config.get_settings().task_context_headers:
        return {}
    found = _found()
    for name in [name for name, value in found.items() if not isinstance(value, str)]:
        _warn(name, type(found.pop(name)).__name__)
    return found


def shown() -> dict[str, str]:
    """What the variables have here, by the last words of their names, for people to read."""
    if not config.get_settings().task_context_headers:
        return {}
    return {name.rpartition(".")[2]: str(value) for name, value in _found().items()}


def _found() -> dict[str, Any]:
    variables = _variables(config.get_settings().task_context_headers)
    return {name: value for name, variable in variables.items() if (value := variable.get(None)) is not None}


def follow() -> None:
    """Have this worker set the variables around each call, as they came with it."""
    from celery.signals import task_postrun, task_prerun

    if config.get_settings().task_context_headers:
        task_prerun.connect(_enter, weak=False)
        task_postrun.connect(_leave, weak=False)


# Around Celery's tracer, not around the body alone: that one sends the next call of a chain, and the next attempt.
def _enter(task: Any = None, **_: Any) -> None:
    came = task.request.get(HEADER)  # `request.headers` lacks it where somebody has sent a header of that name: Sentry
    came = came if isinstance(came, dict) else {}
    variables = _variables(config.get_settings().task_context_headers)
    task.request.core_context = [
        (variable, variable.set(came[name])) for name, variable in variables.items() if isinstance(came.get(name), str)
    ]


def _leave(task: Any = None, **_: Any) -> None:
    for variable, token in getattr(task.request, "core_context", ()):
        variable.reset(token)


@lru_cache
def _variables(names: tuple[str, ...]) -> dict[str, ContextVar[Any]]:
    return {name.replace(":", "."): _variable(name) for name in names}


def _variable(name: str) -> ContextVar[Any]:
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"task_context_headers names {name!r}, which is not there ({error}). Write it as module:NAME."
        ) from error
    if not isinstance(found, ContextVar):
        raise ConfigurationError(
            f"task_context_headers names {name!r}, which is a {type(found).__name__} and no contextvars.ContextVar."
        )
    return found


@lru_cache
def _warn(name: str, kind: str) -> None:
    logger.warning("the value of %s does not travel with calls: it is a %s, and only text does", name, kind)
