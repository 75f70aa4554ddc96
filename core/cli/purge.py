"""`core purge`: what waits in a queue is not to run."""

import sys

import click

from core.cli.main import Options


@click.command("purge")
@click.option("-q", "--queue", "queue", multiple=True, metavar="NAME",
              help="This queue only; may be given more than once. Without it, every queue of the project.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def command(options: Options, queue: tuple[str, ...], yes: bool) -> None:
    """Drop the calls that wait for a worker. What runs goes on, and what waits for its time stays."""
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("There is nobody to ask whether these calls may go. Add --yes.")
    options.load()
    from core.tasks import queues

    waiting = queues.waiting(queue)
    if not yes:
        there = ", ".join(f"{'?' if count is None else count} of {name}" for name, count in waiting.items())
        click.confirm(f"Drop the waiting calls ({there}) for good?", abort=True)
    for name in waiting:
        click.echo(f"{name} purged {queues.purge(name)}")
