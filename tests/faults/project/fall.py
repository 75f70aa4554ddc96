"""The ways in which a task takes down the process that runs it."""

import ctypes
import os
import signal


def fall(how: str) -> None:
    """End this process as named: `kill`, `segfault`, `exit`, or `group` for its worker as a whole."""
    if how == "kill":  # what the kernel does when memory runs out
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "group":
        os.killpg(0, signal.SIGKILL)
    raise AssertionError(f"still here after {how}")
