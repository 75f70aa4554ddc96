"""What the tests share: projects in directories of their own, real `core` processes, and waiting for a condition."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import commands
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

EXAMPLE = Path(__file__).parent / "example"
CORE = str(Path(sys.executable).parent / "core")
CELERY = str(Path(sys.executable).parent / "celery")


def wait_until(condition: Callable[[], Any], timeout: float, what: str) -> Any:
    """Wait until *condition* is true and return what it returned; fail with *what* after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.02)
    return value


async def eventually(condition: Callable[[], Any], timeout: float, what: str) -> Any:
    """`wait_until` for a coroutine function, on a running loop."""
    deadline = time.monotonic() + timeout
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.02)
    return value


def temporary_directory(prefix: str) -> "tempfile.TemporaryDirectory[str]":
    """A directory that is gone at the end: inside the run's own, where a run of tests has made one."""
    return tempfile.TemporaryDirectory(prefix=prefix, dir=os.environ.get("TEST_RUN"), ignore_cleanup_errors=True)


def sweep(directory: Path) -> None:
    """Kill whatever still works inside a directory, and remove it: what a test that was killed left behind."""
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if cwd.readlink().is_relative_to(directory) and int(cwd.parent.name) != os.getpid():
                os.kill(int(cwd.parent.name), signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what could configure a project by accident."""
    names = ("REDIS_URL", "ENVIRONMENT", "CELERY", "XDG_RUNTIME_DIR", "PYTHONPATH")
    kept = {k: v for k, v in os.environ.items() if k not in names and not k.startswith(("TASK_", "CORE_"))}
    # `make test-stock` runs the same tests over Celery's own transport.
    transport = {"TASK_BROKER_TRANSPORT": os.environ["TEST_TRANSPORT"]} if "TEST_TRANSPORT" in os.environ else {}
    return {**kept, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **transport, **extra}


class Process:
    """A running command with its output in a file."""

    def __init__(self, command: list[str], cwd: Path, output: Path, environment: dict[str, str]) -> None:
        self.output = output
        with open(output, "wb") as sink:
            self.popen = subprocess.Popen(
                command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.popen.pid

    def text(self) -> str:
        """Everything it has printed so far, on both streams."""
        return self.output.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = 20) -> None:
        """Wait until it has printed *text*."""

        def printed() -> bool:
            found = text in self.text()
            if not found and self.popen.poll() is not None:
                raise AssertionError(f"it ended ({self.popen.returncode}) before it printed {text!r}:\n{self.text()}")
            return found

        try:
            wait_until(printed, timeout, f"printed {text!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()}") from None

    def signal(self, number: int) -> None:
        """Send a signal to the process itself, not to its children."""
        self.popen.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """Wait for its end and return the exit code."""
        return self.popen.wait(timeout)

    def stop(self, timeout: float = 30) -> int:
        """Ask it to stop and return the exit code; kill the whole group when it does not."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it did not stop within {timeout:g} s:\n{self.text()}") from None

    def kill(self) -> None:
        """Kill it and everything that it started in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


class Project:
    """A copy of the example project, or an empty one, in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {"PYTHONPATH": commands.HIDDEN} if "TEST_COMMANDS" in os.environ else {}
        self._processes: list[Process] = []

    def write(self, path: str, text: str) -> Path:
        """Write a file of the project."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def run(self, *command: str, cwd: Path | None = None, timeout: float = 60, **environment: str) -> Any:
        """Run a command to its end. `core`, `celery` and `python` are those of this environment."""
        variables = clean_environment(**(self.environment | environment))
        if commands.can_fork(command, variables):
            return commands.run(command, cwd or self.root, variables, timeout)
        return subprocess.run(
            self._resolved(command), cwd=cwd or self.root, env=variables,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def start(self, *command: str, **environment: str) -> Process:
        """Start a command in the background; it is stopped with the project."""
        output = Path(tempfile.mkstemp(prefix="out-", dir=self.root.parent)[1])
        process = Process(
            self._resolved(command), self.root, output, clean_environment(**(self.environment | environment))
        )
        self._processes.append(process)
        return process

    def worker(self, *options: str, **environment: str) -> Process:
        """Start `core runworker`, of one process unless it is told otherwise, and wait until it serves."""
        process = self.start("core", "runworker", *options, **{"TASK_WORKER_PROCESSES": "1", **environment})
        process.wait_for("serving ")
        return process

    def python(self, code: str, timeout: float = 60, **environment: str) -> Any:
        """Run Python code inside the project."""
        return self.run(sys.executable, "-c", code, timeout=timeout, **environment)

    def caller(self, code: str, timeout: float = 60, **environment: str) -> Any:
        """The same where it does not matter that Celery is imported already, which takes longer than most code."""
        return self.run("python", "-c", code, timeout=timeout, **environment)

    @staticmethod
    def _resolved(command: tuple[str, ...]) -> list[str]:
        programs = {"core": CORE, "celery": CELERY, "python": sys.executable}
        return [programs.get(command[0], command[0]), *command[1:]]

    def close(self) -> None:
        """Stop everything that was started here, the development server included."""
        for process in self._processes:
            process.kill()
        from core import embedded
        from core.errors import NotRunning

        with suppress(NotRunning):
            embedded.stop(self.root)


@contextmanager
def project(copy: Path | None = EXAMPLE) -> Iterator[Project]:
    """A project in a short path of its own, gone at the end with all its processes."""
    with temporary_directory("core-test-") as directory:
        root = Path(directory) / "project"
        if copy is None:
            root.mkdir()
        else:
            shutil.copytree(copy, root, ignore=shutil.ignore_patterns(".core", "__pycache__"))
        made = Project(root)
        try:
            yield made
        finally:
            made.close()


def valkey_binary() -> str:
    """The server program, as the product finds it."""
    from core import embedded

    return embedded.server_binary()


def held(client: Any) -> list[bytes]:
    """The messages that workers hold: what they have taken and not finished."""
    return [
        call.partition(b"\n")[2]
        for key in client.scan_iter("core-held-*")
        for record, call in client.hgetall(key).items()
        if record not in (b"connection", b"waiting")
    ]


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def redis_server(*options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis of the test's own on a free loopback port: its URL and its process."""
    port, process = 0, None

    def answers(directory: str) -> bool:
        nonlocal port, process
        if process is None or process.poll() is not None:
            port = free_port()  # it may be taken meanwhile, and a cluster needs the one that is 10,000 above as well
            where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", directory]
            process = subprocess.Popen(
                [valkey_binary(), *where, "--save", "", *options],
                cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            with Redis(port=port, socket_timeout=1) as client:
                return bool(client.info("server")["process_id"] == process.pid)  # and not somebody else's
        except AuthenticationError:
            return True
        except (RedisError, OSError):
            return False

    with temporary_directory("core-redis-") as directory:
        try:
            wait_until(lambda: answers(directory), 10, "the test's Redis listens")
            assert process is not None
            yield f"redis://127.0.0.1:{port}/0", process
        finally:
            if process is not None:
                process.kill()
                process.wait()
