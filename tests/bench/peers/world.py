"""One peer at work: a server of its own, its workers and clients, and what the machine did meanwhile."""

import json
import mmap
import os
import selectors
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.drains import Crew, of_sessions, processor
from bench.peers.rows import PEERS, Row
from redis import Redis
from support import Process, clean_environment, redis_server, temporary_directory

TESTS = Path(__file__).parents[2]
ROOT = TESTS.parent
VENV = Path(sys.prefix)
#: Marks for this many calls in one world.
MOST = 1_000_000
SETTINGS = "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n"


class Unavailable(Exception):
    """A peer that cannot be measured, and why."""


def environment(name: str, upgrade: bool = False) -> Path:
    """The directory of a peer's programs; they are installed where they are not yet.

    Raises:
        Unavailable: pip does not install it.
    """
    requires = PEERS[name].requires
    place = VENV / "peers" / name
    programs, stamp = place / "bin", place / "installed"
    there = stamp.exists() and stamp.read_text() == " ".join(requires)
    if upgrade or not there:
        print(f"installing {name}", flush=True)
        pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--upgrade"]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, capture_output=True, timeout=120)
            subprocess.run([*pip, *requires], check=True, capture_output=True, text=True, timeout=300)
        except subprocess.SubprocessError as error:
            if there:
                print(f"{name} stays at the version that is there: pip failed", flush=True)
                return programs
            lines = str(getattr(error, "stderr", "")).splitlines()
            last = [line for line in lines if line.startswith("ERROR")][-1:]
            raise Unavailable(f"it cannot be installed: {' '.join(last) or type(error).__name__}") from None
        stamp.write_text(" ".join(requires))
    return programs


class Client:
    """A process that calls the peer's tasks."""

    def __init__(self, world: "World", database: int, variant: str) -> None:
        self._output = world.place / "client"
        with open(self._output, "ab") as sink:
            self._process = subprocess.Popen(
                [str(world.programs / "python"), "-m", "bench.peers.client", world.row.peer],
                cwd=world.place, env=world.variables(variant, database), stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=sink, text=True, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid
        self._said = selectors.DefaultSelector()
        assert self._process.stdout
        self._said.register(self._process.stdout, selectors.EVENT_READ)
        try:
            self.has_many = bool(self._answer(30)["many"])
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, timeout: float = 60, **what: Any) -> dict[str, Any]:
        """Have something done, and return what it took.

        Raises:
            Unavailable: It failed, or is not done in time.
        """
        assert self._process.stdin
        print(json.dumps({"do": do, **what}), file=self._process.stdin, flush=True)
        answer = self._answer(timeout)
        if "error" in answer:
            raise Unavailable(f"{do}: {answer['error']}")
        return answer

    def _answer(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout
        if not self._said.select(timeout):
            raise Unavailable(f"the client said nothing within {timeout:g} s")
        line = self._process.stdout.readline()
        if not line:
            said = self._output.read_text(errors="replace").strip().splitlines()[-1:]
            raise Unavailable(f"the client ended: {' '.join(said)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class World:
    """A row's server, workers and clients, from nothing."""

    def __init__(self, row: Row, place: Path, url: str, server: int) -> None:
        self.row, self.place, self.server = row, place, server
        self.programs = environment(row.peer)
        self.port = int(url.rpartition(":")[2].partition("/")[0])
        self.client: Any = Redis(port=self.port)
        self.crew: Crew | None = None
        #: The number of the next call.
        self.next = 0
        #: Calls that need not have run: they were left over.
        self.left: set[int] = set()
        self._profile = ("", "")
        self._clients: list[Client] = []
        self._publisher: Client | None = None
        marks = place / "marks"
        marks.write_bytes(bytes(MOST))
        with open(marks, "r+b") as file:
            self.marks = mmap.mmap(file.fileno(), 0)
        (place / "src").mkdir()
        (place / "src" / "settings.py").write_text(SETTINGS)

    def variables(self, variant: str, database: int = 0) -> dict[str, str]:
        """The environment of a worker or client."""
        url = f"redis://127.0.0.1:{self.port}/{database}"
        return clean_environment(
            BENCH_URL=url, BENCH_MARKS=str(self.place / "marks"), BENCH_VARIANT=variant, PYTHONPATH=str(TESTS),
            REDIS_URL=url, TASK_MODULES="bench.peers.adapters.ours", dramatiq_worker_timeout="10",
            PATH=f"{self.programs}:{os.environ['PATH']}",
        )  # fmt: skip

    def numbers(self, calls: int) -> int:
        """The first of so many numbers that no call has had yet."""
        first, self.next = self.next, self.next + calls
        return first

    @contextmanager
    def caller(self, database: int = 0, variant: str | None = None) -> Iterator[Client]:
        """A client, which is gone at the end."""
        made = Client(self, database, self.row.variant if variant is None else variant)
        self._clients.append(made)
        try:
            yield made
        finally:
            self._clients.remove(made)
            made.close()

    def publisher(self) -> Client:
        """The client that queues what the workers run; it waits for no result, which could keep it busy later."""
        if self._publisher is None:
            self._publisher = Client(self, 0, self.row.variant)
            self._clients.append(self._publisher)
        return self._publisher

    def serve(self, command: str = "", variant: str = "") -> Crew:
        """Have workers that run with this, and no others."""
        profile = (command or self.row.worker, variant if command else self.row.variant)
        if self.crew is None or profile != self._profile:
            self.rest()
            self._profile = profile
            started = []
            for number, part in enumerate(profile[0].format(url=f"redis://127.0.0.1:{self.port}/0").split(" + ")):
                program, *options = shlex.split(part)
                started.append(
                    Process(
                        [str(self.programs / program), *options], self.place, self.place / f"worker-{number}",
                        self.variables(profile[1]),
                    )
                )  # fmt: skip
            self.crew = Crew(self.client, "", *started)
        return self.crew

    def rest(self) -> None:
        """Have no workers."""
        if self.crew is not None:
            self.crew.go_on()
            self.crew.kill()
            self.crew = None

    def until_marked(self, first: int, calls: int, timeout: float, pause: float = 0.002) -> int:
        """Wait until all these calls have run, or the time is over; how many have."""
        end = time.monotonic() + timeout
        while (left := self.marks[first : first + calls].count(0)) and time.monotonic() < end:
            ended = [worker.popen.poll() for worker in self.crew.workers] if self.crew else []
            if any(code is not None for code in ended):
                raise Unavailable(f"a worker ended, exit codes {ended}: {self.said()}")
            time.sleep(pause)
        return calls - left

    def said(self) -> str:
        """The last line that each worker has printed."""
        texts = [worker.text().strip() for worker in self.crew.workers] if self.crew else []
        return " ".join(text.splitlines()[-1] for text in texts if text)

    def runs(self) -> tuple[int, int]:
        """How many calls have not run, and how many more than once."""
        marks = self.marks[: self.next]
        lost = sum(1 for number, mark in enumerate(marks) if not mark and number not in self.left)
        return lost, sum(1 for mark in marks if mark > 1)

    def busy(self) -> float:
        """Processor seconds of everything that belongs to this run."""
        workers = self.crew.workers if self.crew else ()
        leaders = [*(client.pid for client in self._clients), *(worker.pid for worker in workers)]
        return processor({self.server, os.getpid(), *of_sessions(leaders)})

    def close(self) -> None:
        for client in list(self._clients):
            client.close()
        self.rest()
        self.client.close()


@contextmanager
def world(row: Row) -> Iterator[World]:
    """A world for one round of a row, gone at the end with everything that it started."""
    with temporary_directory("core-peers-") as directory, redis_server() as (url, server):
        made = World(row, Path(directory), url, server.pid)
        try:
            yield made
        finally:
            made.close()
