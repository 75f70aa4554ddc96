"""`core init`, `core dev` and `core runworker --reload`: from nothing to a page that runs, and again at each change."""

import signal
import sys
from pathlib import Path

from support import Process, Project, wait_until

from core.cli.init import FILES


def served(process: Process, times: int) -> None:
    wait_until(lambda: process.text().count("serving default") == times, 30, f"it serves for the {times}. time")


def test_what_init_writes_runs_at_once_and_again_when_the_code_changes(empty: Project) -> None:
    assert empty.run("core", "init").returncode == 0
    tasks = empty.root / "src/apps/emails/tasks.py"
    dev = empty.start("core", "dev", TASK_WORKER_PROCESSES="1")
    served(dev, 1)

    first = empty.run(sys.executable, "call.py")
    tasks.write_text(tasks.read_text().replace('"sent": True', '"sent": False'))
    served(dev, 2)
    second = empty.run(sys.executable, "call.py")

    assert first.stdout.endswith("{'sent': True}\n"), first.stderr
    assert second.stdout.endswith("{'sent': False}\n"), second.stderr
    dev.wait_for("scheduler | ")
    assert "\nworker    | " in dev.text()
    assert "src/apps/emails/tasks.py changed: starting again" in dev.text()
    dev.signal(signal.SIGINT)
    assert dev.wait() == 0
    assert empty.run("core", "broker", "status").returncode == 3


def test_a_mistake_in_the_code_waits_for_the_next_change(fresh: Project) -> None:
    fresh.write(
        "src/apps/mine/tasks.py", "from core.tasks import task\n\n\n@task\nasync def one() -> int:\n    return 1\n"
    )
    worker = fresh.start("core", "runworker", "--reload", "--concurrency", "1")
    served(worker, 1)

    fresh.write("src/apps/mine/tasks.py", "def no(:\n")
    worker.wait_for("worker ended with 2: it starts again when a file changes")
    fresh.write("src/apps/mine/tasks.py", "")
    served(worker, 2)

    assert worker.stop() == 0


def test_a_running_call_holds_up_no_reload_and_runs_again(fresh: Project) -> None:
    text = "import asyncio\nfrom core.tasks import task\n\n\n@task\nasync def waits():\n    await asyncio.sleep({})\n"
    fresh.write("src/apps/mine/tasks.py", text.format(60))
    worker = fresh.start("core", "runworker", "--reload", "--concurrency", "1")
    served(worker, 1)
    queued = fresh.caller("from src.apps.mine.tasks import waits\nprint(waits.delay_sync().id)").stdout.strip()
    ask = f"print(asyncio.run(TaskResult.from_id({queued!r}).status()))"
    status = f"import asyncio\nfrom core.tasks import TaskResult\n{ask}"
    wait_until(lambda: "running" in fresh.caller(status).stdout, 20, "it runs")

    fresh.write("src/apps/mine/tasks.py", text.format(0))

    worker.wait_for(f"waits[{queued}] success", timeout=30)
    assert worker.stop() == 0


def test_init_keeps_what_is_there(empty: Project) -> None:
    empty.write("shop/src/settings.py", "mine = True\n")

    done = empty.run("core", "init", "shop")

    assert done.returncode == 0
    assert f"kept    {Path('shop/src/settings.py')}\n" in done.stdout
    assert (empty.root / "shop/src/settings.py").read_text() == "mine = True\n"
    assert all((empty.root / "shop" / name).is_file() for name in FILES)
