"""A line of the log as JSON: whatever is logged, it is one object, and tells no more than the text would."""

import json
import logging
import sys
from typing import Any

import pytest

from core.config import Settings, configure
from core.tasks import CurrentTask, log
from core.tasks.context import enter


@pytest.fixture(autouse=True)
def project() -> None:
    class Own(Settings):
        redis_url: Any = "redis://127.0.0.1:1"

    configure(Own)


def line(message: str = "said", *args: Any, name: str = "src", error: Any = None, **more: Any) -> dict[str, Any]:
    record = logging.getLogger(name).makeRecord(name, logging.INFO, "file.py", 1, message, args, error, extra=more)
    text = log.JsonFormatter().format(record)
    assert "\n" not in text
    made: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    del made["time"]
    return made


ORDINARY = {"level": "INFO", "logger": "src", "message": "said"}


def test_a_line_says_who_says_what() -> None:
    assert line("%s %d\nlines", "two", 2) == {**ORDINARY, "message": "two 2\nlines"}


def test_in_a_task_it_names_the_call() -> None:
    import contextvars

    here = CurrentTask("the-id", "mail.send", 1, "default", {}, None, None, "the-id")
    context = contextvars.copy_context()
    context.run(enter, here)

    assert context.run(line) == {**ORDINARY, "task": "mail.send", "task_id": "the-id"}


def test_an_error_is_text_in_one_field() -> None:
    try:
        raise KeyError("key")
    except KeyError:
        made = line(error=sys.exc_info())

    assert made.pop("exception").splitlines()[0] == "Traceback (most recent call last):"
    assert made == ORDINARY


def test_what_is_given_with_extra_is_in_it_as_far_as_json_goes() -> None:
    circle: list[Any] = []
    circle.append(circle)
    given = {"n": 1, "nan": float("nan"), "set": {1}, "odd": {(1, 2): 3}, "circle": circle, "level": "mine", "ok": None}

    assert line(**given) == {**ORDINARY, "n": 1, "nan": "nan", "set": "{1}", "odd": "{(1, 2): 3}",
                             "circle": "[[...]]", "ok": None}  # fmt: skip


def test_what_celery_gives_to_its_own_records_is_not() -> None:
    """It is the arguments of calls."""
    assert line(name="celery.app.trace", data={"args": "secret"}) == {**ORDINARY, "logger": "celery.app.trace"}


def test_a_project_that_has_set_up_logging_keeps_what_it_has() -> None:
    """As pytest has here."""

    class Json(Settings):
        redis_url: Any = "redis://127.0.0.1:1"
        task_log_format: Any = "json"

    configure(Json)
    before = [(handler, handler.formatter) for handler in logging.getLogger().handlers]
    assert before

    log.log_to_stderr("INFO")
    log.keep_format(logging.getLogger())

    assert [(handler, handler.formatter) for handler in logging.getLogger().handlers] == before
