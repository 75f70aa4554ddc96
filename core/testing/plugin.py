"""The plugin for pytest: fixtures that say who runs the calls of a test, and an option for all tests at once.

pytest loads it in every suite, so it imports what it needs when a test asks for it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from core.testing.outbox import Outbox
    from core.testing.worker import Worker

FIXTURES = {"inline": "inline_tasks", "captured": "captured_tasks", "worker": "worker_tasks"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addini(
        "core_tasks", "who runs the calls of tests that do not say so: inline, captured or worker", default=""
    )


def pytest_configure(config: pytest.Config) -> None:
    """Switch on what the option says."""
    mode = str(config.getini("core_tasks"))
    if mode and mode not in FIXTURES:
        raise pytest.UsageError(f"core_tasks = {mode!r} is none of {', '.join(FIXTURES)}.")
    if mode:
        config.pluginmanager.register(_ForAll(FIXTURES[mode]), "core_tasks")


class _ForAll:
    """Gives a fixture to every test that has none of ours."""

    def __init__(self, fixture: str) -> None:
        self._fixture = fixture

    @pytest.fixture(autouse=True)
    def _core_tasks(self, request: pytest.FixtureRequest) -> None:
        if not _asked_for(request):
            request.getfixturevalue(self._fixture)


def _asked_for(request: pytest.FixtureRequest) -> list[str]:
    return [name for name in FIXTURES.values() if name in request.fixturenames]


def _alone(request: pytest.FixtureRequest) -> None:
    if len(asked := _asked_for(request)) > 1:
        pytest.fail(f"{' and '.join(asked)} cannot both run the calls of one test. Ask for one of them.", pytrace=False)


@pytest.fixture
def inline_tasks(request: pytest.FixtureRequest) -> Iterator["Outbox"]:
    """Calls run in this process before `delay` returns, retries at once; no broker and no worker."""
    _alone(request)
    from core.testing.memory import in_memory

    with in_memory("inline_tasks", runs=True) as outbox:
        yield outbox


@pytest.fixture
def captured_tasks(request: pytest.FixtureRequest) -> Iterator["Outbox"]:
    """Calls are kept, to be looked at, and run by `await captured_tasks.run_all()` only; no broker and no worker."""
    _alone(request)
    from core.testing.memory import in_memory

    with in_memory("captured_tasks", runs=False) as outbox:
        yield outbox


@pytest.fixture
def worker_tasks(request: pytest.FixtureRequest, _core_worker: "Worker") -> Iterator[None]:
    """Calls go to a real worker on a server of its own, which runs until the end of the session."""
    _alone(request)
    with _core_worker.used():
        yield


@pytest.fixture(scope="session")
def _core_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from core import embedded
    from core.errors import EmbeddedServerError
    from core.testing.worker import running

    try:
        embedded.server_binary()
    except EmbeddedServerError as error:
        pytest.skip(f"worker_tasks needs a server: {error}")
    with running(tmp_path_factory.mktemp("core")) as worker:
        yield worker
