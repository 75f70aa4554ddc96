"""`core flower`: who reaches it, what it says of mistakes, and what its API and `celery -A core flower` answer.

What a browser shows is in tests/browser, `make test-flower`.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support import Process, Project, free_port, project, redis_server, wait_until

CALLS = """
import json
from src.apps.probe.tasks import add, nap, permanent
ids = {"done": add.delay_sync(1, b=2).id, "failed": permanent.delay_sync().id, "long": nap.delay_sync(60).id}
print(json.dumps(ids))
"""

#: Flower takes its time to start; what starts another one is left to the target.
of_target = pytest.mark.skipif("TEST_FLOWER" not in os.environ, reason="it is a part of make test-flower")


class Page:
    """A Flower that runs, on a port of its own."""

    def __init__(self, made: Project, *command: str, **environment: str) -> None:
        self.port = free_port()
        port = f"--port={self.port}"
        self.process: Process = made.start(*command, port, **environment)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)
        self.process.wait_for("Visit me at")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and return the exit code."""
        self.client.close()
        self.process.signal(number)
        return self.process.wait()

    def get(self, path: str) -> Any:
        """What it answers, as JSON."""
        return self.client.get(path).raise_for_status().json()

    def worker(self) -> str:
        """The name of the one worker, when it knows one."""
        return str(min(wait_until(lambda: self.get("/api/workers?refresh=1"), 20, "it knows the worker")))


@pytest.fixture(scope="module")
def home() -> Iterator[Project]:
    """The example project, without the workers of other tests."""
    with project() as made:
        yield made


@pytest.fixture(scope="module")
def served(home: Project) -> Iterator[Page]:
    """The ordinary case: `core flower` on the example project, with a worker, open to who is on this host."""
    worker = home.worker("--pool", "asyncio", "--concurrency", "4")
    page = Page(home, "core", "flower", FLOWER_UNAUTHENTICATED_API="true")
    assert page.worker() == f"worker-{worker.pid}@{page.worker().partition('@')[2]}"
    yield page
    assert page.stop() == 0
    assert "Traceback" not in page.process.text()
    worker.stop()


@pytest.fixture(scope="module")
def calls(home: Project, served: Page) -> dict[str, str]:
    """Ids of calls that were made right after Flower's start."""
    made: dict[str, str] = json.loads(home.python(CALLS).stdout)

    def states() -> dict[str, str]:
        tasks = served.get("/api/tasks")
        return {name: tasks.get(id, {}).get("state") for name, id in made.items()}

    expected = {"done": "SUCCESS", "failed": "FAILURE", "long": "STARTED"}
    wait_until(lambda: states() == expected, 10, "Flower has seen all of it")
    return made


def test_it_listens_on_this_host_alone_and_its_log_looks_like_ours(served: Page) -> None:
    assert f"INFO Visit me at http://127.0.0.1:{served.port}\n" in served.process.text()
    assert "Flower asks nobody" not in served.process.text()


def test_it_shows_calls_from_its_start_on(served: Page, calls: dict[str, str]) -> None:
    """Flower itself asks the workers for events after five seconds, and has missed these."""
    done, failed = (served.get(f"/api/task/info/{calls[name]}") for name in ("done", "failed"))

    assert (done["name"], done["args"], done["kwargs"]) == ("src.apps.probe.tasks.add", "[1]", "{'b': 2}")
    assert (done["result"], done["worker"], failed["exception"]) == ("3", served.worker(), "OwnError('permanent', 7)")
    assert done["received"] <= done["started"] <= done["succeeded"]


def test_it_shows_results(served: Page, calls: dict[str, str]) -> None:
    """It asks Celery's current application for them, which ours is in no other process."""
    assert served.get(f"/api/task/result/{calls['done']}")["result"] == 3
    failed = served.get(f"/api/task/result/{calls['failed']}")
    assert (failed["state"], failed["result"]) == ("FAILURE", "OwnError('permanent', 7)")
    assert failed["traceback"].splitlines()[-1].endswith("OwnError: ('permanent', 7)")
    assert served.get(f"/api/task/result/{calls['long']}") == {"task-id": calls["long"], "state": "STARTED"}


@of_target
def test_celery_flower_shows_them_too(home: Project, served: Page, calls: dict[str, str]) -> None:
    page = Page(
        home, "celery", "-A", "core", "flower", "--address=127.0.0.1", FLOWER_UNAUTHENTICATED_API="true"
    )  # fmt: skip

    assert page.get(f"/api/task/result/{calls['done']}")["result"] == 3
    assert page.stop() == 0


def test_it_queues_and_revokes_calls(served: Page, calls: dict[str, str]) -> None:
    queued = served.client.post("/api/task/apply/src.apps.probe.tasks.add", json={"args": [2], "timeout": 20}).json()
    served.client.post(f"/api/task/revoke/{calls['long']}?terminate=true").raise_for_status()

    assert (queued["state"], queued["result"]) == ("SUCCESS", 3)
    for what in ("info", "result"):  # the event comes first, the result with the acknowledgement
        address = f"/api/task/{what}/{calls['long']}"
        wait_until(lambda at=address: served.get(at)["state"] == "REVOKED", 10, f"its {what} says that it is revoked")


def test_it_tells_of_the_worker_the_queues_and_its_figures(served: Page, calls: dict[str, str]) -> None:
    name = served.worker()

    def asked() -> Any:
        found = served.get(f"/api/workers?workername={name}&refresh=1")[name]
        return found.keys() >= {"stats", "registered"} and found

    worker = wait_until(asked, 20, "the worker has answered")
    lengths = {queue["name"]: queue["messages"] for queue in served.get("/api/queues/length")["active_queues"]}

    assert worker["stats"]["pool"]["implementation"] == "core.tasks.pool:TaskPool"
    assert worker["stats"]["pool"]["max-concurrency"] == 4
    assert "src.apps.probe.tasks.add" in worker["registered"]
    assert lengths["default"] == 0
    assert f'type="task-failed",worker="{name}"' in served.client.get("/metrics").text


@of_target
def test_without_a_login_its_api_is_closed_and_with_one_it_is_open(home: Project) -> None:
    closed = Page(home, "core", "flower", "--address=127.0.0.1", TASK_REMOTE_CONTROL="off")
    assert " WARNING task_remote_control is off: workers answer nobody" in closed.process.text()
    answer = closed.client.get("/api/workers")
    assert (answer.status_code, "FLOWER_UNAUTHENTICATED_API" in answer.text) == (401, True)
    assert closed.client.get("/").status_code == 200
    assert closed.stop(signal.SIGINT) == 0

    own = Page(home, "core", "flower", "--address=0.0.0.0", FLOWER_BASIC_AUTH="ann:secret")
    assert own.client.get("/").status_code == own.client.get("/api/workers").status_code == 401
    assert own.client.get("/api/workers", auth=("ann", "secret")).status_code == 200
    assert "Flower asks nobody" not in own.process.text()
    assert "secret" not in own.process.text()
    assert own.stop() == 0


@of_target
def test_one_that_every_host_reaches_without_a_login_says_so_and_starts_without_a_broker(home: Project) -> None:
    page = Page(home, "core", "flower", CORE_FLOWER_ADDRESS="0.0.0.0", REDIS_URL="redis://127.0.0.1:1/0")

    lines = [line for line in page.process.text().splitlines() if " WARNING " in line]
    assert "Flower asks nobody for a password, and listens on 0.0.0.0: who reaches it" in lines[0]
    assert "Flower starts without it, and joins by itself." in lines[1]
    assert page.client.get("/healthcheck").text == "OK"
    page.client.close()
    page.process.kill()


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (("--", "--persistant"), {}, "Flower has no option --persistant. Did you mean --persistent?"),
        (("--", "--basic_auth", "ann:secret"), {}, "Flower takes its options as --name=value"),
        ((), {"FLOWER_PORT": "many"}, "Flower does not take its options: invalid literal for int()"),
        (("--", "--certfile=none", "--keyfile=none"), {}, "none\" does not exist"),
        (("--address=192.0.2.1",), {}, "Flower cannot listen on 192.0.2.1:5555: Cannot assign requested address."),
    ],
    ids=["misspelt", "apart", "not a number", "no such file", "address"],
)  # fmt: skip
def test_a_mistake_is_one_line(home: Project, words: tuple[str, ...], environment: dict[str, str], said: str) -> None:
    ended = home.run("core", "flower", *words, **environment)

    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr


@of_target
def test_a_port_that_is_taken_and_a_password_that_is_refused(home: Project, served: Page) -> None:
    taken = home.run("core", "flower", f"--port={served.port}")
    assert taken.returncode == 2
    assert "another process has the port. Give another --port." in taken.stderr

    with redis_server("--requirepass", "right") as (url, _):
        refused = home.run("core", "flower", REDIS_URL=url.replace("//", "//:wrong@"))
    assert refused.returncode == 2, refused.stderr
    assert "wrong" not in refused.stderr.replace("wrong password", "").replace("wrong user", "")


def test_without_flower_the_extra_is_named(home: Project) -> None:
    ended = home.run(
        sys.executable, "-c",
        "import sys; sys.modules['flower'] = None; sys.argv[0] = 'core'\nfrom core.cli import main; main()", "flower",
    )  # fmt: skip

    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "Error: core flower needs Flower: pip install 'core-tasks[flower]'."
