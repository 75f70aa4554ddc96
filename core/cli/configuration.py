"""`core config`: the Celery configuration that these settings make."""

import json

import click

from core.cli.main import Options


@click.command("config")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_obj
def command(options: Options, as_json: bool) -> None:
    """Print the generated Celery configuration, with secrets masked."""
    options.load()
    from core.tasks import celery_app

    shown = celery_app.masked_configuration()
    if as_json:
        click.echo(json.dumps(shown, default=str, indent=2))
        return
    for key, value in sorted(shown.items()):
        click.echo(f"{key} = {value!r}")
