"""`core status`: which workers there are, and what they do."""

import sys
from dataclasses import asdict

import click

from core.cli.main import Options
from core.cli.table import Row, document, json_option, show, told

timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=1.0, metavar="S",
    help="Seconds in which workers have to answer.",
)  # fmt: skip


@click.command("status")
@timeout_option
@json_option
@click.pass_obj
def command(options: Options, timeout: float, json: bool) -> None:
    """Ask the workers what they do. Exits 69 when none answers."""
    options.load()
    from core.tasks import inspection

    workers = [asdict(worker) for worker in inspection.workers(timeout)]
    if json:
        document(workers)
    else:
        show(workers, line)
    if not workers:
        click.echo(
            f"Error: No worker answers within {timeout:g} s: none runs, or task_remote_control is off (on SQS always).",
            err=True,
        )
    sys.exit(0 if workers else 69)


def line(worker: Row) -> str:
    """A worker in one line."""
    return (
        f"{worker['name']}  {worker['pool']}  {worker['concurrency']} at once  {worker['running']} running  "
        f"{worker['reserved']} reserved  queues {told(worker['queues'])}  since {worker['since']}  pid {worker['pid']}"
    )
