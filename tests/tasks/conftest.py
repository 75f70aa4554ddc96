"""Each test of this directory has a process state of its own: no tasks, no settings, no Celery application."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core import config
from core.config import Settings
from core.tasks import celery_app


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    state, current = celery_app._process, config._current
    celery_app._process, config._current = type(state)(), type(current)()
    yield
    celery_app._process, config._current = state, current
