"""`lock_name`: calls that are the same have the same lock."""

from datetime import date
from typing import Any

import pytest

from core.errors import OptionError
from core.tasks.arguments import Arguments
from core.tasks.unique import lock_name


def name(key: Any, *args: Any, task: str = "t", **kwargs: Any) -> str:
    def f(day: date, kind: str = "daily", *more: int, **rest: int) -> None: ...

    return lock_name(task, Arguments(f, "f"), key, args, kwargs)


DAY = date(2026, 3, 1)


@pytest.mark.parametrize(
    ("same", "key", "args", "kwargs"),
    [
        (True, None, (), {"day": DAY}),
        (True, None, (DAY, "daily"), {}),
        (True, None, ("2026-03-01",), {"kind": "daily"}),
        (False, None, (date(2026, 3, 2),), {}),
        (False, None, (DAY, "daily", 1), {}),
        (False, None, (DAY,), {"other": 1}),
        (False, ("day",), (DAY,), {}),
    ],
)
def test_all_arguments_count_however_they_are_given(same: bool, key: Any, args: Any, kwargs: Any) -> None:
    assert (name(key, *args, **kwargs) == name(None, DAY)) is same


def test_with_a_key_nothing_else_counts() -> None:
    assert name(("day",), DAY, "weekly") == name(("day",), DAY)
    assert name((), DAY) == name((), date(2026, 3, 2))
    assert name(lambda day, *_: day.month, DAY) == name(lambda day, *_: day.month, date(2026, 3, 2))


def test_another_task_has_another_lock_whatever_its_name_is_made_of() -> None:
    names = {name(None, DAY, task=task) for task in ("a.b", "a.c", "ä", "ö", 'a"b')}

    assert len(names) == 5
    assert all(one.isascii() and '"' not in one for one in names)


def test_a_key_without_a_form_in_json_is_refused() -> None:
    with pytest.raises(OptionError, match=r"unique_key of t cannot be used: its value is a object"):
        name(lambda *_: object(), DAY)
