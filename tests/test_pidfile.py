"""A pidfile that cannot lie: it is held by a lock, and the lock ends with its holder."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.errors import AlreadyRunning, ConfigurationError
from core.pidfile import PidFile, default_path

HOLD = """
import sys
from pathlib import Path
from core.pidfile import PidFile
held = PidFile(Path(sys.argv[1])).acquire("The scheduler")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "scheduler.pid"


@pytest.fixture
def hold(path: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Start a process that holds the file until its stdin ends."""
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_file_that_nobody_holds_names_nobody(path: Path) -> None:
    assert PidFile(path).holder() is None


def test_the_holder_is_known_to_others(path: Path, hold: Callable[[], "subprocess.Popen[str]"]) -> None:
    process = hold()

    assert PidFile(path).holder() == process.pid
    assert path.read_text() == f"{process.pid}\n"


def test_a_second_one_is_refused_by_name_and_pid(path: Path, hold: Callable[[], "subprocess.Popen[str]"]) -> None:
    process = hold()

    with pytest.raises(AlreadyRunning, match=f"The scheduler is already running here .pid {process.pid}, ") as caught:
        PidFile(path).acquire("The scheduler")

    assert str(path) in str(caught.value)
    assert PidFile(path).holder() == process.pid


def test_a_file_left_by_a_killed_process_stops_nobody(path: Path, hold: Callable[[], "subprocess.Popen[str]"]) -> None:
    process = hold()
    process.kill()
    process.wait()

    assert path.read_text() == f"{process.pid}\n"
    assert PidFile(path).holder() is None
    held = PidFile(path).acquire("The scheduler")
    assert PidFile(path).holder() == os.getpid()
    held.release()


def test_a_number_that_now_belongs_to_a_stranger_is_nobody(path: Path) -> None:
    """The pid was used again, here by this very process, which does not hold the file."""
    path.parent.mkdir()
    path.write_text(f"{os.getpid()}\n")

    assert PidFile(path).holder() is None


@pytest.mark.parametrize("text", ["", "not a number", "-1", "99999999999999999999\n", "\x00\xff"])
def test_what_stands_in_an_unheld_file_means_nothing(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)

    assert PidFile(path).holder() is None
    held = PidFile(path).acquire("The scheduler")
    assert path.read_text() == f"{os.getpid()}\n"
    held.release()


def test_a_released_file_is_free_and_stays_where_it_is(path: Path) -> None:
    """Removing it could take the file of a successor that has just opened it."""
    PidFile(path).acquire("The scheduler").release()

    assert path.exists()
    assert PidFile(path).holder() is None
    PidFile(path).acquire("The scheduler").release()


def test_asking_who_holds_it_does_not_take_it(path: Path) -> None:
    PidFile(path).acquire("x").release()

    assert PidFile(path).holder() is None
    PidFile(path).acquire("x").release()


def test_a_lock_is_not_passed_on_to_a_child_program(path: Path) -> None:
    held = PidFile(path).acquire("The scheduler")
    child = subprocess.Popen(
        [sys.executable, "-c", "print('up', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"up\n"
        held.release()
        PidFile(path).acquire("The next").release()
    finally:
        child.communicate(b"\n")


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigurationError, match=r"cannot be written: .* Set --pidfile"):
        PidFile(tmp_path / "file" / "scheduler.pid").acquire("The scheduler")


def test_a_link_that_someone_put_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write to the directory must not have a file of the user's overwritten."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "scheduler.pid").symlink_to(precious)

    with pytest.raises(ConfigurationError):
        PidFile(tmp_path / "scheduler.pid").acquire("The scheduler")

    assert precious.read_text() == "kept"


def test_a_project_keeps_it_in_its_own_directory_out_of_version_control(tmp_path: Path) -> None:
    path = default_path(tmp_path, "scheduler.pid")
    held = PidFile(path).acquire("The scheduler")

    assert path == tmp_path / ".core" / "run" / "scheduler.pid"
    assert (tmp_path / ".core" / ".gitignore").read_text() == "*\n"
    assert path.stat().st_mode & 0o077 == 0
    held.release()


def test_a_project_that_cannot_be_written_uses_the_users_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so what the system answers is given here."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    path = default_path(one, "scheduler.pid")

    assert path.parent.parent == tmp_path / "runtime"
    assert path.parent.name.startswith("core-")
    assert path != default_path(other, "scheduler.pid")
    PidFile(path).acquire("The scheduler").release()
