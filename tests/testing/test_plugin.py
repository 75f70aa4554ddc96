"""The plugin in suites of users: each is run by a pytest of its own, in a copy of the example project."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support import Project, project, wait_until

from core import embedded

SUITE = Path(__file__).parent / "suite"
ALONE = ("misused", "one_for_all", "killed")


class Suite:
    """The outcomes of a suite."""

    def __init__(self, made: Project, files: list[str], *options: str, **environment: str) -> None:
        for name in files:
            made.write(f"tests/{name}.py", (SUITE / f"{name}.py").read_text())
        command = (
            sys.executable, "-m", "pytest", "-p", "no:celery", "-p", "celery.contrib.pytest", "-W", "error", "-rA",
            "-o", "python_files=*.py", "-o", "asyncio_default_fixture_loop_scope=function", "--junitxml=report.xml",
            "-p", "no:cacheprovider", *options, *(f"tests/{name}.py" for name in files),
        )  # fmt: skip
        done = made.run(*command, timeout=110, **environment)
        self.said = done.stdout + done.stderr
        self.failed: dict[str, str] = {}
        self.passed: set[str] = set()
        self.skipped: dict[str, str] = {}
        for case in ElementTree.parse(made.root / "report.xml").iter("testcase"):
            name = f"{case.get('classname', '').removeprefix('tests.')}.{case.get('name')}"
            problems = [child for child in case if child.tag in ("failure", "error", "skipped")]
            if not problems:
                self.passed.add(name)
            for problem in problems:
                kind = self.skipped if problem.tag == "skipped" else self.failed
                kind[name] = f"{problem.get('message')}\n{problem.text}"


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    """All that is to pass, in one run."""
    with project() as made:
        yield Suite(made, [file.stem for file in sorted(SUITE.glob("*.py")) if file.stem not in ALONE])
        assert embedded.find(made.root) is None, "a development server was started"


def test_a_suite_passes_whoever_runs_its_coroutines(suite: Suite) -> None:
    assert suite.failed == {}, suite.said
    assert suite.skipped == {}
    counts = {name: sum(case.startswith(name) for case in suite.passed) for name in ("with_", "without_", "beside_")}
    assert counts == {"with_": 13 + 6 + 3, "without_": 7, "beside_": 3}


@pytest.mark.parametrize("kind", ["with_asyncio", "with_anyio", "with_unittest", "without_a_loop", "beside_celery"])
def test_each_kind_of_test_has_passed(suite: Suite, kind: str) -> None:
    assert [name for name in suite.passed if name.startswith(kind)], suite.said


def test_a_suite_with_one_mode_for_all_and_one_of_mistakes() -> None:
    with project() as made:
        one = Suite(made, ["misused", "one_for_all"], "-o", "core_tasks=captured", PATH="/nowhere")

    two_modes, not_queued = one.failed.pop("misused.test_two_modes"), one.failed.pop("misused.test_not_queued")
    assert one.failed == {}, one.said
    assert "inline_tasks and captured_tasks cannot both run the calls of one test" in two_modes
    assert "add(1, 3) was not queued. What was queued:\n  1. src.apps.probe.tasks.add(1, 2)" in not_queued
    assert "core/testing/outbox.py" not in not_queued
    assert len(one.passed) == 3
    assert (
        "worker_tasks needs a server: No broker is configured, and there is no valkey-server"
        in one.skipped.popitem()[1]
    )


def test_an_option_that_names_no_mode_is_a_mistake() -> None:
    with project() as made:
        done = made.run(sys.executable, "-m", "pytest", "-p", "no:celery", "-o", "core_tasks=eager")

    assert done.returncode == 4
    assert re.search(r"core_tasks = 'eager' is none of inline, captured, worker", done.stderr)


def test_worker_and_server_end_with_the_tests_however_these_end() -> None:
    with project() as made:
        made.write("tests/killed.py", (SUITE / "killed.py").read_text())
        options = ("-s", "-p", "no:celery", "-p", "no:cacheprovider", "--basetemp", str(made.root / "tmp"))
        tests = made.start(sys.executable, "-m", "pytest", *options, "tests/killed.py")
        tests.wait_for("a worker runs", 60)
        server = made.root / "tmp/core0"
        assert embedded.find(server)

        tests.signal(signal.SIGKILL)

        wait_until(lambda: embedded.find(server) is None, 30, "the server ended")
        wait_until(lambda: not at_work_in(made.root), 30, "the worker ended")


def at_work_in(directory: Path) -> list[Path]:
    """The processes whose directory this is, or is in this one, apart from those that are only to be collected."""
    found: list[Path] = []
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if cwd.readlink().is_relative_to(directory) and cwd.parent.name != str(os.getpid()):
                found.append(cwd.parent)
    return found
