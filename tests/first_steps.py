"""`make check-first-steps`: what a newcomer does, with a clock: from an empty directory to a call's result.

Then a task fails, and the one command that the worker's log names shows its traceback.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import Process, clean_environment

#: Seconds from nothing at all to a call's result, at most.
LIMIT = 60
FAILS = '''

@task
async def divide(by: int) -> float:
    """Fail."""
    return 1 / by
'''


class Steps:
    """Runs one command after the other in an empty directory, and says how long each has taken."""

    def __init__(self, place: Path) -> None:
        self.place, self.began = place, time.monotonic()
        self.programs = place / "venv" / "bin"
        path = f"{self.programs}:{clean_environment()['PATH']}"
        self.environment = {**clean_environment(PATH=path), "HOME": os.environ.get("HOME", str(place))}

    def __call__(self, *command: str, fails: bool = False) -> str:
        """Run a command to its end and return what it printed."""
        began = time.monotonic()
        program = next((str(p) for p in [self.programs / command[0]] if p.exists()), command[0])
        done = subprocess.run(
            [program, *command[1:]], cwd=self.place, env=self.environment, capture_output=True, text=True
        )  # fmt: skip
        self.say(began, " ".join(command))
        assert (done.returncode != 0) == fails, f"it exited {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def say(self, began: float, what: str) -> None:
        now = time.monotonic()
        print(f"{now - self.began:6.1f} s  {f'+{now - began:.1f}':>5} s  {what}", flush=True)


def take(place: Path, checkout: Path) -> None:
    """Take the steps of the quickstart."""
    step = Steps(place)
    step(sys.executable, "-m", "venv", "venv")
    step("pip", "--disable-pip-version-check", "--quiet", "install", f"{checkout}[standard]")
    step("core", "init")
    began = time.monotonic()
    dev = Process([str(step.programs / "core"), "dev"], place, place / "dev.log", step.environment)
    try:
        dev.wait_for("serving ", timeout=60)
        step.say(began, "core dev  (in the background, until its worker serves)")
        printed = step("python", "call.py")
        assert "{'sent': True}" in printed, printed
        taken = time.monotonic() - step.began
        print(f"{taken:6.1f} s  from an empty directory to a call's result")
        assert taken < LIMIT, f"{taken:.1f} s are more than {LIMIT} s"

        tasks = place / "src/apps/emails/tasks.py"
        before = dev.text().count("serving ")
        tasks.write_text(tasks.read_text() + FAILS)
        began = time.monotonic()
        while dev.text().count("serving ") == before:
            assert time.monotonic() - began < 30, dev.text()
            time.sleep(0.02)
        step.say(began, "a task that fails is added; core dev starts again by itself")
        step("core", "tasks", "run", "divide", "--args", "[0]")
        dev.wait_for("See `core result ")
        named = re.search(r"See `(core result [\w-]+)`", dev.text())
        assert named, dev.text()
        shown = step(*named[1].split(), fails=True)
        assert f'File "{tasks}"' in shown, shown
        assert shown.endswith("ZeroDivisionError: division by zero\n"), shown
        print("".join(f"           {line}\n" for line in shown.splitlines()[-4:]), end="")
    finally:
        dev.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="core-first-") as directory:
        take(Path(directory).resolve(), Path(__file__).resolve().parent.parent)
