"""`core info`: what a bug report needs."""

import click

from core.cli.main import Options
from core.cli.table import document, json_option, told


@click.command("info")
@json_option
@click.pass_obj
def command(options: Options, json: bool) -> None:
    """Say what is installed and how it is set.

    Which project this is, and where its settings are from; without passwords, and without asking a broker.
    """
    options.load()
    from core.tasks import about

    found = about.facts()
    if json:
        document(found)
        return
    for name, value in found.items():
        click.echo(f"{name:15} {told(value)}")
