"""`make demo`: the page, walked through in a terminal with a server, a worker and a scheduler of its own."""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from types import FrameType
from typing import Any

from support import Process, Project, eventually, project, wait_until

WIDTH = min(shutil.get_terminal_size((100, 20)).columns, 110)
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


def title(text: str) -> None:
    print(f"\n{paint(text, '1')}", flush=True)


def did(text: str) -> None:
    print(f"  {paint(text, '36')}", flush=True)


def came(text: str) -> None:
    for line in text.splitlines():
        print(f"    → {line}"[:WIDTH], flush=True)


async def outcome(result: Awaitable[Any]) -> str:
    """What came back of a call, the error included."""
    began = time.perf_counter()
    try:
        said = repr(await result)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    return f"{said}  ({time.perf_counter() - began:.2f} s)"


def taken(marks: Path) -> list[str]:
    """The marks that a task has left, which are gone then."""
    lines = marks.read_text().splitlines()
    marks.unlink()
    return lines


async def calls(marks: Path, worker: Process) -> None:
    from src.apps.emails.tasks import send_email, send_urgent_notification
    from src.apps.probe.tasks import nap, permanent, risky, slow

    title("A call and its result")
    did('result = await send_email.delay("user@example.com", "Hello", "Welcome!")')
    result = await send_email.delay("user@example.com", "Hello", "Welcome!")
    did("await result.get()")
    came(await outcome(result.get(timeout=20)))

    title("A countdown")
    did('await send_email.delay("user@example.com", "Hello", "Later", countdown=2)')
    result = await send_email.delay("user@example.com", "Hello", "Later", countdown=2)
    came(f"{await result.status()} at first, then {await outcome(result.get(timeout=20))}")

    title("Another queue: @task(queue='high-priority')")
    did('await send_urgent_notification.delay(42, "Server room is warm")')
    result_urgent = await send_urgent_notification.delay(42, "Server room is warm")
    came(await outcome(result_urgent.get(timeout=20)))
    wait_until(lambda: "notified 42" in worker.text(), 10, "the worker's own line about it")
    came("the worker printed: notified 42: Server room is warm")

    title("A TaskError is retried, to the end: max_retries=2, retry_delay=0.1")
    did("await risky.delay(...)  # raises TaskError in every attempt")
    came(await outcome((await risky.delay(str(marks))).get(timeout=20)))
    came(", ".join(taken(marks)))

    title("Any other error is not")
    did("await permanent.delay(...)  # raises OwnError, max_retries=3")
    came(await outcome((await permanent.delay(str(marks))).get(timeout=20)))
    came(", ".join(taken(marks)))
    line = next(line for line in worker.text().splitlines() if "was not retried" in line)
    came("the worker's log: …" + line.partition("]")[2])

    title("A timeout: @task(timeout=0.3) around 30 s of waiting")
    did("await slow.delay()")
    came(await outcome((await slow.delay()).get(timeout=20)))

    title("The four status words")
    waiting, running = await nap.delay(0, countdown=600), await nap.delay(30)
    did("await result.status()")

    async def begun() -> bool:
        return await running.status() != "pending"

    await eventually(begun, 20, "a worker runs the call")
    failed = await permanent.delay()
    await outcome(failed.get(timeout=20))
    for what, handle in (
        ("a call with a countdown", waiting),
        ("a call that a worker runs", running),
        ("send_email from above", result),
        ("one that raised", failed),
    ):
        came(f"{await handle.status():8} {what}")
    did("await result.cancel()  # the first two")
    await waiting.cancel()
    await running.cancel()
    came(await outcome(waiting.get(timeout=20)))
    came(await outcome(running.get(timeout=20)))


def schedule(made: Project, worker: Process) -> None:
    title("A periodic task: @periodic_task(interval=1)")
    did("core scheduler start")
    scheduler = made.start("core", "scheduler", "start")
    scheduler.wait_for("scheduling ")
    came(last_line(scheduler, "scheduling "))
    wait_until(lambda: worker.text().count("tick ") >= 2, 20, "the interval task ticked twice")
    ticks = [line for line in worker.text().splitlines() if line.startswith("tick ")]
    came("the worker printed: " + ", ".join(ticks[:3]))
    did("core scheduler stop")
    stopped = made.run("core", "scheduler", "stop")
    came(f"{stopped.stdout.strip()}, exit {stopped.returncode}; the scheduler's own exit code: {scheduler.wait()}")


def last_line(process: Process, text: str) -> str:
    line = next(line for line in reversed(process.text().splitlines()) if text in line)
    return line.partition(" INFO ")[2] or line


def walk(made: Project) -> None:
    title("The development server: nothing is configured, so `core` starts one for this project")
    did("core broker start")
    came(made.run("core", "broker", "start").stdout.strip())

    title("A worker")
    did("core runworker")
    worker = made.worker()
    came(last_line(worker, "serving "))

    os.chdir(made.root)
    sys.path.append(str(made.root))
    asyncio.run(calls(made.root.parent / "marks", worker))
    schedule(made, worker)

    title("Everything stops again")
    did("SIGTERM to the worker, then: core broker stop")
    came(f"the worker's exit code: {worker.stop()}")
    came(made.run("core", "broker", "stop").stdout.strip())


def main() -> None:
    began = time.monotonic()

    def interrupted(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    before = os.getcwd()
    with project() as made:
        print(f"core.tasks: the page's calls, for real, in a copy of tests/example at {made.root}")
        try:
            walk(made)
        finally:
            os.chdir(before)
    print(f"\ndone in {time.monotonic() - began:.0f} s; nothing is left running.")


if __name__ == "__main__":
    main()
