"""Marks and fixtures of tests, apart from what the demo shares with them: it runs where no pytest is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import config
from core.config import Settings
from core.tasks import bridge, celery_app

#: For what only our own transport promises.
core_transport = pytest.mark.skipif("TEST_TRANSPORT" in os.environ, reason="Celery's own transport does not promise it")

#: For what does not come to the pool: callers, and calls that no body runs of.
one_pool = pytest.mark.parametrize("pool", ["asyncio"], indirect=True)


def _has_docker() -> bool:
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return False
    import docker

    try:
        return bool(docker.from_env(timeout=5).ping())
    except docker.errors.DockerException:
        return False


#: Whether a Docker daemon answers.
HAS_DOCKER = _has_docker()


@pytest.fixture(scope="session", params=("asyncio", "prefork"), name="pool")
def transport_pool(request: pytest.FixtureRequest) -> str:
    """For what a transport does, which differs where bodies run in its own process, and where they do not.

    A module that imports it has it in the place of the `pool` for all. `make test-faults` plays its faults on every
    pool.
    """
    return str(request.param)


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process state for each test of a directory whose conftest imports this: no tasks, settings or application."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    state, current = celery_app._process, config._current
    celery_app._process, config._current = type(state)(), type(current)()
    bridge.close()  # the loop of `delay_sync` lasts, and has a connection to another test's server
    yield
    bridge.close()
    celery_app._process, config._current = state, current
