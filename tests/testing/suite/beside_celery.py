"""Celery's own fixtures, beside ours."""

from typing import Any

import pytest

from src.apps.probe.tasks import add


@pytest.fixture(scope="session")
def celery_config() -> dict[str, Any]:
    return {
        "broker_url": "memory://",
        "result_backend": "cache+memory://",
        "broker_transport_options": {"polling_interval": 0.01},
    }


@pytest.fixture(scope="session")
def celery_worker_parameters() -> dict[str, Any]:
    return {"perform_ping_check": False, "shutdown_timeout": 20}


@pytest.fixture(scope="session")
def double(celery_session_app: Any, celery_session_worker: Any) -> Any:
    @celery_session_app.task
    def double(number: int) -> int:
        return number * 2

    celery_session_worker.reload()
    return double


@pytest.mark.parametrize("mode", ["inline_tasks", "captured_tasks"])
def test_a_worker_of_celerys(mode: str, double: Any, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(mode)

    assert double.delay(2).get(timeout=30, interval=0.01) == 4
    assert add.delay_sync(1, 2).id


def test_the_current_application_is_celerys(celery_app: Any, inline_tasks: Any) -> None:
    from celery import current_app

    assert add.delay_sync(1, 2).get_sync() == 3
    assert current_app.main == celery_app.main == "celery.tests"
