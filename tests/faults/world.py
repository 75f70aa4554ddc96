"""Where a fault is played: a server, a project, workers that can be killed, and a record of what they ran.

The same functions serve both kinds, `ours` (core runworker) and `stock` (celery worker), so that the two columns of
the table come from one code. What goes otherwise than promised is raised as a Finding.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.callers import Answer, Caller
from faults.ledger import Ledger
from faults.rows import Finding
from faults.server import Server
from support import Process, Project, project, temporary_directory, wait_until

PROJECT = Path(__file__).parent / "project"
#: Seconds of a lease here; Celery's visibility timeout in the control. Calls are shorter, unless that is the point.
LEASE = 3
#: Seconds after which a lost call runs again at the latest: what is promised.
RECOVERY = LEASE + 10
#: Seconds for which a stopping worker lets calls finish.
GRACE = 25


@dataclass(frozen=True)
class Call:
    """A call that was accepted: its id, and the key under which its runs are recorded."""

    id: str
    key: str


class Worker:
    """One worker process with its children."""

    what = "worker"

    def __init__(self, process: Process) -> None:
        self.process = process
        #: Its end was asked for here.
        self.dismissed = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def ended(self) -> int | None:
        """Its exit code, None while it lives."""
        return self.process.popen.poll()

    def text(self) -> str:
        return self.process.text()

    def kill(self) -> None:
        """kill -9 of the process and its children."""
        self.dismissed = True
        self.process.kill()

    def kill_parent(self) -> None:
        """kill -9 of the main process alone."""
        self.dismissed = True
        self.process.signal(signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        self.dismissed = True
        self.process.signal(signal.SIGTERM)

    def wait(self, within: float) -> int:
        """Its exit code; a Finding when it does not end in time."""
        until(lambda: self.ended() is not None, within, f"does not stop within {within:g} s")
        code = self.ended()
        assert code is not None
        return code

    def children(self) -> list[int]:
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    def memory(self) -> float:
        """MiB that the main process has in memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class World:
    """A server, a project of one kind, its workers and its callers."""

    def __init__(self, kind: str, pool: str, project: Project, server: Server) -> None:
        self.kind, self.pool, self.project, self.server = kind, pool, project, server
        self.project.environment |= {
            "REDIS_URL": server.url,
            "TASK_LEASE": str(LEASE),
            "TASK_UNKNOWN_HOLD": "2",
            "TASK_SHUTDOWN_TIMEOUT": str(GRACE),
            "TASK_DEFAULT_RETRY_DELAY": str(LEASE),
            "TASK_WORKER_PROCESSES": "1",
            "FAULTS_EVENTS": str(project.root / "events"),
        }
        self.ledger = Ledger(server, project.root / "events")
        self.workers: list[Worker] = []
        self._callers: list[Caller] = []
        self._caller: Caller | None = None
        self._keys = Counter[str]()
        #: Times by which the next call may be late: what else runs on this machine.
        self.patience = 1.0
        #: Somebody starts workers again when they end.
        self.supervised = False

    @property
    def ours(self) -> bool:
        return self.kind == "ours"

    # Workers

    def worker(self, *, concurrency: int = 2, ready: bool = True, loglevel: str = "info", **environment: str) -> Worker:
        """Start a worker, and wait until it takes calls unless told not to."""
        if self.ours:
            command = ["core", "runworker", "--pool", self.pool, "--loglevel", loglevel,
                       "--concurrency", str(concurrency)]  # fmt: skip
        else:
            command = ["celery", "-A", "stock", "--quiet", "worker", "--pool", self.pool, "--loglevel", loglevel,
                       "--concurrency", str(concurrency), "--hostname", f"w{len(self.workers)}@%h"]  # fmt: skip
        worker = Worker(self.project.start(*command, **environment))
        self.workers.append(worker)
        if ready:
            worker.process.wait_for("serving " if self.ours else " ready.", timeout=40)
        return worker

    def alive(self) -> None:
        """A Finding when a worker has ended by itself, and nobody starts another one."""
        for worker in self.workers:
            code = worker.ended()
            if code is not None and not worker.dismissed and not self.supervised:
                raise Finding(f"{worker.what} {ending(code)}")

    def until(self, condition: Callable[[], Any], within: float, said: str) -> None:
        """Wait until *condition* is true; a Finding that says *said* when it is not in time."""

        def look() -> Any:
            value = condition()
            if not value:
                self.alive()
            return value

        until(look, within, said)

    def hold(self, seconds: float) -> None:
        """Let a fault last so long; every worker must outlive it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.alive()
            time.sleep(0.05)

    # Calls

    def caller(self, **environment: str) -> Caller:
        """A process of the project that makes calls."""
        made = Caller(self.kind, self.project, environment)
        self._callers.append(made)
        return made

    def key(self, task: str) -> str:
        self._keys[task] += 1
        return f"{task}-{self._keys[task]}"

    def begin(self, task: str, *args: Any, **options: Any) -> tuple[str, Callable[[float], Answer]]:
        """Have a call made; its key, and a function that waits for what became of it."""
        self._caller = self._caller or self.caller()
        key = self.key(task)
        return key, self._caller.ask(task=task, args=[key, *args], options=options)

    def attempt(self, task: str, *args: Any, within: float = 10, **options: Any) -> Answer:
        """Make a call that may fail."""
        return self.begin(task, *args, **options)[1](within)

    def call(self, task: str, *args: Any, within: float = 15, **options: Any) -> Call:
        """Make a call that must be accepted."""
        key, answer = self.begin(task, *args, **options)
        said = answer(within)
        if said.error is not None:
            raise Finding(f"a call is refused: {said.error[:80]}")
        return Call(said.id, key)

    def ask_to_cancel(self, call: Call) -> Callable[[float], Answer]:
        """Cancel a call that may be on its way; the function waits for what became of the wish."""
        assert self._caller is not None
        return self._caller.ask(cancel=call.id)

    def cancel(self, call: Call) -> None:
        """Cancel a call."""
        said = self.ask_to_cancel(call)(15)
        if said.error is not None:
            raise Finding(f"it cannot be cancelled: {said.error[:80]}")

    def fine(self, within: float = 5) -> float:
        """The next call runs: how many seconds it took."""
        began = time.monotonic()
        call = self.call("mark")
        self.until(lambda: self.ended(call), within * self.patience, f"the next call does not run within {within:g} s")
        return time.monotonic() - began

    # What they ran

    def runs_of(self, key: str) -> int:
        return len(self.ledger.begun(key))

    def runs(self, call: Call) -> int:
        return self.runs_of(call.key)

    def ended(self, call: Call) -> int:
        return self.ledger.ended(call.key)

    def await_run(self, call: Call, times: int = 1, within: float = 15) -> int:
        """Wait until a call has begun so many times; the pid of the process that runs it."""
        said = f"does not run {'again ' if times > 1 else ''}within {within:g} s"
        self.until(lambda: self.runs(call) >= times, within, said)
        return self.ledger.begun(call.key)[-1].pid

    def runner(self, call: Call) -> tuple[Worker, int]:
        """The worker that runs a call, and the process in which it does."""
        pid = self.await_run(call)
        (found,) = (worker for worker in self.workers if pid in (worker.pid, *worker.children()))
        return found, pid

    def settle(self, calls: Sequence[Call], within: float = RECOVERY + 5) -> None:
        """Every one of these calls has an outcome in time, and exactly one."""
        outcomes: dict[str, list[str]] = {}

        def done() -> bool:
            open_ = [call.id for call in calls if not outcomes.get(call.id)]
            outcomes.update(self.ledger.outcomes(open_))
            self.alive()
            return all(outcomes.values())

        try:
            wait_until(done, within, "every call has an outcome")
        except AssertionError:
            left = [call for call in calls if not outcomes[call.id]]
            lost = [call for call in left if not self.runs(call)]
            said = "lost" if lost else "without an outcome"
            raise Finding(_share(len(lost or left), len(calls), said)) from None
        double = [found for found in self.ledger.outcomes([call.id for call in calls]).values() if len(found) > 1]
        if double:
            raise Finding(_share(len(double), len(calls), "with two outcomes"))

    def dead_list(self) -> set[str]:
        """The ids on the dead list, as its own command shows them. Celery has no such list."""
        if not self.ours:
            return set()
        said = self.project.run("core", "dead", "list", "--json")
        return {entry["id"] for entry in json.loads(said.stdout) if entry["reason"]}

    def ran(self, calls: Sequence[Call], times: int = 1) -> None:
        """None of these calls ran more often than so many times."""
        more = [call for call in calls if self.runs(call) > times]
        if more and len(calls) == 1:
            raise Finding(f"ran {self.runs(more[0])} times")
        if more:
            raise Finding(f"{len(more)} of {len(calls)} ran more than {'once' if times == 1 else f'{times} times'}")

    def nothing_left(self, within: float = RECOVERY) -> None:
        """Redis keeps nothing of calls that are done."""

        def left() -> Counter[str]:
            return self.ledger.remaining()

        try:
            wait_until(lambda: not left(), within, "nothing is left")
        except AssertionError:
            raise Finding("left over in Redis: " + ", ".join(f"{n} {what}" for what, n in left().items())) from None

    def close(self) -> None:
        for caller in self._callers:
            caller.close()
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.kill()
        self.server.close()


def ending(code: int) -> str:
    """How a process ended, in words."""
    return f"exits {code}" if code >= 0 else f"dies by signal {-code}"


def until(condition: Callable[[], Any], within: float, said: str) -> None:
    """Wait until *condition* is true; a Finding that says *said* when it is not in time."""
    try:
        wait_until(condition, within, said)
    except AssertionError:
        raise Finding(said) from None


def _share(some: int, total: int, said: str) -> str:
    return said if total == 1 else f"{some} of {total} {said}"


@contextmanager
def world(kind: str, pool: str, *server_options: str, **environment: str) -> Iterator[World]:
    """A world of its own, gone at the end with all its processes."""
    with temporary_directory("core-fault-redis-") as directory, project(PROJECT) as made:
        server = Server(Path(directory), *server_options)
        server.start()
        made_world = World(kind, pool, made, server)
        made.environment |= environment
        try:
            yield made_world
        finally:
            made_world.close()
