"""The command group, and what all commands share: the project, verbosity and how an error ends one."""

import sys
from pathlib import Path
from typing import Any

import click

from core import __version__
from core.errors import CoreError

#: The files with the commands.
COMMANDS = (
    "broker", "cancel", "check", "completion", "configuration", "dead", "dev", "flower", "health", "info", "init",
    "purge", "queues", "result", "scheduler", "status", "tasks", "worker",
)  # fmt: skip


class Group(click.Group):
    """A group whose commands end with one line and an exit code, never with a traceback of ours."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        for option in cmd.params:
            if isinstance(option, click.Option):
                option.show_envvar = True
        super().add_command(cmd, name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), n=1) if args else []
            if near:
                raise click.UsageError(f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)
        except CoreError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(
    cls=Group,
    context_settings={"auto_envvar_prefix": "CORE", "show_default": True, "help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="core")
@click.option("--settings", metavar="MODULE[:CLASS]", show_envvar=True, help="The settings to use.")
@click.option("-v", "--verbose", is_flag=True, show_envvar=True, help="Say where the settings come from.")
@click.pass_context
def cli(context: click.Context, settings: str | None, verbose: bool) -> None:
    """Background tasks for async Python applications, run by Celery."""
    context.obj = Options(settings, verbose)


class Options:
    """What stands before the command's name."""

    def __init__(self, settings: str | None, verbose: bool) -> None:
        self.settings = settings
        self.verbose = verbose

    def load(self) -> Any:
        """Find the project and read its settings; say where they come from if asked to."""
        from core import config

        project = config.load_project(self.settings)
        if self.verbose:
            click.echo(f"settings: {project.settings} from {project.source} · project: {project.root}", err=True)
        return project

    def environment(self) -> dict[str, str]:
        """What says the same to another `core` command, as variables."""
        return {"CORE_SETTINGS": self.settings} if self.settings else {}

    def root(self) -> Path:
        """Find the project, and read nothing of it."""
        from core import discovery

        return discovery.find_project(self.settings).root


def main() -> None:
    """Run the `core` command."""
    from importlib import import_module

    for name in COMMANDS:
        cli.add_command(import_module(f"core.cli.{name}").command)
    try:
        cli(prog_name="core")
    except KeyboardInterrupt:
        sys.exit(130)
