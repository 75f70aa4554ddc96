"""Processes of the project under test that make calls, steered from here over a pipe."""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from faults.rows import Finding
from support import Project, clean_environment


@dataclass(frozen=True)
class Answer:
    """What became of one call in its caller."""

    id: str
    error: str | None
    #: The call may be queued although it raised.
    maybe: bool
    #: How long the caller waited.
    seconds: float


class Caller:
    """One process that calls; see project/caller.py."""

    def __init__(self, kind: str, project: Project, environment: dict[str, str]) -> None:
        self._said: dict[int, dict[str, Any]] = {}
        self._news = threading.Condition()
        self._number = 0
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the caller
        self._process = subprocess.Popen(
            [sys.executable, "caller.py", kind], cwd=project.root,
            env=clean_environment(**{**project.environment, **environment}),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1,
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait(0, 30)

    def ask(self, **request: Any) -> Callable[[float], Answer]:
        """Have a call made; the function that is returned waits for what became of it."""
        with self._news:
            self._number += 1
            number = self._number
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"number": number, **request}) + "\n")
        return lambda within: self._wait(number, within)

    def errors(self) -> str:
        """What it printed beside its answers."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            with self._news:
                self._said[said["number"]] = said
                self._news.notify_all()

    def _wait(self, number: int, within: float) -> Answer:
        with self._news:
            if not self._news.wait_for(lambda: number in self._said, within):
                if self._process.poll() is not None:
                    raise AssertionError(f"the caller ended:\n{self.errors()}")
                raise Finding(f"delay() does not return within {within:g} s")
            said = self._said[number]
        return Answer(said.get("id", ""), said.get("error"), said.get("maybe", False), said.get("seconds", 0.0))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()
