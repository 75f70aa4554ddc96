"""Cron text and intervals: Celery comes due when cron would, and what it would read otherwise is refused."""

import calendar
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery

from core.errors import OptionError
from core.tasks.schedule import celery_schedule, parse_cron, parse_interval

EVERY = {"minute": range(60), "hour": range(24), "day": range(1, 32), "month": range(1, 13), "weekday": range(7)}

# cron text and what it means, written down by hand: the fields that are not every value. Sunday is 0.
MEANINGS: list[tuple[str, dict[str, Any]]] = [
    ("* * * * *", {}),
    ("0 * * * *", {"minute": [0]}),
    ("*/15 * * * *", {"minute": [0, 15, 30, 45]}),
    ("*/7 * * * *", {"minute": [0, 7, 14, 21, 28, 35, 42, 49, 56]}),
    ("5/20 * * * *", {"minute": [5, 25, 45]}),
    ("10-20/5 * * * *", {"minute": [10, 15, 20]}),
    ("0,30 9-17 * * *", {"minute": [0, 30], "hour": range(9, 18)}),
    ("0 */6 * * *", {"minute": [0], "hour": [0, 6, 12, 18]}),
    ("59 23 31 12 *", {"minute": [59], "hour": [23], "day": [31], "month": [12]}),
    ("0 0 */10 * *", {"minute": [0], "hour": [0], "day": [1, 11, 21, 31]}),
    ("0 0 1 */3 *", {"minute": [0], "hour": [0], "day": [1], "month": [1, 4, 7, 10]}),
    ("0 0 29 2 *", {"minute": [0], "hour": [0], "day": [29], "month": [2]}),
    ("0 0 31 1,2 *", {"minute": [0], "hour": [0], "day": [31], "month": [1, 2]}),
    ("0 0 1 jan,Jul *", {"minute": [0], "hour": [0], "day": [1], "month": [1, 7]}),
    ("0 0 1 feb-apr *", {"minute": [0], "hour": [0], "day": [1], "month": [2, 3, 4]}),
    ("0 0 * * 0", {"minute": [0], "hour": [0], "weekday": [0]}),
    ("0 0 * * 7", {"minute": [0], "hour": [0], "weekday": [0]}),
    ("0 0 * * sun", {"minute": [0], "hour": [0], "weekday": [0]}),
    ("0 0 * * MON-fri", {"minute": [0], "hour": [0], "weekday": [1, 2, 3, 4, 5]}),
    ("0 0 * * 5-7", {"minute": [0], "hour": [0], "weekday": [5, 6, 0]}),
    ("0 0 * * 6,7", {"minute": [0], "hour": [0], "weekday": [6, 0]}),
    ("0 0 * * 1/2", {"minute": [0], "hour": [0], "weekday": [1, 3, 5, 0]}),
    ("0 0 * * */2", {"minute": [0], "hour": [0], "weekday": [0, 2, 4, 6]}),
    ("0 0 * * 0-7", {"minute": [0], "hour": [0]}),
    ("0 0 * * 1-7", {"minute": [0], "hour": [0]}),
    ("0 0 1-31 * 1", {"minute": [0], "hour": [0], "weekday": [1]}),
    ("0 0 13 * */1", {"minute": [0], "hour": [0], "day": [13]}),
    ("00 08 * * *", {"minute": [0], "hour": [8]}),
    ("  0\t12  *\n* *  ", {"minute": [0], "hour": [12]}),
    ("@hourly", {"minute": [0]}),
    ("@daily", {"minute": [0], "hour": [0]}),
    (" @Daily ", {"minute": [0], "hour": [0]}),
    ("@weekly", {"minute": [0], "hour": [0], "weekday": [0]}),
    ("@monthly", {"minute": [0], "hour": [0], "day": [1]}),
    ("@yearly", {"minute": [0], "hour": [0], "day": [1], "month": [1]}),
]


def due_after(meaning: dict[str, Any], moment: datetime) -> datetime:
    """The first minute after *moment* that a cron of this meaning names, found by looking at one after the other."""
    wanted = {field: set(meaning.get(field, every)) for field, every in EVERY.items()}
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    while True:
        if (
            day.month in wanted["month"]
            and day.day in wanted["day"]
            and (calendar.weekday(day.year, day.month, day.day) + 1) % 7 in wanted["weekday"]
        ):
            for hour in sorted(wanted["hour"]):
                for minute in sorted(wanted["minute"]):
                    candidate = day.replace(hour=hour, minute=minute)
                    if candidate > moment:
                        return candidate
        day += timedelta(days=1)


def celery_due_after(cron: str, moment: datetime) -> datetime:
    """The same as Celery's scheduler sees it."""
    schedule: Any = celery_schedule(parse_cron(cron), None)
    schedule.nowfun = lambda: moment
    return moment + schedule.remaining_estimate(moment)


@pytest.mark.parametrize(("cron", "meaning"), MEANINGS, ids=[cron for cron, _ in MEANINGS])
def test_celery_comes_due_exactly_when_cron_would(cron: str, meaning: dict[str, Any]) -> None:
    moment = datetime(2023, 12, 28, 21, 40, 17, tzinfo=UTC)
    for _ in range(12):
        expected = due_after(meaning, moment)
        assert celery_due_after(cron, moment) == expected
        moment = expected


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("", "is not cron text"),
        ("   ", "is not cron text"),
        (None, "is not cron text"),
        (5, "is not cron text"),
        (("0", "*", "*", "*", "*"), "is not cron text"),
        ("* * * *", "has 4 fields; cron has five"),
        ("0 * * * * *", "has 6 fields; cron has five"),
        ("@noon", "has 1 field; cron has five"),
        ("0 0 31 2 *", "would never run"),
        ("0 0 30 feb *", "would never run"),
        ("0 0 31 4,6,9,11 *", "would never run"),
        ("0 0 13 * 5", "both day of month and day of week"),
        ("0 0 */2 * mon", "both day of month and day of week"),
        ("*/61 * * * *", "'61' does not fit a minute; it goes from 1 to 60"),
        ("0 */25 * * *", "'25' does not fit a hour; it goes from 1 to 24"),
        ("0 0 */32 * *", "'32' does not fit a day of month"),
        ("0 0 1 */13 *", "'13' does not fit a month"),
        ("0 0 * * */8", "'8' does not fit a day of week"),
        ("*/0 * * * *", "'0' does not fit a minute"),
        ("*/-5 * * * *", "'-5' does not fit a minute"),
        ("*/x * * * *", "'x' does not fit a minute"),
        ("*/ * * * *", "'' does not fit a minute"),
        ("30-10 * * * *", "range '30-10' runs backwards"),
        ("0 22-6 * * *", "range '22-6' runs backwards"),
        ("0 0 * * fri-mon", "range 'fri-mon' runs backwards"),
        ("0 0 1 oct-mar *", "range 'oct-mar' runs backwards"),
        ("60 * * * *", "'60' is no minute; it goes from 0 to 59"),
        ("0 24 * * *", "'24' is no hour; it goes from 0 to 23"),
        ("0 0 0 * *", "'0' is no day of month; it goes from 1 to 31"),
        ("0 0 32 * *", "'32' is no day of month"),
        ("0 0 1 0 *", "'0' is no month; it goes from 1 to 12"),
        ("0 0 1 13 *", "'13' is no month"),
        ("0 0 * * 8", "'8' is no day of week; it goes from 0 to 7"),
        ("0 0 * * monday", "'monday' is no day of week"),
        ("0 0 * mon *", "'mon' is no month"),
        ("-1 * * * *", "'' is no minute"),
        ("1,,2 * * * *", "'' is no minute"),
        ("1-2-3 * * * *", "'2-3' is no minute"),
        ("1.5 * * * *", "'1.5' is no minute"),
        ("0 0 1 * ?", "'?' is no day of week"),
        ("0 0 L * *", "'L' is no day of month"),
        ("٣ * * * *", "'٣' is no minute"),
    ],
)
def test_a_cron_that_is_none_is_refused_with_its_text_and_the_reason(cron: object, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_cron(cron)

    assert said in str(caught.value)
    assert f"cron={cron!r}" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("value", "seconds"), [(1, 1.0), (0.5, 0.5), (timedelta(minutes=5), 300.0), (86400, 86400.0)])
def test_an_interval_is_seconds_or_a_timedelta(value: Any, seconds: float) -> None:
    assert parse_interval(value) == seconds
    assert celery_schedule(None, parse_interval(value)).run_every == timedelta(seconds=seconds)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "value",
    [0, -1, -0.5, float("nan"), float("inf"), float("-inf"), True, False, "5", None, [1], timedelta(0),
     timedelta(seconds=-1), 1e-9, 1e20, 10**400, timedelta.max * 0],
)  # fmt: skip
def test_an_interval_that_means_nothing_is_refused_with_its_value(value: Any) -> None:
    with pytest.raises(OptionError, match=r"interval=.* is not a number of seconds above zero") as caught:
        parse_interval(value)

    assert repr(value) in str(caught.value)


# The hour that a clock change skips or repeats


def runs(cron: str, begin: datetime) -> list[str]:
    """The local times at which a scheduler in Berlin that looks every 30 s sends it, in the small hours."""
    app, zone, now = Celery(set_as_current=False), ZoneInfo("Europe/Berlin"), begin
    app.conf.timezone = "Europe/Berlin"
    planned: Any = celery_schedule(parse_cron(cron), None)
    planned.app, planned.nowfun = app, lambda: now.astimezone(zone)
    found, last = [], begin
    while now < begin + timedelta(hours=6):
        now += timedelta(seconds=30)
        if planned.is_due(last).is_due:
            last = now
            found.append(now.astimezone(zone).strftime("%H:%M"))
    return [at for at in found if "00:45" < at < "04:15"]


def test_the_page_tells_what_runs_when_the_clock_changes() -> None:
    page = (Path(__file__).parents[2] / "docs/howto/periodic-tasks.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| ([\d: ]+) \| ([\d: ]+) \|$", page, re.MULTILINE)

    assert len(rows) == 5
    for cron, spring, autumn in rows:
        assert runs(cron, datetime(2026, 3, 28, 22, 55, tzinfo=UTC)) == spring.split()
        assert runs(cron, datetime(2026, 10, 24, 21, 55, tzinfo=UTC)) == autumn.split()
