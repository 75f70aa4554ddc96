"""`core config`: the Celery configuration that these settings make."""

import click

from core.cli.main import Options
from core.cli.table import document, json_option


@click.command("config")
@json_option
@click.pass_obj
def command(options: Options, json: bool) -> None:
    """Print the generated Celery configuration, with secrets masked."""
    options.load()
    from core.tasks import celery_app

    shown = celery_app.masked_configuration()
    if json:
        document(shown)
        return
    for key, value in sorted(shown.items()):
        click.echo(f"{key} = {value!r}")
