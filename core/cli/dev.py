"""`core dev`: everything that a project needs while it is written, in one terminal."""

import sys

import click

from core.cli.main import Options


@click.command("dev")
@click.option("--no-scheduler", is_flag=True, help="Run a worker alone.")
@click.pass_obj
def command(options: Options, no_scheduler: bool) -> None:
    """Run worker and scheduler, and start them again when the code changes. Ctrl-C ends both.

    Where no Redis is configured, the development server is started first, and stopped in the end.
    """
    project = options.load()
    from core import embedded, reloader

    found = embedded.find(project.root) if embedded.is_default() else None
    if embedded.is_default():
        embedded.start()
    commands = {"worker": [sys.argv[0], "runworker"]}
    if not no_scheduler:
        commands["scheduler"] = [sys.argv[0], "scheduler", "start"]
    try:
        code = reloader.run(commands, project.root, options.environment(), labels=True)
    finally:
        if embedded.is_default() and found is None:
            embedded.stop(project.root)
    sys.exit(code)
