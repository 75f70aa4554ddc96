"""A real worker on a real server of its own, for the tests of a project.

The worker is a process: signals, event loops and what a test patches stay on their own side, as in production. It ends
with the process that runs the tests, however that ends, and the server with it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from pydantic import SecretStr

from core import config, embedded
from core.errors import ConfigurationError, CoreError, NotRunning
from core.tasks import celery_app, listener, sender

#: Seconds that a worker may take until it serves, and until it has ended.
STARTS_WITHIN, ENDS_WITHIN = 60.0, 30.0
#: Where the setting `celery` may put calls and results, past the server of the tests.
ELSEWHERE = ("broker_url", "broker_read_url", "broker_write_url", "result_backend")
READY = "ready"


class Worker:
    """A worker for this process's project, and its server."""

    def __init__(self, directory: Path, url: str) -> None:
        """Start the worker, and wait until it serves.

        Raises:
            ConfigurationError: It does not start, or the project keeps its calls somewhere else.
        """
        self._url = url
        project, settings = config.get_project(), config.get_settings()
        if elsewhere := [name for name in ELSEWHERE if name in settings.celery]:
            raise ConfigurationError(
                f"worker_tasks keeps calls and results on a server of its own, and {elsewhere[0]} in the setting "
                "`celery` puts them elsewhere. Leave it out where ENVIRONMENT is testing."
            )
        named = ("REDIS_URL", "TASK_BROKER_URL", "TASK_RESULT_BACKEND_URL")
        # One process is enough for tests. Of a task that only a test declares, a call fails soon, with the reason.
        environment = {"TASK_WORKER_PROCESSES": "1", "TASK_UNKNOWN_HOLD": "1", **dict.fromkeys(named, url)}
        command = [sys.executable, "-P", "-c", f"from {__name__} import main; main()"]
        told = json.dumps([str(directory), project.settings, sys.path])
        self._process = subprocess.Popen(
            [*command, told], cwd=project.root, env={**os.environ, **environment}, stdin=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + STARTS_WITHIN
        while not (directory / READY).exists():
            if time.monotonic() > deadline:
                self.stop()
                raise ConfigurationError(f"The worker of the tests did not serve within {STARTS_WITHIN:g} s.")
            self.check()
            time.sleep(0.02)

    def check(self) -> None:
        """Raise if it has ended.

        Raises:
            ConfigurationError: It has.
        """
        if (code := self._process.poll()) is not None:
            self.stop()
            raise ConfigurationError(f"The worker of the tests ended (exit {code}). What it said is on stderr.")

    def stop(self) -> None:
        """Stop it, and wait for its end."""
        self._process.terminate()
        try:
            self._process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        assert self._process.stdin
        self._process.stdin.close()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let this process send its calls there for a while."""
        self.check()
        url = {"redis_url": SecretStr(self._url), "task_broker_url": None, "task_result_backend_url": None}
        with config.overridden(**url), celery_app.renewed(), _other_connections():
            yield


@contextmanager
def running(directory: Path) -> Iterator[Worker]:
    """A worker for this process's project.

    Args:
        directory: An empty directory, for the server's data.

    Raises:
        EmbeddedServerError: There is no server to start.
        ConfigurationError: The project has no settings, or the worker does not start.
    """
    config.get_settings()
    server = embedded.ensure(directory)
    try:
        worker = Worker(directory, f"unix://{quote(str(server.socket))}")
        try:
            yield worker
        finally:
            worker.stop()
    finally:
        with suppress(NotRunning):
            embedded.stop(directory)


@contextmanager
def _other_connections() -> Iterator[None]:
    """Loops that outlive a test keep a connection, which is to another server then."""

    def forget() -> None:
        listener.forget()
        sender.forget()

    forget()
    try:
        yield
    finally:
        forget()


def main() -> None:
    """Run the worker: what the process does that `Worker` starts."""
    directory, settings, path = json.loads(sys.argv[1])
    sys.path += [place for place in path if place not in sys.path]
    alone = threading.Event()
    threading.Thread(target=_end_with_parent, args=(alone,), daemon=True).start()
    from celery.signals import worker_ready

    from core.tasks import worker

    def ready(**_: object) -> None:
        Path(directory, READY).touch()

    worker_ready.connect(ready)
    try:
        config.load_project(settings)
        code = worker.run(concurrency=None)
    except CoreError as error:
        print(f"Error: {error}", file=sys.stderr)
        code = error.exit_code
    if alone.is_set():
        with suppress(CoreError):
            embedded.stop(Path(directory))
    sys.exit(code)


def _end_with_parent(alone: threading.Event) -> None:
    os.read(0, 1)  # nobody writes there: it returns when the other end is closed
    alone.set()
    os.kill(os.getpid(), signal.SIGTERM)
