"""A shop with a worker on every pool, Flower, and a browser, for the tests that only `make test-flower` collects."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from browser.shop import Shop, shop

if "TEST_FLOWER" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium without a window: the one that CHROMIUM names, or that is on PATH."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if found is None:
        pytest.skip("no Chromium is on PATH, and CHROMIUM names none")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-flower")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root needs it
        yield started
        started.close()


@pytest.fixture(scope="module", params=["core flower", "celery -A core flower"])
def served(request: pytest.FixtureRequest, browser: Any) -> Iterator[Shop]:
    """The shop, with either command; calls of every kind have been made."""
    with shop(browser, request.param.split()) as made:
        yield made
