"""Commands that need no start of a Python each: forks of one process that has imported what they import.

The tests run hundreds of them, and imports are most of what each takes. A fork is a process of its own all the same,
with an environment, a directory, an end and an exit code, and nothing of a project is imported before there is one.
"""

import gc
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType
from typing import Any

#: Where redis finds no OpenTelemetry, whose import is a fifth of the start of a process. A test that is about it has a
#: PYTHONPATH of its own.
HIDDEN = str(Path(__file__).parent / "hidden")
IMPORTED = (
    "celery.app.amqp", "celery.app.control", "celery.backends.redis", "celery.bin.celery", "core.cli.main",
    "core.embedded", "core.health", "core.ping", "core.tasks.about", "core.tasks.beat", "core.tasks.celery_app",
    "core.tasks.checks", "core.tasks.dead", "core.tasks.queues", "core.tasks.timetable",
    "core.tasks.transport.backend", "core.tasks.transport.channel",
)  # fmt: skip


def serve(directory: Path) -> "subprocess.Popen[bytes]":
    """Start the process that is forked, for a run of tests in this directory."""
    os.environ["TEST_COMMANDS"] = str(directory / "commands.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.environ["TEST_COMMANDS"])
        listener.listen(100)
        return subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())], cwd=directory, pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": HIDDEN, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip


def can_fork(command: tuple[str, ...], environment: dict[str, str]) -> bool:
    """Whether it is one for `run`, in a run of tests: `core …` and `celery …`, but for a worker, and `python -c …`."""
    if "TEST_COMMANDS" not in os.environ or environment.get("PYTHONPATH") != HIDDEN:
        return False
    return command[:2] == ("python", "-c") or (command[0] in ("core", "celery") and "--burst" not in command)


def run(
    command: tuple[str, ...], cwd: Path, environment: dict[str, str], timeout: float
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, as `subprocess.run` does."""
    request = json.dumps([command, str(cwd), environment]).encode()
    with socket.socket(socket.AF_UNIX) as asked, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        asked.settimeout(timeout)
        asked.connect(os.environ["TEST_COMMANDS"])
        socket.send_fds(asked, [request + b"\n"], [out.fileno(), err.fileno()])
        code = int(asked.recv(100))
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())


def _forked(listener: socket.socket) -> tuple[Any, list[int]]:
    """Wait for requests, and return in a fork for each; another one tells the exit code."""
    while True:
        asked, _ = listener.accept()
        if os.fork() == 0:
            break
        asked.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    listener.close()
    request, descriptors, *_ = socket.recv_fds(asked, 1 << 16, 2)
    while not request.endswith(b"\n"):
        request += asked.recv(1 << 16)
    if command := os.fork():
        asked.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
        os._exit(0)
    asked.close()
    return json.loads(request), descriptors


def main() -> None:
    """Import, fork, and be the command."""
    for name in IMPORTED:
        import_module(name)
    gc.freeze()
    (command, cwd, environment), descriptors = _forked(socket.socket(fileno=int(sys.argv[1])))
    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    _become(command)


def _become(command: list[str]) -> None:
    sys.path.pop(0)  # where this file is
    if command[0] == "python":
        sys.path.insert(0, "")
        sys.argv, code = command[1:2] + command[3:], compile(command[2], "<string>", "exec")
        script = sys.modules["__main__"] = ModuleType("__main__")
        exec(code, vars(script))
        return
    sys.argv = command
    sys.exit(import_module({"core": "core.cli", "celery": "celery.__main__"}[command[0]]).main())


if __name__ == "__main__":
    main()
