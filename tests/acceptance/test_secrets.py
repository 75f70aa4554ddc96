"""A password in REDIS_URL is nowhere to be seen: not in a command's output, a log, an error or the process list."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from urllib.parse import quote

import httpx
import pytest
from redis import Redis
from support import Process, Project, free_port, project, redis_server, wait_until

# Characters that have to be written in another way inside a URL, JSON or a repr.
PASSWORD = "s3cr3t/+@:#%é'\"x"
SPELLINGS = {PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), "s3cr3t", "s3cr3t".upper()}

COMMANDS: list[tuple[str, ...]] = [
    ("core", "config"),
    ("core", "config", "--json"),
    ("celery", "-A", "core", "report"),
    ("celery", "-A", "core", "inspect", "conf"),
    ("core", "scheduler", "status"),
    ("core", "scheduler", "status", "--json"),
    ("core", "scheduler", "list"),
]


class Guarded:
    """A project whose Redis asks for a password, with a worker and a scheduler that log all they can."""

    def __init__(self, project: Project, url: str) -> None:
        self.project = project
        self.url = url
        project.environment["REDIS_URL"] = url
        self.worker = project.start("core", "runworker", "--pool", "threads", "--loglevel", "debug")
        self.scheduler = project.start("core", "scheduler", "start", "--loglevel", "debug")
        self.worker.wait_for("sync_external_data[", timeout=30)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with redis_server() as (url, _), project() as made:
        with Redis.from_url(url) as client:
            client.config_set("requirepass", PASSWORD)
        yield Guarded(made, url.replace("//", f"//:{quote(PASSWORD, safe='')}@"))


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Project]:
    """A project that gets another URL with each command."""
    with project() as made:
        yield made


def assert_silent(text: str) -> None:
    """The password is in none of its spellings in *text*, and there is a text at all."""
    assert text.strip()
    for spelling in SPELLINGS:
        found = text.find(spelling)
        assert found < 0, text[max(0, found - 200) : found + 100]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_prints_the_password(guarded: Guarded, command: tuple[str, ...]) -> None:
    ended = guarded.project.run(*command)

    assert ended.returncode == 0, ended.stderr
    assert_silent(ended.stdout + ended.stderr)


def test_the_configuration_shows_that_there_is_one(guarded: Guarded) -> None:
    """Masked, not left out: whoever looks for a missing password sees whether one is set."""
    shown = guarded.project.run("core", "config").stdout

    assert [line for line in shown.splitlines() if line.startswith("broker_url") and "***" in line]


def test_worker_and_scheduler_log_no_password_even_at_debug(guarded: Guarded) -> None:
    assert_silent(guarded.worker.text())
    assert_silent(guarded.scheduler.text())


def test_the_process_list_shows_no_password(guarded: Guarded) -> None:
    listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout

    assert "runworker" in listed
    assert_silent(listed)


def test_a_celery_worker_with_its_banner_shows_no_password(guarded: Guarded) -> None:
    worker: Process = guarded.project.start("celery", "-A", "core", "worker", "-P", "threads", "-l", "debug")
    worker.wait_for("serving ")

    assert worker.stop() == 0
    assert ".> transport:" in worker.text()
    assert_silent(worker.text())


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace("@127", "x@127"),
        lambda url: url[:-1] + "99",
        lambda url: url[:-1] + "first",
        lambda url: url + "?nosuch=1",
        lambda url: url.replace("redis://", "mysql://"),
        lambda url: "redis://127.0.0.1:1/" + PASSWORD,
        lambda url: url.rpartition(":")[0] + ":1/0",
        lambda url: url.rpartition(":")[0] + ":port/0",
    ],
    ids=["password", "number", "database", "option", "scheme", "misplaced", "unreachable", "port"],
)
def test_no_error_repeats_the_password(guarded: Guarded, elsewhere: Project, change: Callable[[str], str]) -> None:
    """Neither the command's line nor the traceback of a `delay` that failed."""
    url = change(guarded.url)

    called = elsewhere.start(
        sys.executable, "-c", "import asyncio\nfrom src.apps.probe.tasks import add\nasyncio.run(add.delay(1))",
        REDIS_URL=url,
    )  # fmt: skip
    listed = elsewhere.run("core", "scheduler", "list", REDIS_URL=url)

    assert called.wait() == 1
    assert listed.returncode in (2, 69), listed.stderr
    assert_silent(listed.stderr)
    assert_silent(called.text())


def test_printed_settings_show_no_password(guarded: Guarded) -> None:
    shown = guarded.project.caller(
        "from core.config import get_settings\n"
        "from core import embedded\n"
        "print(get_settings(), repr(get_settings()), get_settings().model_dump())\n"
        "print(repr(embedded.broker_url()), embedded.broker_url())\n"
    )

    assert shown.returncode == 0, shown.stderr
    assert_silent(shown.stdout)


def test_a_connection_that_is_lost_and_comes_back_is_told_without_the_password(guarded: Guarded) -> None:
    with Redis.from_url(guarded.url) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    guarded.worker.wait_for("Connection to broker lost")
    called = guarded.project.caller(
        "import asyncio\nfrom src.apps.probe.tasks import add\nprint(asyncio.run(add.delay(1)).id)"
    )
    guarded.worker.wait_for(f"add[{called.stdout.strip()}]", timeout=30)

    assert_silent(guarded.worker.text())
    assert_silent(guarded.scheduler.text())


@pytest.mark.parametrize("command", [("core", "flower"), ("celery", "-A", "core", "flower")], ids=" ".join)
def test_flower_shows_no_password(guarded: Guarded, command: tuple[str, ...]) -> None:
    port = free_port()
    flower = guarded.project.start(
        *command, "--address=127.0.0.1", f"--port={port}", FLOWER_UNAUTHENTICATED_API="true"
    )  # fmt: skip

    def page(path: str) -> str:
        try:
            return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10).text
        except httpx.TransportError:
            return ""

    workers = wait_until(lambda: json.loads(page("/api/workers?refresh=1") or "{}"), 30, "Flower has found the worker")
    for path in ("/workers", "/tasks", "/broker", "/api/workers", "/api/queues/length", f"/worker/{min(workers)}"):
        assert_silent(page(path))
    assert_silent(flower.text())
