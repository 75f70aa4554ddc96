"""How the fault suite counts due times that were sent twice."""

import pytest
from faults.schedulers import too_many


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([100, 101, 102.01, 103.02], 0),
        ([100, 100.02, 101, 102], 1),
        ([100, 100.3, 101.3, 102.3], 0),  # the first one may have been seen late
        ([100, 100.3, 101, 101.3, 102], 2),
        ([100, 101.7, 102, 103, 104], 0),
        ([100, 105, 106, 107], 0),
        ([100, 105, 105.05, 106, 107], 1),
        ([], 0),
    ],
)
def test_a_run_more_than_there_are_due_times_is_one_too_many(times: list[float], found: int) -> None:
    assert too_many(times, 1) == found
