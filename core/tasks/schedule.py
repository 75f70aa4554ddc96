"""When a periodic task is due: cron text or an interval, read into Celery's schedule.

What Celery would silently read in another way than cron does is refused here, where the author sees it.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from core.errors import OptionError

if TYPE_CHECKING:
    from celery.schedules import BaseSchedule

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
MONTHS = {
    name: number
    for number, name in enumerate(
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1
    )
}
DAYS = {name: number for number, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
# Name, lowest, highest, names: 7 is Sunday as well as 0, in cron and here.
FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, MONTHS),
    ("day of week", 0, 7, DAYS),
)
LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def parse_cron(text: object) -> str:
    """Check cron text and return it as five plain fields.

    Args:
        text: Five fields (minute, hour, day of month, month, day of week), or `@hourly`, `@daily`, `@weekly`,
            `@monthly`, `@yearly`. White space is free; `7` is Sunday; names of months and days work.

    Raises:
        OptionError: It is not cron, or it never comes due, or Celery would read it in another way than cron.
    """
    if not isinstance(text, str) or not text.strip():
        raise OptionError(f"cron={text!r} is not cron text; write five fields, like '0 * * * *'.")
    fields = ALIASES.get(text.strip().lower(), text).split()
    if len(fields) != 5:
        raise OptionError(
            f"cron={text!r} has {len(fields)} field{'s' * (len(fields) != 1)}; cron has five: "
            "minute, hour, day of month, month, day of week."
        )
    plain, sets = [], []
    for field, (name, low, high, names) in zip(fields, FIELDS, strict=True):
        values = _values(field, name, low, high, names, text)
        full = set(range(low, high + 1)) <= values | ({7} if high == 7 else set())
        sets.append(values)
        # Celery knows no names of months and no 7: the numbers say the same to both.
        plain.append("*" if full else ",".join(map(str, sorted({v % 7 for v in values} if high == 7 else values))))
    _, _, days, months, _ = sets
    if plain[2] != "*" and plain[4] != "*":
        raise OptionError(
            f"cron={text!r} restricts both day of month and day of week. Celery would need both to match, "
            "cron either: write two tasks."
        )
    if not any(day <= LONGEST_MONTH[month - 1] for day in days for month in months):
        raise OptionError(f"cron={text!r} names a day that its months do not have, so it would never run.")
    return " ".join(plain)


def _values(field: str, name: str, low: int, high: int, names: dict[str, int], text: str) -> set[int]:
    def number(word: str) -> int:
        value = names.get(word.lower(), int(word) if word.isascii() and word.isdigit() else -1)
        if not low <= value <= high:
            raise OptionError(f"cron={text!r}: {word!r} is no {name}; it goes from {low} to {high}.")
        return value

    values: set[int] = set()
    for part in field.split(","):
        span, slash, step_text = part.partition("/")
        step = 1
        if slash:
            size = high - low + (0 if high == 7 else 1)
            if not (step_text.isascii() and step_text.isdigit()) or not 1 <= int(step_text) <= size:
                raise OptionError(
                    f"cron={text!r}: the step {step_text!r} does not fit a {name}; it goes from 1 to {size}."
                )
            step = int(step_text)
        first, dash, last = span.partition("-")
        if span == "*":
            start, end = low, high - (1 if high == 7 else 0)
        else:
            start = number(first)
            end = number(last) if dash else high if slash else start
        if end < start:
            raise OptionError(f"cron={text!r}: the {name} range {span!r} runs backwards.")
        values.update(range(start, end + 1, step))
    return values


def parse_interval(value: object) -> float:
    """Check an interval and return its seconds.

    Raises:
        OptionError: It is not a finite number of seconds (or timedelta) above zero.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    # Below a microsecond it would be zero for Celery, and above three centuries it would overflow.
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1e-6 <= seconds <= 1e10:
        raise OptionError(f"interval={value!r} is not a number of seconds above zero.")
    return float(seconds)


def celery_schedule(cron: str | None, interval: float | None) -> "BaseSchedule":
    """The Celery schedule for cron text that `parse_cron` returned, or for an interval in seconds."""
    from celery.schedules import crontab, schedule

    if cron is not None:
        minute, hour, day_of_month, month_of_year, day_of_week = cron.split()
        return crontab(minute, hour, day_of_week, day_of_month, month_of_year)
    assert interval is not None
    return schedule(timedelta(seconds=interval))


def due_after(planned: Any, last: datetime) -> datetime:
    """When a schedule that `celery_schedule` made is due for the first time after *last*, in UTC."""
    from celery.schedules import crontab

    if isinstance(planned, crontab):
        local, delta, _ = planned.remaining_delta(last)
        moment: datetime = local + delta
    else:
        moment = last + planned.run_every
    return moment.astimezone(UTC)
