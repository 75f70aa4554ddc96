"""`core check`: what would cost calls one day."""

import sys
from dataclasses import asdict

import click

from core.cli.main import Options
from core.cli.table import document, json_option


@click.command("check")
@click.option("--deploy", is_flag=True, help="Judge as for production, whatever the environment is now.")
@json_option
@click.pass_obj
def command(options: Options, deploy: bool, json: bool) -> None:
    """Check the settings and the server, and say what to change. Exits 1 when something is an error."""
    options.load()
    from core.tasks import checks

    found = checks.findings(deploy)
    if json:
        document([asdict(finding) for finding in found])
    else:
        for finding in found:
            click.echo(f"{finding.level}: {finding.name}: {finding.text}")
        if not found:
            click.echo("nothing to change")
    sys.exit(any(finding.level == "error" for finding in found))
