"""`make bench`: what starting, importing, calling and waiting cost, in one run, as ratios where Celery has a twin.

Absolute numbers are this machine's; the ratios hold on others.
"""

import asyncio
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from support import CORE, Project, clean_environment, project

ROUNDS = 5


def median(measure: Callable[[], float], rounds: int = ROUNDS) -> float:
    return statistics.median(measure() for _ in range(rounds))


def wall(*command: str, cwd: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=cwd, env=clean_environment(), check=True, capture_output=True)
    return time.perf_counter() - began


def row(what: str, value: str, target: str) -> None:
    print(f"{what:58} {value:>24}   {target}", flush=True)


def memory(pid: int) -> float:
    """MiB of a process and its children that are not shared with others."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    total = 0
    for one in pids:
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def server_start(made: Project) -> float:
    from core import embedded

    subprocess.run([CORE, "broker", "stop"], cwd=made.root, env=clean_environment(), capture_output=True)
    began = time.perf_counter()
    embedded.ensure(made.root)
    return time.perf_counter() - began


def worker_start(made: Project) -> float:
    began = time.perf_counter()
    worker = made.worker()
    took = time.perf_counter() - began
    worker.stop()
    return took


async def publishing() -> tuple[float, float]:
    """Seconds a call: ours awaited one by one, and Celery's own, alternating."""
    from src.apps.probe.tasks import ignored

    ours, theirs = [], []
    celery_task = ignored.celery_task
    await ignored.delay("/dev/null")
    await asyncio.to_thread(celery_task.apply_async, ("/dev/null",))
    for _ in range(ROUNDS * 2):
        began = time.perf_counter()
        for _ in range(200):
            await ignored.delay("/dev/null")
        ours.append((time.perf_counter() - began) / 200)
        began = time.perf_counter()
        for _ in range(200):
            celery_task.apply_async(("/dev/null",))
        theirs.append((time.perf_counter() - began) / 200)
    return statistics.median(ours), statistics.median(theirs)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def latency() -> tuple[list[float], list[float]]:
    """Seconds from call to result in hand: ours, and Celery's blocking get(), alternating."""
    from src.apps.probe.tasks import add

    ours: list[float] = []
    theirs: list[float] = []
    celery_task = add.celery_task

    def stock() -> None:
        for _ in range(50):
            began = time.perf_counter()
            celery_task.apply_async((1, 2)).get(timeout=20)
            theirs.append(time.perf_counter() - began)

    for _ in range(ROUNDS * 2):
        for _ in range(50):
            began = time.perf_counter()
            await (await add.delay(1, 2)).get(timeout=20)
            ours.append(time.perf_counter() - began)
        await asyncio.to_thread(stock)
    return ours, theirs


def main() -> None:
    logging.disable(logging.WARNING)  # the development server says each time that it was started
    with project() as made:
        os.chdir(made.root)
        sys.path.append(str(made.root))
        print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, medians of {ROUNDS} or more\n")
        row("core --help", f"{median(lambda: wall(CORE, '--help', cwd=made.root)):.3f} s", "< 0.2 s")
        bare = median(lambda: wall(sys.executable, "-c", "pass", cwd=made.root))
        imported = median(lambda: wall(sys.executable, "-c", "import core.tasks", cwd=made.root)) - bare
        row("import core.tasks", f"{imported:.3f} s", "< 0.35 s")
        row("cold start of the development server", f"{median(lambda: server_start(made)):.3f} s", "< 0.2 s")
        row("worker ready (prefork, 2 processes)", f"{median(lambda: worker_start(made), 3):.2f} s", "< 2.5 s")
        worker = made.worker("--concurrency", "2")
        row("memory of an idle worker and its 2 children (PSS)", f"{memory(worker.pid):.0f} MiB", "")
        row("memory of its main process alone (RSS)", f"{resident(worker.pid):.0f} MiB", "")
        ours, theirs = asyncio.run(publishing())
        row("await f.delay()", f"{ours * 1e3:.3f} ms", "")
        row("celery_task.apply_async()", f"{theirs * 1e3:.3f} ms", "")
        row("ratio", f"{ours / theirs:.2f}", "≤ 1.5")
        worker.stop()
        made.worker("--concurrency", "2")
        mine, stock = asyncio.run(latency())
        for name, share in (("median", 0.5), ("p99", 0.99)):
            a, b = percentile(mine, share), percentile(stock, share)
            row(f"call to result, {name}: ours, Celery's blocking get()", f"{a * 1e3:.2f} ms, {b * 1e3:.2f} ms", "")
            row("ratio", f"{a / b:.2f}", "≤ 1.1")


if __name__ == "__main__":
    main()
