"""How commands print: a line a row, which scripts can read; on a terminal with `rich`, a table."""

import sys
from collections.abc import Callable, Iterable, Mapping
from json import dumps
from typing import Any

import click

Row = Mapping[str, Any]

json_option = click.option("--json", is_flag=True, help="One JSON document on stdout.")


def document(value: Any) -> None:
    """Print the one JSON document that `--json` asks for."""
    click.echo(dumps(value, default=str))


def printable(text: object) -> str:
    """Text from a message that anybody may have written, in one line that does nothing to the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def told(value: object) -> str:
    """A value in words: a list with commas, and `-` for what is not known or not there."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return printable("-" if value is None or value == "" else value)


def show(rows: Iterable[Row], line: Callable[[Row], str]) -> None:
    """Print rows.

    Args:
        rows: What each has, by the name of its column.
        line: A row as a line, for everything that is no terminal, and for a terminal that is too narrow.
    """
    if sys.stdout.isatty():
        rows = list(rows)
        if _draw(rows):
            return
    for row in rows:
        click.echo(printable(line(row)))


def _draw(rows: list[Row]) -> bool:
    """Print a table; False where it does not fit, or `rich` is not installed."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table, console = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False), Console()
    for name in rows[0] if rows else ():
        is_number = all(isinstance(row[name], int | float) and not isinstance(row[name], bool) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(Text(told(value)) for value in row.values()))
    if console.measure(table, options=console.options.update(width=10_000)).maximum > console.width:
        return False
    console.print(table)
    return True
