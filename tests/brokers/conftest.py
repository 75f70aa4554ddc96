"""Fixtures for the tests with other brokers, which only `make test-rabbitmq` collects."""

import os
import shutil
from collections.abc import Iterator

import pytest
from brokers.rabbitmq import RabbitMQ, server
from support import Project

if "TEST_RABBITMQ" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A broker with the virtual host `shop` and a user of that name."""
    if shutil.which("rabbitmq-server") is None:
        pytest.skip("rabbitmq-server is not installed")
    with server() as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def on_rabbitmq(rabbitmq: RabbitMQ, example: Project) -> None:
    """The tests' own process and the example's workers use it. Results are on the development server."""
    os.environ["TASK_BROKER_URL"] = example.environment["TASK_BROKER_URL"] = rabbitmq.url
