"""`core broker`: the development server of this project."""

import click

from core.cli.main import Group, Options
from core.cli.table import document, json_option


@click.group("broker", cls=Group)
def command() -> None:
    """Start, stop and look at the development server."""


@command.command()
@click.pass_obj
def start(options: Options) -> None:
    """Start it, if it is not up. Whatever needs a broker does so by itself."""
    from core import embedded

    options.load()
    server = embedded.start()
    click.echo(f"{server.version} · pid {server.pid} · {server.socket}")


@command.command()
@click.pass_obj
def stop(options: Options) -> None:
    """Stop it. Its data stays, and comes back with the next start."""
    from core import embedded

    server = embedded.stop(options.load().root)
    click.echo(f"stopped (pid {server.pid})")


@command.command()
@json_option
@click.pass_obj
def status(options: Options, json: bool) -> None:
    """Say whether it is up. Exits 3 when it is not."""
    from core import embedded

    server = embedded.find(options.load().root)
    if json:
        found: dict[str, object] = {"running": server is not None}
        if server:
            found |= {"pid": server.pid, "version": server.version, "socket": str(server.socket)}
        document(found)
    elif server:
        click.echo(f"running · {server.version} · pid {server.pid} · {server.socket}")
    else:
        click.echo("not running")
    raise SystemExit(0 if server else 3)
