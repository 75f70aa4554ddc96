"""A file that says which process runs, and cannot lie: its holder keeps it locked.

The lock ends with the process, however it ends, so a file that was left behind stops nobody, and a number
in it that now belongs to a stranger is never signalled.
"""

import fcntl
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Self

from core.errors import AlreadyRunning, ConfigurationError


def default_path(root: Path, name: str) -> Path:
    """Where a project keeps the pidfile *name*: in `.core/run/`, or in the user's runtime directory where the
    project cannot be written.
    """
    own = root / ".core" / "run"
    state = own.parent if own.parent.exists() else root
    if os.access(own if own.exists() else state, os.W_OK):
        return own / name
    runtime = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return Path(runtime) / f"core-{key}" / name


class PidFile:
    """The pidfile of one process, held from `acquire` until the process ends or calls `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self, what: str) -> Self:
        """Take the file for this process.

        Args:
            what: Who asks, for the message of the error.

        Raises:
            AlreadyRunning: Another process holds it.
            ConfigurationError: The file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.path.parent.parent.name == ".core":
                ignore = self.path.parent.parent / ".gitignore"
                if not ignore.exists():
                    ignore.write_text("*\n")
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"The pidfile {self.path} cannot be written: {error.strerror}. Set --pidfile."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise AlreadyRunning(what, self.holder(), self.path) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        self._file = file
        return self

    def release(self) -> None:
        """Give the file up. It stays where it is: removing it could take it from a successor."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None

    def touch(self, ahead: float = 0) -> None:
        """Say that the holder is alive.

        Args:
            ahead: Seconds for which it will have no time to say so again.
        """
        if self._file is not None:
            moment = time.time() + ahead
            os.utime(self._file, (moment, moment))

    def age(self) -> float:
        """Seconds since the holder has said that it is alive; below zero while it has excused itself.

        Raises:
            FileNotFoundError: There is no such file.
        """
        return time.time() - self.path.stat().st_mtime

    def holder(self) -> int | None:
        """The pid of the process that holds the file, or None when nobody does."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            deadline = time.monotonic() + 2
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return None
                except BlockingIOError:
                    pass
                pid = _locked_by(file) or _written(file)
                if pid or time.monotonic() > deadline:
                    return pid
                time.sleep(0.01)  # its holder has locked it and is about to write
        finally:
            os.close(file)


def _locked_by(file: int) -> int | None:
    """Who holds the lock according to the kernel, where it tells."""
    status = os.fstat(file)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == place and int(words[4]) > 0:
            return int(words[4])
    return None


def _written(file: int) -> int | None:
    text = os.pread(file, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def runs(pid: int) -> bool:
    """Whether a process of this user runs. One that has ended does not, whether its parent has collected it or not."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return not Path("/proc/self").exists()
