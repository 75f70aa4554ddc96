"""`next_runs`: when a periodic task is due, as the scheduler decides it, in the project's time zone."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from core import config
from core.config import Settings, configure
from core.errors import OptionError
from core.tasks import PeriodicTask, periodic_task, task
from core.testing import next_runs

PAGE = (Path(__file__).parents[2] / "docs/howto/periodic-tasks.md").read_text()


class Berlin(Settings):
    task_timezone: str = "Europe/Berlin"


def planned(**options: Any) -> PeriodicTask[[], None]:
    @periodic_task(**options)
    async def report() -> None: ...

    return report


def test_cron_is_read_in_utc_where_nothing_else_is_set() -> None:
    start = datetime(2026, 2, 27, 9, 0, tzinfo=UTC)  # a Friday; what is due at the start is not counted

    runs = next_runs(planned(cron="0 9 * * 1-5"), start, 3)

    assert runs == [datetime(2026, 3, day, 9, tzinfo=UTC) for day in (2, 3, 4)]
    assert config._current.settings is None


def test_cron_is_read_in_the_time_zone_of_the_settings() -> None:
    configure(Berlin)

    (run,) = next_runs(planned(cron="0 9 * * *"), datetime(2026, 7, 1, tzinfo=UTC))

    assert run.isoformat() == "2026-07-01T09:00:00+02:00"


@pytest.mark.parametrize(
    ("column", "begin"),
    [(1, datetime(2026, 3, 28, 22, 55, tzinfo=UTC)), (2, datetime(2026, 10, 24, 21, 55, tzinfo=UTC))],
)
def test_a_change_of_the_clock_is_as_the_page_on_periodic_tasks_says(column: int, begin: datetime) -> None:
    configure(Berlin)
    rows = re.findall(r"^\| `([^`]+)` \| ([\d: ]+) \| ([\d: ]+) \|$", PAGE, re.MULTILINE)

    assert len(rows) == 5
    for row in rows:
        runs = next_runs(planned(cron=row[0], name=row[0].replace(" ", "_")), begin, 12)
        that_night = [f"{run:%H:%M}" for run in runs if run < begin + timedelta(hours=6)]
        assert [at for at in that_night if "00:45" < at < "04:15"] == row[column].split()


def test_an_interval_is_counted_from_the_start() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)

    assert next_runs(planned(interval=90), start, 2) == [start + timedelta(seconds=90), start + timedelta(seconds=180)]


def test_what_is_switched_off_is_never_due() -> None:
    assert next_runs(planned(interval=90, enabled=False), datetime.now(UTC), 2) == []


def test_what_has_no_times_and_a_start_without_a_zone_are_refused() -> None:
    @task
    async def once() -> None: ...

    with pytest.raises(OptionError, match="Declare it with @periodic_task"):
        next_runs(once, datetime.now(UTC))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="datetime with a time zone"):
        next_runs(planned(interval=90), datetime(2026, 1, 1))
