"""The tasks that the fault suite calls, as a user of core.tasks writes them. stock.py has their twins."""

import asyncio
import json
import os
import time
from typing import Any

from fall import fall
from record import record

from core.tasks import current, periodic_task, task


@task(name="faults.mark")
async def mark(key: str) -> str:
    record("begun", key)
    record("ended", key)
    return key


@task(name="faults.nap")
async def nap(key: str, seconds: float) -> str:
    record("begun", key)
    await asyncio.sleep(seconds)
    record("ended", key)
    return key


@task(name="faults.block")
async def block(key: str, seconds: float) -> str:
    """Holds its thread, and so the event loop of its process."""
    record("begun", key)
    time.sleep(seconds)  # noqa: ASYNC251  on purpose
    record("ended", key)
    return key


@task(name="faults.brief", timeout=1)
async def brief(key: str) -> None:
    await nap(key, 60)


@task(name="faults.poison")
async def poison(key: str, how: str) -> None:
    record("begun", key)
    fall(how)


@task(name="faults.echo")
async def echo(key: str, value: Any) -> Any:
    record("begun", key)
    record("ended", key)
    return value


if "FAULTS_OLD_CODE" not in os.environ:

    @task(name="faults.fresh")
    async def fresh(key: str) -> str:
        record("begun", key)
        record("ended", key)
        return key


def planned(name: str, when: float | str) -> None:
    """A periodic task, as every row about the scheduler has its own: an interval in seconds, or cron text."""
    timing: dict[str, Any] = {"cron": when} if isinstance(when, str) else {"interval": when}

    @periodic_task(name=f"faults.{name}", **timing)
    async def run() -> None:
        await mark(f"{name}/{current().id}")


for name, when in json.loads(os.environ.get("FAULTS_SCHEDULE", "{}")).items():
    planned(name, when)
