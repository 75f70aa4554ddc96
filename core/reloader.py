"""Runs a project's commands in this terminal, and starts them again when its code changes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from core.errors import CoreError

#: Seconds that a command has to finish what it does before it is told again, and before it is killed.
PATIENCE, LAST = 2.0, 5.0
#: Milliseconds between two looks whether a command has ended.
LOOK = 300
COLOURS = ("cyan", "magenta", "yellow", "green")


class _Child:
    """One command, again and again."""

    def __init__(self, name: str, words: Sequence[str], environment: Mapping[str, str], label: str) -> None:
        self.name, self._words, self._environment, self._label = name, words, dict(environment), label
        #: Whether its end was told of already.
        self.told = False
        self.start()

    def start(self) -> None:
        labelled = bool(self._label)
        self.told = False
        self.process = subprocess.Popen(
            self._words, env={**os.environ, **self._environment, "PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if labelled else None, stderr=subprocess.STDOUT if labelled else None, text=True,
            errors="replace", process_group=0,
        )  # fmt: skip
        if labelled:
            self._reader = threading.Thread(target=self._print, args=(self.process.stdout,), daemon=True)
            self._reader.start()

    def _print(self, lines: Any) -> None:
        for line in lines:
            sys.stdout.write(self._label + line.rstrip("\n") + "\n")
            sys.stdout.flush()

    def code(self) -> int | None:
        return self.process.poll()

    def signal(self, number: int) -> None:
        if self.code() is None:
            self.process.send_signal(number)

    def end(self) -> None:
        """Let it finish what it does, for a moment, and wait until it is gone. It was asked to stop."""
        for patience in (PATIENCE, LAST):
            try:
                self.wait(patience)
                return
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGTERM)
        self.process.kill()
        self.wait(None)

    def wait(self, timeout: float | None) -> int:
        code = self.process.wait(timeout)
        if self._label:
            self._reader.join(1)  # its last lines
        return code


def run(commands: Mapping[str, Sequence[str]], root: Path, environment: Mapping[str, str], labels: bool) -> int:
    """Run commands until they have ended or are to stop; return the exit code of the first that failed.

    A command that fails waits for a change. What this process is asked to stop with, it asks them with.

    Args:
        commands: Each command's words, by its name.
        root: The project; its Python and `.env` files are watched.
        environment: Variables that the commands have beside this process's own.
        labels: Whether each line of their output begins with the command's name.

    Raises:
        CoreError: The package `watchfiles` is not installed.
    """
    try:
        from watchfiles import DefaultFilter, watch
    except ImportError:
        raise CoreError("Reloading needs the package watchfiles: pip install 'core-tasks[reload]'.") from None

    class Code(DefaultFilter):
        def __call__(self, change: object, path: str) -> bool:
            name = os.path.basename(path)
            return super().__call__(change, path) and (name.endswith(".py") or name.startswith(".env"))  # type: ignore[arg-type]

    ended, children = threading.Event(), list[_Child]()

    def stop(number: int, _: FrameType | None) -> None:
        ended.set()
        for child in children:
            child.signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    width = max(map(len, commands))
    for at, (name, words) in enumerate(commands.items()):
        children.append(_Child(name, words, environment, _label(name, width, at) if labels else ""))
    places = [path for path in (root / "src", root) if path.is_dir()]
    for changes in watch(
        *places[:1], *root.glob(".env*"), watch_filter=Code(ignore_dirs=(*Code.ignore_dirs, ".core")), stop_event=ended,
        rust_timeout=LOOK, yield_on_timeout=True, raise_interrupt=False,
    ):  # fmt: skip
        if changes:
            names = sorted({os.path.relpath(path, root) for _, path in changes})
            _say(f"{', '.join(names[:3])}{' and more' * (len(names) > 3)} changed: starting again")
            for child in children:
                child.signal(signal.SIGTERM)
            for child in children:
                child.end()
                if not ended.is_set():
                    child.start()
        elif not any(child.code() is None or child.code() for child in children):
            break
        for child in children:
            if child.code() and not child.told:
                child.told = True
                _say(f"{child.name} ended with {child.code()}: it starts again when a file changes")
    codes = [child.wait(None) for child in children]
    return next(filter(None, codes), 0)


def _label(name: str, width: int, number: int) -> str:
    label = f"{name:{width}} | "
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return label
    from click import style

    return style(label, fg=COLOURS[number % len(COLOURS)])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
