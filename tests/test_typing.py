"""The types, under mypy --strict and pyright: `accepted.py` passes, the marked lines of `refused.py` do not."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ACCEPTED = Path("tests/typing/accepted.py")
REFUSED = Path("tests/typing/refused.py")


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(*files: Path) -> dict[tuple[str, int], str]:
    """The errors that mypy reports, by file and line."""
    found = re.finditer(r"^(.+?):(\d+): error: (.*)$", run("mypy", "--strict", *map(str, files)), re.MULTILINE)
    return {(Path(match[1]).name, int(match[2])): match[3] for match in found}


def pyright(*files: Path) -> dict[tuple[str, int], str]:
    """The errors that pyright reports, by file and line."""
    report = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, files)))
    assert report["summary"]["filesAnalyzed"] == len(files)
    return {
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1): found["message"]
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    }


Checker = Callable[..., dict[tuple[str, int], str]]


@pytest.fixture(scope="module", params=[mypy, pyright], ids=["mypy", "pyright"])
def errors(request: pytest.FixtureRequest) -> dict[tuple[str, int], str]:
    """What one of the two checkers says of both files."""
    checker: Checker = request.param
    return checker(ACCEPTED, REFUSED)


def test_the_public_api_has_the_types_that_it_promises(errors: dict[tuple[str, int], str]) -> None:
    assert {place: said for place, said in errors.items() if place[0] == ACCEPTED.name} == {}


def test_each_mistake_in_a_call_or_a_declaration_is_an_error(errors: dict[tuple[str, int], str]) -> None:
    """Exactly the lines that are marked `# E1`, `# E2`… are refused: no mistake passes, nothing else is in the way."""
    lines = (ROOT / REFUSED).read_text().splitlines()
    marked = {number: line.strip() for number, line in enumerate(lines, 1) if re.search(r"# E\d+$", line)}
    refused = {line for name, line in errors if name == REFUSED.name}

    assert len(marked) == 24
    assert {number: line for number, line in marked.items() if number not in refused} == {}
    assert refused - set(marked) == set()
