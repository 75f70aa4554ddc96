"""`core health`: whether something turns, for whoever restarts it when it does not."""

from pathlib import Path

import click

from core.cli.main import Group, Options

max_age_option = click.option(
    "--max-age", type=click.FloatRange(min=0, min_open=True), default=60.0, metavar="S",
    help="Seconds ago that it has turned, at most.",
)  # fmt: skip


@click.group("health", cls=Group)
def command() -> None:
    """Say whether worker, scheduler or broker are well.

    Exits 0 when they are, 1 when they are not, 3 when nothing runs, 69 when the broker does not answer.
    """


@command.command()
@max_age_option
@click.pass_obj
def worker(options: Options, max_age: float) -> None:
    """Look whether the workers of this project on this host turn.

    No broker is asked: one that is away is not their fault.
    """
    from core import health

    click.echo(health.worker(options.root(), max_age))


@command.command()
@max_age_option
@click.option("--pidfile", type=click.Path(dir_okay=False, path_type=Path), help="The scheduler's pidfile.")
@click.pass_obj
def scheduler(options: Options, max_age: float, pidfile: Path | None) -> None:
    """Look whether the scheduler of this project on this host turns, leading or standing by. Asks no broker."""
    from core import health
    from core.pidfile import default_path

    click.echo(health.scheduler(pidfile or default_path(options.root(), "scheduler.pid"), max_age))


@command.command()
@click.pass_obj
def broker(options: Options) -> None:
    """Ask the broker whether it is there. Starts no development server."""
    options.load()
    from core import config, ping

    where = ping.broker()
    if where is None:
        from core.tasks import celery_app

        celery_app.producer()
        where = str(config.get_settings().broker_url)
    click.echo(f"healthy: {where} answers")
