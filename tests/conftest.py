"""Fixtures for all tests: one example project for the calls of this process, and workers for it on every pool."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from support import Process, Project, project, sweep

POOLS = ("asyncio", "prefork", "threads")
#: The files that take longest: a test process that gets one of them last works on alone.
LONGEST = (
    "test_control.py", "test_docs.py", "test_leases.py", "test_plugin.py", "test_scheduler.py", "test_sentinel.py",
    "test_subset.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """End like Ctrl-C when asked to stop, and keep everything of this run in one directory."""
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell's background job ignores SIGINT, and so would its children
        signal.signal(number, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        os.environ["TEST_RUN"] = tempfile.mkdtemp(prefix="core-tests-")
        config.add_cleanup(commands.serve(Path(os.environ["TEST_RUN"])).wait)  # the sweep ends it


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind, even of tests that were killed before they could clean up."""
    if not hasattr(config, "workerinput"):
        sweep(Path(os.environ.pop("TEST_RUN")))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def example() -> Iterator[Project]:
    """The example project; the tests' own process is inside it, so `from src.apps… import …` works."""
    with project() as made:
        before = os.getcwd()
        for name in [n for n in os.environ if n.startswith(("TASK_", "CORE_")) or n in ("REDIS_URL", "ENVIRONMENT")]:
            del os.environ[name]
        os.chdir(made.root)
        sys.path.append(str(made.root))
        yield made
        os.chdir(before)


@pytest.fixture(scope="session", params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    """Every pool that the product offers, one after the other."""
    return str(request.param)


@pytest.fixture(scope="session")
def worker(example: Project, pool: str) -> Iterator[Process]:
    """A worker for the example project on this pool, four calls at once."""
    process = example.worker("--pool", pool, "--concurrency", "4")
    yield process
    process.stop()


@pytest.fixture
def empty() -> Iterator[Project]:
    """A directory with nothing in it."""
    with project(copy=None) as made:
        yield made


@pytest.fixture
def fresh() -> Iterator[Project]:
    """A copy of the example project that no other test uses."""
    with project() as made:
        yield made
