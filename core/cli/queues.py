"""`core queues`: what waits, and for whom."""

from dataclasses import asdict

import click

from core.cli.main import Options
from core.cli.status import timeout_option
from core.cli.table import Row, document, json_option, show, told


@click.command("queues")
@timeout_option
@json_option
@click.pass_obj
def command(options: Options, timeout: float, json: bool) -> None:
    """Count the calls in the queues.

    Calls wait for a worker, wait for their time (delayed), or are held by workers, which run most of them. What the
    broker does not tell is `-`, or null: RabbitMQ and SQS tell how many wait, and nothing else.
    """
    options.load()
    from core.tasks import queues

    found = [asdict(queue) for queue in queues.overview(timeout)]
    if json:
        document(found)
    else:
        show(found, line)


def line(queue: Row) -> str:
    """A queue in one line."""
    counts = "  ".join(f"{told(queue[name])} {name}" for name in ("waiting", "delayed", "held"))
    oldest = "" if queue["oldest"] is None else f"  oldest {queue['oldest']:.0f} s"
    return f"{queue['name']}  {counts}{oldest}  workers {told(queue['workers'])}"
