"""The code blocks of Markdown pages, and a place to run them: a project with stubs, and a console inside it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from commands import HIDDEN
from support import EXAMPLE, Project, clean_environment, project

#: What the pages' tasks call, as modules of a project. Each leaves a line in the worker's output.
STUBS = (
    (EXAMPLE / "src/services.py").read_text()
    + '''

import logging

logger = logging.getLogger("page")


class TemporaryError(Exception):
    pass


class PermanentError(Exception):
    pass


async def process(data: dict) -> None:
    """Note each attempt in a file, and raise what is asked for."""
    with open(data["file"], "a") as marks:
        marks.write("attempt\\n")
    if open(data["file"]).read().count("attempt") <= data.get("fails", 0):
        raise {"temporary": TemporaryError, "permanent": PermanentError}[data["error"]]("from process")


class _Query:
    async def delete(self) -> None:
        print("deleted expired tokens", flush=True)


class _Manager:
    def filter(self, expired: bool) -> _Query:
        return _Query()


class Token:
    objects = _Manager()


class _Api:
    async def sync(self) -> None:
        print("synced external data", flush=True)


external_api = _Api()
'''
)

# Executes one block a line, all in one namespace and on one event loop, and answers with what it printed.
_CONSOLE = """
import ast, asyncio, contextlib, inspect, io, json, sys, traceback
space = {"__name__": "__console__"}
with asyncio.Runner() as runner:
    for line in sys.stdin:
        out, failed = io.StringIO(), None
        with contextlib.redirect_stdout(out):
            try:
                code = compile(json.loads(line), "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
                result = eval(code, space)
                if inspect.iscoroutine(result):
                    runner.run(result)
            except BaseException:
                failed = traceback.format_exc()
        print(json.dumps([out.getvalue(), failed]), flush=True)
"""


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    heading: str
    line: int
    #: The word after the fence, and what follows it.
    language: str
    extra: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that its first line names, if it does."""
        named = re.match(r"# ([\w./-]+)\n", self.text)
        return named[1] if named and ("/" in named[1] or "." in named[1]) else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    heading, start, info, lines = "", 0, "", list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```") and not start:
            start, info, lines = number, line[3:].strip(), []
        elif line.startswith("```"):
            language, _, extra = info.partition(" ")
            found.append(Block(page.name, heading, start, language, extra, "\n".join(lines) + "\n"))
            start = 0
        elif start:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert not start, f"{page.name}:{start}: the block has no end"
    return found


@contextmanager
def page_project() -> Iterator[Project]:
    """An empty project, but for settings and the stubs, where `core` and Python are those of this environment."""
    with project(copy=None) as made:
        made.write("src/settings.py", (EXAMPLE / "src/settings.py").read_text())
        made.write("src/services.py", STUBS)
        path = clean_environment()["PATH"]
        made.environment = {"PATH": f"{Path(sys.executable).parent}:{path}", "PYTHONPATH": f"{made.root}:{HIDDEN}"}
        yield made


class Console:
    """A Python in a project, that runs blocks one after the other as if they were typed there."""

    def __init__(self, made: Project) -> None:
        environment = clean_environment(**made.environment)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CONSOLE], cwd=made.root, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, code: str) -> str:
        """Run a block; `await` may stand at its top. Returns what it printed, fails if it raised."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the console ended while it ran:\n{code}"
        printed, failed = json.loads(answer)
        assert failed is None, f"{failed}\nin:\n{code}"
        return str(printed)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
