"""The page of benchmarks, which says what the figures say that are kept."""

import json

import pytest
from bench.peers import page, plot
from bench.peers.measures import Figure, figure
from bench.peers.rows import PEERS, ROWS


def test_the_page_and_its_plot_are_those_of_the_figures_that_are_kept() -> None:
    results = json.loads(page.RESULTS.read_text())

    assert page.PAGE.read_text() == page.text(results), "run `python tests/bench/peers/run.py --page`"
    assert page.PAGE.with_suffix(".svg").read_text() == plot.svg(page.figures(results))


def test_the_page_has_every_value_in_its_place() -> None:
    assert "{" not in page.text(json.loads(page.RESULTS.read_text()))


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([(10.0, 0.0), (20.0, 0.1), (90.0, 0.9)], Figure(15.0, 1 / 3, 2, False)),
        ([(10.0, 0.0), (20.0, 0.9), (90.0, 0.9)], Figure(20.0, 2.0, 3, True)),
        ([], None),
    ],
    ids=["two are quiet", "one is quiet", "none"],
)
def test_a_disturbed_sample_is_dropped_where_two_others_are_left(
    samples: list[tuple[float, float]], expected: Figure | None
) -> None:
    assert figure(samples) == expected


def test_the_page_names_whoever_is_better_and_leaves_the_limit_apart() -> None:
    def row(noop: float, median: float) -> dict[str, Figure]:
        return {"noop": Figure(noop, 0, 3, False), "median": Figure(median, 0, 3, False)}

    found = {"core.tasks": row(5000, 1.0), "saq": row(4000, 0.9), "limit": row(20000, 0.5)}

    assert list(page.behind(found)) == ["- **latency, median**, ms: saq 0.90; `core.tasks` 1.00; less than 20 % apart."]


def test_every_row_is_of_a_peer_and_those_that_are_drawn_are_there() -> None:
    names = [row.name for row in ROWS]

    assert len(set(names)) == len(names)
    assert {row.peer for row in ROWS} == set(PEERS)
    assert set(plot.SHOWN) | {page.OURS, page.LINES, page.CONTROL, page.LIMIT} <= set(names)
