"""`core cancel`: calls that are not to run any more."""

import sys

import click

from core.cli.main import Options


@click.command("cancel")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.pass_obj
def command(options: Options, ids: tuple[str, ...]) -> None:
    """Cancel calls: those that wait never run, and those that run get CancelledError in their bodies.

    Exits 1 when one of them had finished already; the others are cancelled.
    """
    import asyncio

    options.load()
    cancelled = [asyncio.run(cancel(call_id)) for call_id in ids]
    sys.exit(0 if all(cancelled) else 1)


async def cancel(call_id: str) -> bool:
    """Cancel one call, and say what became of it; False when it had finished."""
    from core.tasks import TaskResult

    call = TaskResult.from_id(call_id)
    known = await call.exists()
    cancelled = await call.cancel()
    if not cancelled:
        click.echo(f"Error: {call_id} has finished already.", err=True)
    else:
        click.echo(f"{call_id} cancelled" if known else f"{call_id} is not known here; if it comes, it does not run")
    return cancelled
