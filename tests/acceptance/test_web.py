"""A FastAPI application over real HTTP: uvicorn, a worker, and the three endpoints of the page."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from marks import core_transport
from support import Process, Project, project, wait_until

#: The page's endpoints ask whether a call exists before a worker has it, which is known with our own transport alone.
pytestmark = core_transport

UVICORN = (sys.executable, "-X", "dev", "-W", "error", "-m", "uvicorn", "src.web:app", "--port", "0", "--ws", "none")


@pytest.fixture(scope="module")
def made() -> Iterator[Project]:
    """The example project with a worker."""
    with project() as made:
        made.worker("--pool", "asyncio", "--concurrency", "4")
        yield made


def serve(made: Project, *options: str, **environment: str) -> tuple[Process, str]:
    """Start the application and return its address."""
    server = made.start(*UVICORN, *options, PYTHONPATH=str(made.root), **environment)
    server.wait_for("Uvicorn running on ")
    found = re.search(r"running on (http://[\d.:]+)", server.text())
    assert found
    return server, found[1]


def events(http: httpx.Client, path: str) -> Iterator[tuple[str, Any]]:
    """Server-sent events as they come."""
    with http.stream("GET", path, timeout=20) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        for line in lines:
            if line.startswith("event: "):
                yield line.removeprefix("event: "), json.loads(next(lines).removeprefix("data: "))


def test_calls_are_queued_followed_and_asked_about_over_http(made: Project) -> None:
    server, address = serve(made)
    with httpx.Client(base_url=address) as http:
        queued = http.post("/imports", params={"rows": 5})
        call = queued.json()["id"]
        said = list(events(http, f"/imports/{call}/events"))
        status = http.get(f"/imports/{call}").json()
        again = list(events(http, f"/imports/{call}/events"))
        unknown = [http.get(f"/imports/nobody{path}").status_code for path in ("", "/events")]

    assert queued.status_code == 202
    assert said[-2:] == [("progress", {"percent": 100.0, "message": "order 5"}), ("end", {"status": "success"})]
    assert {name for name, _ in said[:-1]} == {"progress"}
    assert status == {"id": call, "status": "success"}
    assert again == [("end", {"status": "success"})]
    assert unknown == [404, 404]
    # Whatever is left open, pending or never awaited is told in this mode.
    assert server.stop() == -signal.SIGTERM  # as uvicorn ends, after everything is closed
    assert "Application shutdown complete" in server.text()
    assert [line for line in server.text().splitlines() if not re.match(r"INFO: ", line)] == []


def test_a_reader_who_goes_away_holds_up_nothing(made: Project) -> None:
    server, address = serve(made)
    with httpx.Client(base_url=address) as http:
        call = http.post("/imports", params={"rows": 20}).json()["id"]
        for name, _ in events(http, f"/imports/{call}/events"):
            assert name == "progress"
            break
        assert http.get(f"/imports/{call}").json()["status"] == "running"

    assert server.stop() == -signal.SIGTERM  # as uvicorn ends, after everything is closed
    assert [line for line in server.text().splitlines() if not re.match(r"INFO: ", line)] == []


def test_an_application_starts_without_its_broker_and_says_so(made: Project) -> None:
    server, address = serve(made, REDIS_URL="redis://127.0.0.1:1/0", TASK_PUBLISH_TIMEOUT="0.5")
    with httpx.Client(base_url=address) as http:
        refused = http.post("/imports", params={"rows": 1})

    assert refused.status_code == 500
    assert "No Redis answers at 127.0.0.1:1/0" in server.text()
    assert "The application starts without it." in server.text()
    assert server.stop() == -signal.SIGTERM  # as uvicorn ends, after everything is closed


def test_an_application_with_wrong_settings_does_not_start(made: Project) -> None:
    server = made.start(*UVICORN, PYTHONPATH=str(made.root), TASK_PUBLISH_TIMEOUT="soon")

    assert server.wait() == 3
    assert "task_publish_timeout" in server.text().lower()
    assert "Application startup failed" in server.text()


def test_an_application_is_loaded_anew_when_its_code_changes(made: Project) -> None:
    server, address = serve(made, "--reload")
    with httpx.Client(base_url=address) as http:
        wait_until(lambda: "startup complete" in server.text(), 20, "the application is up")
        assert http.post("/imports", params={"rows": 1}).status_code == 202
        source = made.root / "src" / "web.py"
        source.write_text(source.read_text().replace("status_code=202", "status_code=201"))
        wait_until(lambda: server.text().count("startup complete") == 2, 20, "the application is up again")
        assert http.post("/imports", params={"rows": 1}).status_code == 201
    server.kill()

    assert [line for line in server.text().splitlines() if "Error" in line or "unclosed" in line] == []
