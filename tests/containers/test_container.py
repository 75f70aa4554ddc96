"""Our worker in a container, as pytest-celery runs workers: what plain Celery sends there is done there."""

from typing import Any

import pytest
from marks import HAS_DOCKER

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not HAS_DOCKER, reason="no Docker daemon answers (DOCKER_HOST, /var/run/docker.sock)"),
    pytest.mark.timeout(900),  # the image is built from nothing
]


def test_it_runs_what_plain_celery_sends_is_well_and_stops(celery_setup: Any) -> None:
    worker = celery_setup.worker
    assert celery_setup.ready(docker=True)

    sent = celery_setup.app.send_task("src.apps.probe.tasks.add", (20, 3), queue=worker.worker_queue)

    assert sent.get(timeout=60) == 23
    worker.assert_log_exists(f"src.apps.probe.tasks.add[{sent.id}] success in ")
    code, said = worker.container.exec_run(["core", "health", "worker"])
    assert code == 0, said
    worker.kill("SIGTERM", reload_container=False)
    worker.assert_log_exists("stopping: nothing runs")
