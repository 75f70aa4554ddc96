"""The page that the fault suite writes, from the outcomes of some rows."""

from faults import page
from faults.churn import Figures
from faults.rows import Outcome, all_rows, find

RESULTS = {
    41: {"ours": Outcome(True, "as documented"), "stock": Outcome(False, "`0 3 * * *` at 04:00 | late")},
    2: {"ours": Outcome(False, "threads: lost"), "stock": Outcome(True, "runs again")},
}
FIGURES = {
    "`core.tasks`, prefork": Figures(100, 50, 10, accepted=5000, calm=[2.0, 3.0]),
    "Celery": Figures(100, 50, 10),
}


def test_the_rows_come_by_number_with_what_each_kind_showed() -> None:
    assert page.rows(RESULTS).splitlines() == [
        "| what happens | `core.tasks` | Celery |",
        "|---|---|---|",
        f"| {find(2).title} | **no:** threads: lost | runs again |",
        f"| {find(41).title} | as documented | **no:** `0 3 * * *` at 04:00 \\| late |",
    ]


def test_the_page_has_every_value_in_its_place() -> None:
    text = page.text(RESULTS, FIGURES)

    assert page.rows(RESULTS) in text
    assert "| `core.tasks`, prefork | 0 | 0 | 0 | 2.5 s, 3.0 s |" in text
    assert "a scheduler's lock of 4 s" in text
    assert "{" not in text.replace(page.rows(RESULTS), "")


def test_every_row_has_a_number_and_a_title_of_its_own_that_fits_a_cell() -> None:
    rows = all_rows()

    assert [row.number for row in rows] == list(range(1, 47))
    assert len({row.title for row in rows}) == len(rows)
    assert not [row.title for row in rows if "|" in row.title or "\n" in row.title]
