"""The catalogue: every row of the fault suite, registered by the function that plays it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faults.world import World

POOLS = ("prefork", "threads", "asyncio")
#: For a row in which no worker has a part, or whose pool makes no difference: it is played once.
ONCE = POOLS[:1]
KINDS = ("ours", "stock")
#: Celery may take 5 s to notice that a pool process died, and its visibility timeout is not to pass meanwhile.
NOTICES = 15


class Finding(Exception):
    """What went otherwise than promised, in a few words."""


@dataclass(frozen=True)
class Outcome:
    """What a row found with one kind of worker."""

    passed: bool
    said: str


@dataclass(frozen=True)
class Row:
    """One fault."""

    number: int
    #: What happens, in the reader's words.
    title: str
    #: Plays it; returns what was seen when all went as promised, raises Finding otherwise.
    play: Callable[["World"], str]
    #: Those that it makes sense on.
    pools: tuple[str, ...]
    #: It measures how long something takes, so nothing else may run beside it.
    alone: bool
    #: More options for the server, more variables for every process.
    server: tuple[str, ...]
    variables: dict[str, str]
    #: Seconds of Celery's visibility timeout, where the one of the other rows would be unfair.
    stock_lease: int | None

    def environment(self, kind: str) -> dict[str, str]:
        """The variables of this row's processes."""
        lease = {"TASK_LEASE": str(self.stock_lease)} if self.stock_lease and kind == "stock" else {}
        return {**self.variables, **lease}

    def pools_of(self, kind: str) -> tuple[str, ...]:
        """Celery's own worker is the control on its default pool."""
        return self.pools if kind == "ours" else self.pools[:1]


ROWS: list[Row] = []


def row(
    number: int,
    title: str,
    *,
    pools: tuple[str, ...] = POOLS,
    alone: bool = False,
    server: tuple[str, ...] = (),
    stock_lease: int | None = None,
    **variables: str,
) -> Callable[[Callable[["World"], str]], Callable[["World"], str]]:
    """Register the function that plays a row."""

    def register(play: Callable[["World"], str]) -> Callable[["World"], str]:
        ROWS.append(Row(number, title, play, pools, alone, server, variables, stock_lease))
        return play

    return register


def all_rows() -> list[Row]:
    """Every row, by number."""
    from faults import away, calling, guarded, killed, leading, messages, planned, poison, waiting

    assert all((away, calling, guarded, killed, leading, messages, planned, poison, waiting))
    return sorted(ROWS, key=lambda row: row.number)


def find(number: int) -> Row:
    """The row of this number."""
    return next(row for row in all_rows() if row.number == number)
