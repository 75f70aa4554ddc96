"""Several processes count together, and nothing that one has counted is lost with it."""

import os
import threading

from support import wait_until

from core.tasks.figures import ENDS, ROWS, Figures


def in_a_fork(figures: Figures, row: int, *ends: tuple[str, float]) -> None:
    """Count in a process of its own, which then dies."""
    pid = os.fork()
    if pid == 0:
        figures.take_row(row)
        figures.now(in_flight=row, lag=row / 10)
        for outcome, seconds in ends:
            figures.finished("a", outcome, seconds)  # type: ignore[arg-type]
        os._exit(0)
    os.waitpid(pid, 0)


def test_what_all_processes_have_counted_is_summed_wherever_it_is_asked() -> None:
    figures = Figures(["b", "a"])

    in_a_fork(figures, 1, ("success", 0.004), ("failed", 400.0))
    in_a_fork(figures, ROWS + 7, ("success", 0.3))
    in_a_fork(figures, 1, ("success", 0.005))
    figures.finished("a", "cancelled")
    figures.finished("nobody knows it", "success", 1.0)

    totals = figures.totals()["a"]
    assert totals.outcomes == {"success": 3, "failed": 1, "retried": 0, "cancelled": 1}
    assert dict(zip((*ENDS, "more"), totals.buckets, strict=True)) == {
        **dict.fromkeys((*ENDS, "more"), 0), 0.005: 2, 0.5: 1, "more": 1,
    }  # fmt: skip
    assert totals.seconds == 0.004 + 400.0 + 0.3 + 0.005
    assert figures.totals()["b"].outcomes == dict.fromkeys(totals.outcomes, 0)


def test_what_is_so_at_the_moment_ends_with_the_process_whose_it_was() -> None:
    figures = Figures(["a"])
    figures.now(in_flight=4, lag=0.01)
    waits, lives = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(lives)
        figures.take_row(2)
        figures.now(in_flight=2, lag=0.2)
        os.read(waits, 1)
        os._exit(0)
    wait_until(lambda: (figures.in_flight(), figures.lag()) == (6, 0.2), 10, "both are summed")

    os.close(lives)

    # It is not collected yet, and counts no more.
    wait_until(lambda: (figures.in_flight(), figures.lag()) == (4, 0.01), 10, "one is left")
    os.close(waits)
    os.waitpid(pid, 0)
    in_a_fork(figures, 2)
    assert (figures.in_flight(), figures.lag()) == (4, 0.01)


def test_threads_lose_no_count_to_each_other() -> None:
    figures = Figures(["a"])

    def count() -> None:
        for _ in range(2000):
            figures.finished("a", "success", 0.5)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert figures.totals()["a"].outcomes["success"] == 16_000
    assert figures.totals()["a"].seconds == 8_000
