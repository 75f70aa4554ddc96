"""A supervisor and its nodes: real processes that are killed, stopped and orphaned."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Process, clean_environment, wait_until

from core.tasks import supervisor
from core.tasks.supervisor import cores

#: A worker: `script.py MODE PROCESSES [NAME=VALUE …]`, where a NAME is one of the supervisor's constants or `grace`.
#: Each start of a node, and each signal that it gets, is a line of the file `marks`.
SCRIPT = """
import logging, os, signal, sys, threading, time
import supervisor

def mark(*words):
    with open("marks", "a") as file:
        print(*words, file=file)

def starts(number):
    with open("marks") as file:
        return sum(line.startswith(f"start {number} ") for line in file)

def node(number):
    told = []
    def tell(number, _):
        told.append(number)
        mark("told", me, signal.Signals(number).name)
    me = number
    for each in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, tell)
    supervisor.leave_group_signals()
    mark("start", number, os.getpid(), time.monotonic())
    mode = MODES.get(number, MODES[0])
    if mode.startswith("return"):
        return int(mode[6:])
    if mode.startswith("raise"):
        error = LookupError("no such thing")
        if mode[5:]:
            error.exit_code = int(mode[5:])
        raise error
    if mode == "killed at first" and starts(number) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "stuck at first" and starts(number) == 1:
        return 70
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while len([each for each in told if each != signal.SIGUSR1]) < (2 if mode == "linger" else 1):
        time.sleep(0.01)
    if mode.startswith("exit"):
        sys.exit(int(mode[4:]))
    return 130 if mode == "linger" else 0

mode, processes, *rest = sys.argv[1:]
MODES = dict(enumerate(mode.split("/")))
values = {name: float(value) for name, value in (each.split("=") for each in rest)}
grace = values.pop("grace", 20)
if values.pop("nohup", 0):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if values.pop("thread", 0):
    threading.Thread(target=time.sleep, args=(60,), name="ticker", daemon=True).start()
vars(supervisor).update(values)
logging.basicConfig(format="%(levelname)s %(message)s", level="INFO")
sys.exit(supervisor.supervise(node, int(processes), grace=grace))
"""


class Worker(Process):
    """A running script, and what its nodes have left in the file."""

    def __init__(self, directory: Path, mode: str, processes: int, values: dict[str, float]) -> None:
        self.marks = directory / "marks"
        self.marks.touch()
        options = [f"{name}={value}" for name, value in values.items()]
        command = [sys.executable, "-c", SCRIPT, mode, str(processes), *options]
        # Loaded without its package, whose import takes longer than most of these tests.
        environment = clean_environment(PYTHONPATH=str(Path(supervisor.__file__).parent))
        super().__init__(command, directory, directory / "output", environment)

    def lines(self, kind: str) -> list[list[str]]:
        return [words[1:] for line in self.marks.read_text().splitlines() if (words := line.split())[0] == kind]

    def pids(self, number: int) -> list[int]:
        """The pids that a node has had, in the order of its starts."""
        return [int(pid) for each, pid, _ in self.lines("start") if int(each) == number]

    def told(self, number: int) -> list[str]:
        return [name for each, name in self.lines("told") if int(each) == number]

    def wait_for_starts(self, number: int, count: int) -> None:
        wait_until(lambda: len(self.pids(number)) >= count, 15, f"start {count} of node {number}")


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start a worker and wait until each node has begun once. A mode is for all nodes, or `any/first/second`."""
    started: list[Worker] = []

    def start(mode: str = "serve", processes: int = 2, **values: float) -> Worker:
        started.append(worker := Worker(tmp_path, mode, processes, values))
        for number in range(1, processes + 1):
            worker.wait_for_starts(number, 1)
        return worker

    yield start
    for worker in started:
        worker.kill()


# Starting, and starting again


def test_each_node_is_a_process_of_its_own_in_the_same_process_group(start: Callable[..., Worker]) -> None:
    worker = start(processes=3)
    pids = [pid for number in (1, 2, 3) for pid in worker.pids(number)]

    assert len({worker.pid, *pids}) == 4
    assert {os.getpgid(pid) for pid in pids} == {worker.pid}


def test_a_node_that_was_killed_is_started_again_and_the_others_are_left_alone(start: Callable[..., Worker]) -> None:
    worker = start()
    [killed] = worker.pids(2)

    os.kill(killed, signal.SIGKILL)
    worker.wait_for_starts(2, 2)

    assert f"WARNING node 2 (pid {killed}) died of SIGKILL after " in worker.text()
    assert worker.stop() == 0
    assert (len(worker.pids(1)), len(worker.pids(2))) == (1, 2)


def test_a_node_that_was_up_is_started_again_at_once(start: Callable[..., Worker]) -> None:
    worker = start("killed at first", 1, UP_AFTER=0)

    worker.wait_for_starts(1, 2)

    assert worker.text().endswith(" s: it is started again\n")


def test_a_node_that_keeps_dying_at_its_start_is_started_ever_later(start: Callable[..., Worker]) -> None:
    worker = start("serve/serve/return3")

    worker.wait_for_starts(2, 3)

    began = [float(moment) for number, _, moment in worker.lines("start") if number == "2"]
    assert (began[1] - began[0] >= 0.5, began[2] - began[1] >= 1) == (True, True)
    first, second = worker.text().splitlines()[:2]
    assert "ended with exit code 3 after " in first
    assert "it is started again in 0.5 s" in first
    assert "it is started again in 1 s" in second


def test_the_pause_has_an_upper_end(start: Callable[..., Worker]) -> None:
    worker = start("serve/serve/return3", PAUSE=0.01, LONGEST_PAUSE=0.03)

    worker.wait_for_starts(2, 6)

    assert worker.text().count("started again in 0.03 s") >= 3


@pytest.mark.parametrize("mode", ["killed at first", "stuck at first"])
def test_a_death_that_says_nothing_about_the_start_is_not_the_end(start: Callable[..., Worker], mode: str) -> None:
    worker = start(mode, 1)

    worker.wait_for_starts(1, 2)

    assert worker.stop() == 0


def test_a_node_that_is_stopped_for_a_while_is_not_dead(start: Callable[..., Worker]) -> None:
    worker = start()
    os.kill(worker.pids(1)[0], signal.SIGSTOP)
    os.kill(worker.pids(2)[0], signal.SIGKILL)
    worker.wait_for_starts(2, 2)

    os.kill(worker.pids(1)[0], signal.SIGCONT)

    assert worker.stop() == 0
    assert len(worker.pids(1)) == 1


@pytest.mark.parametrize(("mode", "code"), [("return2", 2), ("raise", 1), ("return1/return1/return69", 69)])
def test_a_worker_of_which_no_node_can_start_ends_with_the_code(
    start: Callable[..., Worker], mode: str, code: int
) -> None:
    worker = start(mode, PAUSE=30)

    assert worker.wait(10) == code
    assert len(worker.lines("start")) == 2
    assert "none has been able to start: the end" in worker.text()


def test_a_worker_that_has_worked_goes_on_trying(start: Callable[..., Worker]) -> None:
    worker = start("return3", 1, UP_AFTER=0)

    worker.wait_for_starts(1, 3)

    assert worker.popen.poll() is None


def test_an_error_in_a_node_is_logged_with_its_traceback(start: Callable[..., Worker]) -> None:
    worker = start("raise", 1)

    assert worker.wait(10) == 1
    assert "ERROR node 1: no such thing\nTraceback (most recent call last):" in worker.text()


def test_an_error_that_knows_its_exit_code_is_one_line(start: Callable[..., Worker]) -> None:
    worker = start("raise69", 1)

    assert worker.wait(10) == 69
    assert worker.text().startswith("ERROR node 1: no such thing\nERROR node 1 (pid ")


def test_a_node_that_was_told_to_end_is_not_started_again_and_the_last_ends_the_worker(
    start: Callable[..., Worker],
) -> None:
    worker = start()
    os.kill(worker.pids(1)[0], signal.SIGTERM)
    worker.wait_for("has stopped, as it was told to")

    os.kill(worker.pids(2)[0], signal.SIGTERM)

    assert worker.wait(10) == 0
    assert len(worker.lines("start")) == 2


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_stops_every_node_and_the_worker(start: Callable[..., Worker], number: signal.Signals) -> None:
    worker = start()

    worker.signal(number)

    assert worker.wait(10) == 0
    told = ["SIGQUIT" if number == signal.SIGQUIT else "SIGTERM"]
    assert (worker.told(1), worker.told(2)) == (told, told)


def test_a_second_signal_is_passed_on_and_is_exit_code_130(start: Callable[..., Worker]) -> None:
    worker = start("linger/serve", 2)
    worker.signal(signal.SIGTERM)
    wait_until(lambda: worker.told(2), 10, "the first signal")
    assert worker.popen.poll() is None

    worker.signal(signal.SIGTERM)

    assert worker.wait(10) == 130
    assert worker.told(2) == ["SIGTERM"] * 2


def test_ctrl_c_reaches_the_whole_group_and_counts_once(start: Callable[..., Worker]) -> None:
    worker = start("linger")
    os.killpg(worker.pid, signal.SIGINT)
    wait_until(lambda: worker.told(1) and worker.told(2), 10, "the first signal")
    assert worker.told(1) + worker.told(2) == ["SIGTERM"] * 2

    os.killpg(worker.pid, signal.SIGINT)

    assert worker.wait(10) == 130
    assert worker.told(1) + worker.told(2) == ["SIGTERM"] * 4


def test_a_terminal_that_closes_twice_asks_once(start: Callable[..., Worker]) -> None:
    worker = start("linger", 1)
    os.killpg(worker.pid, signal.SIGHUP)
    wait_until(lambda: worker.told(1), 10, "the first signal")
    os.killpg(worker.pid, signal.SIGHUP)
    worker.signal(signal.SIGUSR1)
    wait_until(lambda: "SIGUSR1" in worker.told(1), 10, "the supervisor has gone on")

    assert worker.told(1) == ["SIGTERM", "SIGUSR1"]


def test_nohup_is_respected(start: Callable[..., Worker]) -> None:
    worker = start(processes=1, nohup=1)
    os.killpg(worker.pid, signal.SIGHUP)
    worker.signal(signal.SIGUSR1)
    wait_until(lambda: worker.told(1), 10, "the supervisor has gone on")

    assert worker.told(1) == ["SIGUSR1"]
    assert worker.stop() == 0


def test_a_node_that_does_not_stop_is_killed_after_its_grace_time(start: Callable[..., Worker]) -> None:
    worker = start("serve/serve/deaf", grace=0.2, MARGIN=0.2)
    [pid] = worker.pids(2)

    worker.signal(signal.SIGTERM)

    assert worker.wait(10) == 128 + signal.SIGKILL
    assert f"ERROR node 2 (pid {pid}) has not ended in time: killed" in worker.text()
    assert "node 1" not in worker.text()


def test_a_second_signal_shortens_the_grace_time(start: Callable[..., Worker]) -> None:
    worker = start("deaf", 1, grace=60, MARGIN=0.2)

    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGINT)

    assert worker.wait(10) == 130


def test_the_worst_code_of_the_nodes_is_that_of_the_worker(start: Callable[..., Worker]) -> None:
    assert start("exit0/exit4/exit5", 3).stop() == 5


def test_a_node_that_waits_for_its_next_start_does_not_hold_up_the_stop(start: Callable[..., Worker]) -> None:
    worker = start("serve/serve/return3", PAUSE=30)
    worker.wait_for("it is started again in 30 s")

    assert worker.stop(10) == 0


def test_nodes_whose_supervisor_was_killed_stop_then_quit_then_die(start: Callable[..., Worker]) -> None:
    worker = start("serve/serve/linger/deaf", 3, ORPHAN_STOPS=0.5, ORPHAN_QUITS=0.5)
    # A node that is forked later must not keep the pipe of the others open.
    os.kill(worker.pids(1)[0], signal.SIGKILL)
    worker.wait_for_starts(1, 2)

    worker.signal(signal.SIGKILL)

    pids = [pid for number in (1, 2, 3) for pid in worker.pids(number)]
    wait_until(lambda: not any(alive(pid) for pid in pids), 5, "every node is gone")
    assert (worker.told(1), worker.told(2)) == (["SIGTERM"], ["SIGTERM"] * 2)


def test_threads_that_run_before_the_fork_are_named(start: Callable[..., Worker]) -> None:
    worker = start(processes=1, thread=1)

    assert worker.stop() == 0
    assert worker.text() == (
        "WARNING threads run before the fork, and a lock that one holds is never released in a node: ticker\n"
    )


# The cores


def cgroup(root: Path, own: str, files: dict[str, str]) -> Path:
    """A file system whose /proc/self/cgroup is *own*, with these files in /sys/fs/cgroup."""
    whole = {"proc/self/cgroup": own} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in whole.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_without_a_quota_the_cores_are_those_of_the_affinity(tmp_path: Path) -> None:
    assert cores(tmp_path) == len(os.sched_getaffinity(0))
    assert cores(cgroup(tmp_path, "0::/", {"cpu.max": "max 100000"})) == len(os.sched_getaffinity(0))
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    done = subprocess.run(
        [sys.executable, "-c", one + "from core.tasks.supervisor import cores; print(cores())"],
        capture_output=True, text=True, timeout=60, env=clean_environment(),
    )  # fmt: skip
    assert done.stdout == "1\n", done.stderr


HALF = {"cpu/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_quota_us": "50000"}
PERIODS = {"cpu/cpu.cfs_period_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/", {"cpu.max": "50000 100000"}),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 100000"}),
        ("0::/seen/only/by/the/host", {"cpu.max": "1000 100000"}),
        ("3:memory:/x\n2:cpu,cpuacct:/a", HALF | PERIODS),
    ],
    ids=["version 2", "a group around it", "a path of the host", "version 1"],
)
def test_a_quota_is_rounded_up_to_cores(tmp_path: Path, own: str, files: dict[str, str]) -> None:
    """All of these allow one core at most."""
    assert cores(cgroup(tmp_path, own, files)) == 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_quota_of_more_than_one_core_is_two(tmp_path: Path) -> None:
    assert cores(cgroup(tmp_path, "0::/", {"cpu.max": "110000 100000"})) == 2
