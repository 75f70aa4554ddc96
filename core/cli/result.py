"""`core result`: where one call is, how far, and what came of it."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from json import dumps
from typing import Any

import click

from core.cli.main import Options
from core.cli.table import document, json_option, printable

#: Is given a `core.tasks.Progress`.
Show = Callable[[Any], object]


@click.command("result")
@click.argument("call_id", metavar="ID")
@click.option("--follow", is_flag=True, help="Wait for its end, and show its progress meanwhile.")
@json_option
@click.pass_obj
def command(options: Options, call_id: str, follow: bool, json: bool) -> None:
    """Show one call: its status and progress, then its result, or its error with the worker's traceback.

    Exits 1 when the call has failed, or when nothing is known of it.
    """
    options.load()
    found = asyncio.run(_found(call_id, follow, json))
    if json:
        document(found)
    else:
        _tell(found)
    sys.exit(found["status"] == "failed")


async def _found(call_id: str, follow: bool, json: bool) -> dict[str, Any]:
    """What is known of a call, at its end if it is followed."""
    from core.tasks.poller import results
    from core.tasks.result import TaskResult, described

    store = await results()
    meta = await store.read(call_id)
    if follow:
        with _shown(json) as show:
            async for update in TaskResult.from_id(call_id).progress():
                show(update)
        meta = await store.read(call_id)
    return described(call_id, meta)


@contextmanager
def _shown(json: bool) -> Iterator[Show]:
    """Show progress: with a bar on a terminal, else line by line, and not at all beside a document."""
    if json or not sys.stdout.isatty() or find_spec("rich") is None:
        yield bool if json else lambda update: click.echo(_line(asdict(update)))
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    text = TextColumn("{task.description}", markup=False)
    with Progress(BarColumn(), TaskProgressColumn(), text, transient=True) as bar:
        row = bar.add_task("", total=None)
        yield lambda update: bar.update(
            row, completed=update.done, total=update.total, description=printable(update.message)
        )


def _line(progress: dict[str, Any]) -> str:
    done, total = progress["done"], progress["total"]
    share = f" of {total:g} ({min(100 * done / total, 100):.0f} %)" if total else ""
    return printable(f"{done:g}{share} {progress['message']}".rstrip())


def _tell(found: dict[str, Any]) -> None:
    for name in ("id", "task", "status"):
        click.echo(printable(f"{name:8} {found[name] or '-'}"))
    if found["progress"]:
        click.echo(f"progress {_line(found['progress'])}")
    if found["status"] == "success":
        click.echo(printable(f"result   {dumps(found['result'], ensure_ascii=False)}"))
    if found["error"]:
        click.echo(printable(f"error    {found['error']}"))
    for line in (found["traceback"] or "").splitlines():
        click.echo(printable(line))
