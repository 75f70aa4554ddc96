"""Marks of tests, apart from what the demo shares with them: it runs where no pytest is."""

import os

import pytest

#: For what only our own transport promises.
core_transport = pytest.mark.skipif("TEST_TRANSPORT" in os.environ, reason="Celery's own transport does not promise it")


@pytest.fixture(scope="session", params=("asyncio", "prefork"), name="pool")
def transport_pool(request: pytest.FixtureRequest) -> str:
    """For what a transport does, which differs where bodies run in its own process, and where they do not.

    A module that imports it has it in the place of the `pool` for all. `make test-faults` plays its faults on every
    pool.
    """
    return str(request.param)
