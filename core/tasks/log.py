"""What the lines look like that our processes log.

They go to stderr, as text or as JSON (`task_log_format`). A project that has set up logging itself keeps what it has.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from core import config
from core.tasks import correlation
from core.tasks.context import current_or_none

#: What every record has; whatever else one has was given to it with `extra=`.
ORDINARY = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
#: Celery gives its own records the arguments of calls, sensitive ones as well.
TELL_TOO_MUCH = ("celery", "kombu", "amqp")


def begin() -> None:
    """Have what is logged before logging is set up look the same."""
    if _is_json() and logging.lastResort:
        logging.lastResort.setFormatter(JsonFormatter())


def log_to_stderr(loglevel: str) -> None:
    """Send log lines to stderr, unless the project has set up logging itself."""
    if not logging.getLogger().handlers:
        logging.basicConfig(
            stream=sys.stderr,
            level=loglevel.upper(),
            format="%(asctime)s %(levelname)s %(message)s",
        )
        if _is_json():
            logging.getLogger().handlers[0].setFormatter(JsonFormatter())
            logging.captureWarnings(True)


def keep_format(logger: Any = None, **_: Any) -> None:
    """A receiver of Celery's signals that a logger was set up: what Celery has put there writes as ours does."""
    from celery.utils.log import ColorFormatter

    if _is_json():
        for each in (logger, logging.getLogger("multiprocessing")):
            for handler in each.handlers:
                if isinstance(handler.formatter, ColorFormatter):
                    handler.setFormatter(JsonFormatter())


def _is_json() -> bool:
    return config.get_settings().task_log_format == "json"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: when, how bad, who, what; inside a task which one, and what came with its call."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if running := _running():
            line["task"], line["task_id"] = running
        line = {**line, **correlation.shown(), **line}
        if record.exc_info and record.exc_info[0]:
            line["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:  # a pool process has sent it as text
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = record.stack_info
        if not record.name.startswith(TELL_TOO_MUCH):
            for name in [name for name in vars(record) if name not in ORDINARY]:
                line.setdefault(name, _plain(vars(record)[name]))
        return json.dumps(line)


def _running() -> tuple[str, str] | None:
    """Name and id of the task that runs here; Celery alone knows of one that is not ours, and of what is around one."""
    if here := current_or_none():
        return here.name, here.id
    import celery

    running: Any = celery.current_task
    return (running.name, running.request.id) if running and running.request.id else None


def _plain(value: Any) -> Any:
    """A value as JSON has it, or as text."""
    try:
        return json.loads(json.dumps(value, default=str, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return str(value)
