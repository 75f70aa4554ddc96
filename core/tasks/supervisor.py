"""Keep the processes of one worker running, as forks of a parent that has imported the project once.

A process is called a node here. What it does is its own matter: the supervisor knows only when it was started
and how it ended. Nodes stay in the supervisor's process group, and end by themselves when it is gone.
"""

import contextlib
import gc
import logging
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NoReturn

logger = logging.getLogger("core.tasks")

#: A node that ran for so many seconds has been up. One that ended earlier has failed to start.
UP_AFTER = 10.0
#: Seconds before a node that failed to start is started again: the first pause, which doubles, and the longest.
PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: Seconds that a node has beyond its grace time, or after a second signal, before it is killed.
MARGIN = 3.0
#: Seconds that a node has to stop when its supervisor is gone, then to quit, before it kills itself.
ORPHAN_STOPS, ORPHAN_QUITS = 1.0, 3.0

#: What a terminal sends to the whole process group, so that a node would get it twice.
_GROUP = (signal.SIGINT, signal.SIGHUP)
_SIGNALS = (*_GROUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCHLD)
#: The pid of this process if it is a node. What a node forks is none.
_node = 0


def supervise(node: Callable[[int], int], processes: int, *, grace: float) -> int:
    """Run `node(number)` in forked processes until they are told to stop, and return the exit code.

    The last thing that a process does, on its main thread: it takes over the signals, and does not give them back.
    A node starts with the default handlers, and returns its exit code or raises SystemExit. Another exception is one
    line of the log if it has an `exit_code`, as ours do; else its traceback, and 1. It leaves with `os._exit`, which
    calls no `atexit` functions.

    **A node that dies is started again**: at once when it had been up for 10 s, else after a pause of 0.5 s that
    doubles up to 30 s. It is not when it ends with 0, since then somebody told it to stop. When no node has ever been
    up and all have ended with an exit code, the worker cannot work, and that code is returned: whoever started it
    shall see it. A death by a signal is none of these, nor is 70, with which a stuck worker gives up.

    **Signals**: SIGTERM, SIGINT, SIGHUP and SIGQUIT stop the nodes: they get SIGTERM, for SIGQUIT that itself, and
    who has not ended *grace* + 3 s later is killed. A second one is passed on, too, and gives them 3 s. SIGUSR1 is
    passed on.

    Args:
        node: What each process runs, with its number from 1 on.
        processes: How many.
        grace: Seconds that a node may take to stop.

    Returns:
        0 when all nodes ended with 0 after a signal to stop, 130 after a second signal, else the highest of their
        codes, where a death by signal n is 128 + n.
    """
    return _Supervisor(node, processes, grace).run()


def leave_group_signals() -> None:
    """In a node, take no notice of what a terminal sends to the whole process group: the supervisor passes it on.

    A node calls this once more when something has set handlers for SIGINT or SIGHUP. Elsewhere it does nothing.
    """
    if _node == os.getpid():
        for number in _GROUP:
            signal.signal(number, _pass)  # not SIG_IGN, which programs that the node starts would inherit


def cores(root: Path = Path("/")) -> int:
    """The cores that this process may use: its affinity or its cgroup's quota, whichever is less; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas of this process's cgroup and of those around it, in cores."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has no controllers here. A container may be shown the path that its host knows, so look at all.
        mount, group = root / "sys/fs/cgroup" / ("cpu" if controllers else ""), PurePosixPath(path)
        for place in (mount / part.relative_to("/") for part in (group, *group.parents)):
            text = _read(place / "cpu.max") or _read(place / "cpu.cfs_quota_us") + _read(place / "cpu.cfs_period_us")
            match text.split():
                case [quota, period] if quota.isdigit():  # neither `max` nor -1
                    yield int(quota) / int(period)


def _read(file: Path) -> str:
    return file.read_text() if os.access(file, os.R_OK) else ""


def _pass(*_: object) -> None:
    """A handler that does nothing: the number of the signal arrives in the pipe."""


class _Node:
    """One of the processes, over all its starts."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0  # 0 while it does not run
        self.began = 0.0
        self.due = 0.0  # when to start it; math.inf for never
        self.failures = 0  # starts in a row after which it was not up
        self.code = 0  # what it last died with; negative for a signal


class _Supervisor:
    def __init__(self, run: Callable[[int], int], processes: int, grace: float) -> None:
        self._run = run
        self._nodes = [_Node(number) for number in range(1, processes + 1)]
        self._grace = grace
        self._asked = 0  # how often it was told to stop
        self._deadline = math.inf
        self._been_up = False
        self._code = 0
        self._wake, wake = os.pipe()
        # Nobody writes here. It ends when the last process that could is gone, and that is this one.
        self._lifeline, lifeline = os.pipe()
        self._parents = (self._wake, wake, lifeline)
        for file in self._parents:
            os.set_blocking(file, False)
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
                signal.signal(number, _pass)
        signal.set_wakeup_fd(wake)

    def run(self) -> int:
        if others := [t.name for t in threading.enumerate() if t is not threading.current_thread()]:
            logger.warning(
                "threads run before the fork, and a lock that one holds is never released in a node: %s",
                ", ".join(others),
            )
        gc.collect()
        gc.freeze()  # a collection in a node would write to the pages that it shares
        while any(node.pid or node.due < math.inf for node in self._nodes):
            now = time.monotonic()
            for node in self._nodes:
                if node.due <= now:
                    self._start(node)
            if self._deadline <= now:
                self._kill()
            self._wait(min(self._deadline, *(node.due for node in self._nodes)) - now)
            self._reap()
        return 130 if self._asked > 1 else self._code

    def _start(self, node: _Node) -> None:
        node.began, node.due = time.monotonic(), math.inf
        sys.stdout.flush()
        sys.stderr.flush()
        # What came between the fork and the node's own handlers would arrive in the pipe of the supervisor.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            node.pid = os.fork()
            if node.pid == 0:
                self._be(node.number, before)
        except OSError as error:
            self._died(node, 1, f"node {node.number} could not be forked ({error.strerror})")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _be(self, number: int, mask: set[int | signal.Signals]) -> NoReturn:
        global _node
        code = 1
        try:
            _node = os.getpid()
            signal.set_wakeup_fd(-1)
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            leave_group_signals()
            for file in self._parents:
                os.close(file)
            threading.Thread(target=_end_as_orphan, args=(self._lifeline,), name="core-lifeline", daemon=True).start()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = self._run(number)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                logger.error("node %d: %s", number, end.code)
        except BaseException as error:
            code = getattr(error, "exit_code", 1)
            logger.error("node %d: %s", number, error, exc_info=None if hasattr(error, "exit_code") else error)
        finally:
            with contextlib.suppress(Exception):
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code & 0xFF)

    def _wait(self, seconds: float) -> None:
        """Wait for signals, for at most so many seconds, and do what they say."""
        if select.select([self._wake], [], [], max(0.0, min(seconds, 3600.0)))[0]:
            for number in os.read(self._wake, 4096):
                if number == signal.SIGUSR1:
                    self._tell(signal.SIGUSR1)
                # A terminal that closes may say so twice, which is no second wish.
                elif number != signal.SIGCHLD and self._asked < (1 if number == signal.SIGHUP else 2):
                    self._stop(signal.SIGQUIT if number == signal.SIGQUIT else signal.SIGTERM)

    def _stop(self, number: signal.Signals) -> None:
        self._asked += 1
        self._deadline = time.monotonic() + MARGIN + (self._grace if self._asked == 1 else 0)
        for node in self._nodes:
            node.due = math.inf
        self._tell(number)

    def _tell(self, number: signal.Signals) -> None:
        for node in self._nodes:
            if node.pid:
                os.kill(node.pid, number)

    def _kill(self) -> None:
        self._deadline = math.inf
        for node in self._nodes:
            if node.pid:
                logger.error("node %d (pid %d) has not ended in time: killed", node.number, node.pid)
        self._tell(signal.SIGKILL)

    def _reap(self) -> None:
        """Take note of the nodes that ended, and of strangers: a container's first process inherits orphans."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for node in self._nodes:
                    if node.pid == ended[0]:
                        self._ended(node, os.waitstatus_to_exitcode(ended[1]))

    def _ended(self, node: _Node, code: int) -> None:
        who = f"node {node.number} (pid {node.pid})"
        node.pid = 0
        if self._asked:
            # Before a node has handlers of its own, the signal itself ends it.
            stopped = -code in (signal.SIGTERM, signal.SIGQUIT)
            self._code = max(self._code, 0 if stopped else code if code >= 0 else 128 - code)
        elif code == 0:
            logger.info("%s has stopped, as it was told to", who)
        elif code < 0:
            self._died(node, code, f"{who} died of {_name(-code)}")
        else:
            self._died(node, code, f"{who} ended with exit code {code}")

    def _died(self, node: _Node, code: int, what: str) -> None:
        lived = time.monotonic() - node.began
        node.code, node.failures = code, 0 if lived >= UP_AFTER else node.failures + 1
        self._been_up |= lived >= UP_AFTER
        if not self._been_up and all(not n.pid and n.code > 0 and n.code != os.EX_SOFTWARE for n in self._nodes):
            self._code = max(n.code for n in self._nodes)
            for each in self._nodes:
                each.due = math.inf
            logger.error("%s after %.1f s, and none has been able to start: the end", what, lived)
            return
        pause = min(PAUSE * 2 ** (node.failures - 1), LONGEST_PAUSE) if node.failures else 0.0
        node.due = time.monotonic() + pause
        logger.warning("%s after %.1f s: it is started again%s", what, lived, f" in {pause:g} s" * (pause > 0))


def _name(number: int) -> str:
    return next((each.name for each in signal.Signals if each == number), f"signal {number}")


def _end_as_orphan(lifeline: int) -> None:
    """Wait for the end of the supervisor, then end this node as its signals would have: stop, quit, killed."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    logger.warning("the supervisor is gone: stopping")
    time.sleep(ORPHAN_STOPS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_QUITS)
    os.kill(os.getpid(), signal.SIGKILL)
