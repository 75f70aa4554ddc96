"""When a periodic task will run, by the code by which the scheduler decides it."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from core.errors import OptionError, SettingsNotFound

if TYPE_CHECKING:
    from core.tasks.definition import PeriodicTask


def next_runs(task: "PeriodicTask[Any, Any]", start: datetime, n: int = 1) -> list[datetime]:
    """The next times at which a periodic task is due, in `task_timezone`.

    An interval is counted from *start*. A task that is declared with `enabled=False` is never due.

    Args:
        task: A function with `@periodic_task`.
        start: A moment with a time zone; what is due at that very moment is not counted.
        n: How many.

    Raises:
        OptionError: *task* is not periodic, or *start* has no time zone.
    """
    from zoneinfo import ZoneInfo

    from celery import Celery

    from core import config
    from core.tasks.definition import PeriodicTask
    from core.tasks.schedule import celery_schedule, due_after

    if not isinstance(task, PeriodicTask):
        raise OptionError(f"{task!r} is not periodic: it has no times. Declare it with @periodic_task.")
    if not isinstance(start, datetime) or start.utcoffset() is None:
        raise OptionError(f"start={start!r} is not a datetime with a time zone, like datetime.now(UTC).")
    try:
        zone = config.get_settings().task_timezone
    except SettingsNotFound:
        zone = config.Settings.model_fields["task_timezone"].default
    planned: Any = celery_schedule(task.schedule.cron, task.schedule.interval)
    planned.app = Celery(set_as_current=False)
    planned.app.conf.update(timezone=zone)
    found: list[datetime] = []
    while task.schedule.enabled and len(found) < n:
        start = due_after(planned, start)
        found.append(start.astimezone(ZoneInfo(zone)))
    return found
