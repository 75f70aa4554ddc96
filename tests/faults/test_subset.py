"""The faults that tell most in the shortest time; `make test-faults` plays all of them, on every pool."""

import pytest
from faults.rows import ONCE, find
from faults.run import play

#: Rows by number, each on one pool.
ROWS = {
    2: "asyncio",
    9: "prefork",
    10: "asyncio",
    11: "prefork",
    13: "threads",
    20: "asyncio",
    25: "threads",
    41: ONCE[0],
}


@pytest.mark.parametrize(
    ("number", "pool"),
    [pytest.param(number, pool, id=find(number).play.__name__) for number, pool in ROWS.items()],
)
def test_a_fault_ends_as_promised(number: int, pool: str) -> None:
    # Other tests run beside this one: what is to take a second may take four.
    outcome = play(find(number), "ours", pool, patience=4)

    assert outcome.passed, f"{find(number).title}: {outcome.said}"
