"""pytest-celery's fixtures, with `core runworker` in the place of the worker that it brings."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import celery
import pytest
from pytest_celery import *  # noqa: F403
from pytest_celery import (
    DEFAULT_WORKER_CONTAINER_TIMEOUT,
    DEFAULT_WORKER_VOLUME,
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryWorkerContainer,
    RedisTestBackend,
    RedisTestBroker,
)
from pytest_docker_tools import build, container, fxtr
from support import EXAMPLE

HERE = Path(__file__).parent


class CoreWorkerContainer(CeleryWorkerContainer):
    """A container with the example project, whose command is ours."""

    @classmethod
    def command(cls, *args: str, **_: object) -> list[str]:
        return ["core", "runworker", *args]

    @property
    def ready_prompt(self) -> str:
        return "serving "

    @classmethod
    def version(cls) -> str:
        return str(celery.__version__)

    @classmethod
    def worker_queue(cls) -> str:
        return "default"

    @classmethod
    def initial_env(
        cls, celery_worker_cluster_config: dict[str, Any], initial: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        (broker,) = celery_worker_cluster_config["celery_broker_cluster_config"]["urls"]
        (results,) = celery_worker_cluster_config["celery_backend_cluster_config"]["urls"]
        return {**(initial or {}), "TASK_BROKER_URL": broker, "TASK_RESULT_BACKEND_URL": results}

    @classmethod
    def initial_content(cls, **_: object) -> dict[str, Any]:
        files = (file for file in EXAMPLE.rglob("*.py") if "__pycache__" not in file.parts)
        return {str(file.relative_to(EXAMPLE)): file.read_bytes() for file in files}


@pytest.fixture(scope="session")
def core_worker_context(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the image is built from: this checkout as a wheel, and the Dockerfile beside this file."""
    place = tmp_path_factory.mktemp("image")
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(place), str(HERE.parent.parent)], check=True)
    (place / "Dockerfile").write_text((HERE / "Dockerfile").read_text())
    return str(place)


core_worker_image = build(path="{core_worker_context}", tag="core-tasks/worker:tests")

default_worker_container = container(
    image="{core_worker_image.id}",
    environment=fxtr("default_worker_env"),
    network="{default_pytest_celery_network.name}",
    volumes={"{default_worker_volume.name}": DEFAULT_WORKER_VOLUME},
    wrapper_class=CoreWorkerContainer,
    timeout=DEFAULT_WORKER_CONTAINER_TIMEOUT,
    command=fxtr("default_worker_command"),
)


@pytest.fixture
def default_worker_container_cls() -> type[CeleryWorkerContainer]:
    return CoreWorkerContainer


@pytest.fixture(scope="session")
def default_worker_container_session_cls() -> type[CeleryWorkerContainer]:
    return CoreWorkerContainer


@pytest.fixture
def celery_broker_cluster(celery_redis_broker: RedisTestBroker) -> CeleryBrokerCluster:
    """One Redis, where pytest-celery would run each test with every broker that it knows."""
    return CeleryBrokerCluster(celery_redis_broker)


@pytest.fixture
def celery_backend_cluster(celery_redis_backend: RedisTestBackend) -> CeleryBackendCluster:
    return CeleryBackendCluster(celery_redis_backend)
