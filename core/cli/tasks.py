"""`core tasks`: what can be called, and calling it."""

import sys
from dataclasses import asdict
from json import loads
from typing import Any

import click

from core.cli.main import Group, Options
from core.cli.table import Row, document, json_option, printable, show, told


def read(_context: click.Context, option: click.Parameter, value: str) -> Any:
    """Arguments as JSON: an array, or an object."""
    kind, what = (list, "an array") if option.name == "args" else (dict, "an object")
    try:
        found = loads(value)
    except ValueError as error:
        raise click.BadParameter(f"it is no JSON: {error}.") from None
    if not isinstance(found, kind):
        raise click.BadParameter(f"it is JSON, and not {what}.")
    return found


@click.group("tasks", cls=Group)
def command() -> None:
    """List the tasks of the project, look at one, call one."""


@command.command("list")
@json_option
@click.pass_obj
def list_(options: Options, json: bool) -> None:
    """List the tasks that the project declares. Needs no broker."""
    options.load()
    from core.tasks import catalog

    entries = [asdict(entry) for entry in catalog.entries()]
    if json:
        document(entries)
    else:
        show(entries, line)


def line(entry: Row) -> str:
    """A task in one line."""
    timeout = "no timeout" if entry["timeout"] is None else f"timeout {entry['timeout']:g} s"
    schedule = f"  {entry['schedule']}" if entry["schedule"] else ""
    return (
        f"{entry['name']}  queue {entry['queue']}  {entry['max_retries']} retries  {timeout}  {entry['location']}"
        f"{schedule}"
    )


@command.command("show")
@click.argument("name")
@json_option
@click.pass_obj
def show_(options: Options, name: str, json: bool) -> None:
    """Show the task NAME: its signature and all its options. The last word of the name will do. Needs no broker."""
    options.load()
    from core.tasks import catalog

    details = catalog.details(name)
    if json:
        document(details)
        return
    for word, value in details.items():
        click.echo(f"{word:13} {told(value)}")


@command.command("run")
@click.argument("name")
@click.option("--args", default="[]", callback=read, metavar="JSON", help="Its arguments, as an array.")
@click.option("--kwargs", default="{}", callback=read, metavar="JSON",
              help="Its arguments by name, as an object.")  # fmt: skip
@click.option("--countdown", type=float, metavar="S", help="Seconds to wait before the call may run.")
@click.option("--queue", metavar="NAME", help="Another queue than the task's own.")
@click.option("--wait", is_flag=True, help="Wait for its result, and print that as JSON.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="S", help="Seconds to wait at most. Needs --wait.")
@click.pass_obj
def run_(
    options: Options, /, name: str, args: list[Any], kwargs: dict[str, Any], wait: bool, timeout: float | None,
    **given: Any,
) -> None:  # fmt: skip
    """Queue a call of the task NAME, and print its id. The last word of the name will do.

    With --wait it prints the result in its place, and exits 1 with the error when the call failed.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is how long to --wait.")
    options.load()
    from core.tasks import catalog

    call_id = catalog.call(name, args, kwargs, wait=wait, **given)
    click.echo(call_id, err=wait)
    if wait:
        value, error = catalog.outcome(call_id, timeout)
        finish(value, error)


def finish(value: Any, error: Exception | None) -> None:
    """Print how a call has ended; exit 1 when it failed."""
    if error is None:
        document(value)
        return
    for note in getattr(error, "__notes__", ()):
        click.echo(note, err=True)
    click.echo(printable(f"Error: {type(error).__name__}: {error}"), err=True)
    sys.exit(1)
