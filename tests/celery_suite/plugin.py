"""A plugin of pytest that gives Celery's suite the worker that it is to judge, and notes what became of each test.

The suite starts a worker with `celery.contrib.testing.worker.start_worker`, inside the tests' own process. In its
place comes a process of its own, as it runs in production, under the name that the tests look for. A few tests look
into the worker's memory, and are run apart from the others with a worker inside.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery.contrib.testing import worker
from celery.utils.nodenames import anon_nodename
from celery_suite.reasons import INSIDE, short
from celery_suite.variants import Variant
from support import Process, clean_environment

#: Seconds for one test, of which some try dozens of canvases; the suite's own limit is 300.
LONGEST = 200

embedded_worker = worker.start_worker
variant = Variant.parse(os.environ["SUITE_VARIANT"])
#: `inside`, or which share of the other tests: `2/4` is the second of four.
part = os.environ["SUITE_PART"]
outcomes = Path(os.environ["SUITE_OUTCOMES"])


@contextmanager
def start_worker(app: Any, pool: str = "", **options: Any) -> Iterator[Any]:
    """The worker of this run, for as long as the tests take."""
    if part == "inside":
        with embedded_worker(**variant.inside(app), **options) as started:
            yield started
        return
    process = Process(
        variant.command(anon_nodename()), Path.cwd(), Path(os.environ["SUITE_LOG"]),
        clean_environment(**variant.environment(), PYTHONPATH=os.environ["PYTHONPATH"]),
    )  # fmt: skip
    try:
        process.wait_for(variant.ready)
        yield process
        process.stop()
    finally:
        process.kill()


worker.start_worker = start_worker


@pytest.fixture(autouse=True)
def _serve(celery_session_worker: Any) -> None:
    """Have a worker for every test; some ask for none, since one runs already when they are run in their order."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of this part, and bound each in time."""
    inside = [item for item in items if short(item.nodeid) in INSIDE]
    outside = [item for item in items if item not in inside]
    if part == "inside":
        kept = inside
    else:
        share, shares = map(int, part.split("/"))
        kept = [item for at, item in enumerate(outside) if at * shares // len(outside) == share - 1]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for item in items:
        item.add_marker(pytest.mark.timeout(LONGEST), append=False)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note one step of a test, so that what a run got to is known even if it is ended."""
    said = ""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        said = crash.message if crash else report.longreprtext
    elif report.skipped and isinstance(report.longrepr, tuple):
        said = report.longrepr[2]
    with outcomes.open("a") as file:
        print(json.dumps([report.nodeid, report.when, report.outcome, said]), file=file)
