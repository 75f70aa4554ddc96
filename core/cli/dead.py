"""`core dead`: calls that no worker runs any more, and what becomes of them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from typing import Any

import click

from core.cli.main import Group, Options
from core.cli.table import Row, document, json_option, printable, show

Filters = dict[str, Any]


def filters(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say which calls are meant."""
    for option in (
        click.option("--set-aside", "kind", flag_value="set-aside", help="Only calls that a worker set aside."),
        click.option("--failed", "kind", flag_value="failed", help="Only calls that failed for good."),
        click.option("--queue", metavar="NAME", help="Only calls from this queue."),
        click.option("--task", metavar="NAME", help="Only calls of this task."),
    ):
        function = option(function)
    return function


def selection(function: Callable[..., None]) -> Callable[..., None]:
    """Ids, or `--all` with filters."""
    every = click.option("--all", "every", is_flag=True, help="All calls that the other options leave.")
    return click.argument("ids", nargs=-1, metavar="[ID]...")(every(filters(function)))


def check(ids: tuple[str, ...], every: bool, which: Filters) -> None:
    """Refuse a selection that means nothing."""
    if bool(ids) == every:
        raise click.UsageError("Give ids, or --all.")
    if ids and any(which.values()):
        raise click.UsageError("Filters go with --all, not with ids.")


@contextmanager
def dead_list(options: Options) -> Iterator[Any]:
    """The project's dead list."""
    options.load()
    from core.tasks import celery_app, dead

    with dead.opened(celery_app.get_app()) as found:
        yield found


def tell(call_id: str, outcome: str, good: bool) -> bool:
    """Say what became of one call, on stdout or as an error; whether it was good."""
    click.echo(printable(f"{call_id} {outcome}" if good else f"Error: {call_id} {outcome}."), err=not good)
    return good


@click.group("dead", cls=Group)
def command() -> None:
    """Look at calls that no worker runs any more, put them back or drop them."""


@command.command("list")
@filters
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="How many at most. Default: all.")
@json_option
@click.pass_obj
def list_(options: Options, /, limit: int | None, json: bool, **which: Any) -> None:
    """List the calls on the dead list, the youngest first."""
    with dead_list(options) as dead:
        calls = dead.entries(limit=limit, **which)
        if json:
            document([call.summary() for call in calls])
            return
        show((call.summary() for call in calls), line)


def line(call: Row) -> str:
    """A call in one line."""
    return f"{call['at']}  {call['id']}  {call['task'] or '-'}  queue {call['queue'] or '-'}  {call['reason']}"


@command.command("show")
@click.argument("call_id", metavar="ID")
@json_option
@click.pass_obj
def show_(options: Options, call_id: str, json: bool) -> None:
    """Show one call: why it is here, its headers and its arguments."""
    with dead_list(options) as dead:
        details = dead.find(call_id).details()
    if json:
        document(details)
        return
    if details["args"] is not None:
        del details["message"]  # it says nothing more
    for name, value in details.items():
        told = value if isinstance(value, str) else "-" if value is None else dumps(value, ensure_ascii=False)
        click.echo(printable(f"{name:8} {told}"))


@command.command()
@selection
@click.pass_obj
def retry(options: Options, /, ids: tuple[str, ...], every: bool, **which: Any) -> None:
    """Put calls back into their queues as they were. They are pending again.

    Exits 1 when one of them could not be put back; the others are.
    """
    check(ids, every, which)
    failed = False
    with dead_list(options) as dead:
        for call_id in dead.ids(**which) if every else ids:
            outcome = dead.retry(call_id)
            if not (every and outcome.name == "NOT_LISTED"):  # else somebody was faster
                failed |= not tell(call_id, outcome, outcome.name == "PUT_BACK")
    sys.exit(1 if failed else 0)


@command.command()
@selection
@click.option("--older-than", type=click.IntRange(min=0), metavar="SECONDS", help="Only calls that are there longer.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def purge(
    options: Options, /, ids: tuple[str, ...], every: bool, older_than: int | None, yes: bool, **which: Any
) -> None:
    """Drop calls from the dead list for good, with their arguments.

    Exits 1 when one of the ids was not on it; the others are dropped.
    """
    check(ids, every, {**which, "older_than": older_than})
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("There is nobody to ask whether these calls may go. Add --yes.")
    age = older_than or 0
    with dead_list(options) as dead:
        found = dead.ids(**which, older_than=age) if every else ids
        if found and not yes:
            click.confirm(f"Drop {len(found)} call{'s' * (len(found) != 1)} for good?", abort=True)
        if every:
            click.echo(f"purged {dead.purge(found, older_than=age)}")
            return
        gone = {call_id: bool(dead.purge([call_id])) for call_id in ids}
    for call_id, purged in gone.items():
        tell(call_id, "purged" if purged else "is not on the dead list", purged)
    sys.exit(0 if all(gone.values()) else 1)
