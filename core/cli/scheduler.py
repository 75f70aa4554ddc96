"""`core scheduler`."""
import click

from core.cli.main import Group


@click.group("scheduler", cls=Group)
def command() -> None:
    """Run, stop and look at the scheduler of periodic tasks."""
