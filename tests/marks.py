"""Marks of tests, apart from what the demo shares with them: it runs where no pytest is."""

import os

import pytest

#: For what only our own transport promises.
core_transport = pytest.mark.skipif("TEST_TRANSPORT" in os.environ, reason="Celery's own transport does not promise it")
