"""`core flower`: Celery's web monitor."""

import sys

import click

from core.cli.main import Options


@click.command("flower")
@click.option(
    "--address",
    metavar="ADDRESS",
    help="The address of this host that it listens on. Default: FLOWER_ADDRESS, else 127.0.0.1.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="The port. Default: FLOWER_PORT, else 5555.",
)
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(options: Options, address: str | None, port: int | None, flower_options: tuple[str, ...]) -> None:
    """Run Flower, the web monitor of Celery; needs the extra `flower`.

    After `--` come Flower's own options, as in: core flower -- --max_tasks=10000 --persistent

    Its API, which its buttons use too, answers 401 until there is a login (FLOWER_BASIC_AUTH=name:password) or
    FLOWER_UNAUTHENTICATED_API=true. With either, it can revoke and queue calls.
    """
    options.load()
    from core.tasks import flower

    sys.exit(flower.run(address=address, port=port, extra=flower_options))
