"""The worker of `worker_tasks` says why it is not there. What it does where it is, `test_plugin.py` looks at."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from core import embedded
from core.config import Settings, configure
from core.errors import ConfigurationError
from core.testing.worker import Worker, running


class Elsewhere(Settings):
    celery: dict[str, Any] = Field(default={"broker_url": "amqp://guest@rabbit.internal"})


def test_a_project_that_keeps_its_calls_elsewhere_is_told_so(tmp_path: Path) -> None:
    configure(Elsewhere)

    with pytest.raises(ConfigurationError, match="broker_url in the setting `celery` puts them elsewhere"):
        Worker(tmp_path, "unix:///nowhere/redis.sock")


def test_a_worker_that_does_not_start_says_why_and_leaves_no_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    configure(Settings)
    (tmp_path / "server").mkdir()

    with pytest.raises(ConfigurationError, match=r"ended \(exit 2\)"), running(tmp_path / "server"):
        pass

    assert "No tasks found" in capfd.readouterr().err
    assert embedded.find(tmp_path / "server") is None
