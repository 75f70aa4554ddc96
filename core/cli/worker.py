"""`core runworker`."""

import gc
import sys

import click

from core.cli.main import Options

POOLS = ("asyncio", "prefork", "threads")


def _positive(_context: click.Context, _parameter: click.Parameter, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise click.BadParameter(f"{value} is not a number from 1 on.")
    return value


@click.command("runworker", context_settings={"ignore_unknown_options": False})
@click.option(
    "-q",
    "--queue",
    "queue",
    multiple=True,
    metavar="NAME",
    help="Serve this queue only; may be given more than once. Without it, every queue of the project.",
)
@click.option(
    "-c",
    "--concurrency",
    type=int,
    callback=_positive,
    metavar="N",
    help="Calls at once, in all. Default: task_worker_concurrency, else 100 (asyncio), the cores (prefork) or "
    "50 (threads).",
)
@click.option(
    "--processes",
    type=int,
    callback=_positive,
    metavar="P",
    help="Processes that the calls are spread over (asyncio). Default: task_worker_processes, else the cores.",
)
@click.option(
    "--pool",
    type=click.Choice(POOLS),
    help="asyncio: coroutines share event loops. prefork: a process a call, for work that computes or may crash. "
    "threads: a thread a call, for plain functions that wait. Default: task_worker_pool, else asyncio.",
)
@click.option(
    "--loglevel",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    help="The least level that is logged, on stderr.",
)
@click.option(
    "--burst",
    is_flag=True,
    help="Work off what is there, then exit 0, whether calls failed or not. Calls that wait for their time (countdown, "
    "eta, next attempt) stay for the next worker. Exits 69 where the broker does not answer.",
)
@click.option("--reload", is_flag=True, help="Start again when the project's code changes.")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Serve metrics for Prometheus on this port; needs the extra `metrics`. Default: none.",
)
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="The address that they are served on. They name tasks and queues.",
)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(
    options: Options,
    queue: tuple[str, ...],
    concurrency: int | None,
    processes: int | None,
    pool: str | None,
    loglevel: str,
    burst: bool,
    reload: bool,
    metrics_port: int | None,
    metrics_host: str,
    celery_options: tuple[str, ...],
) -> None:
    """Run a worker until it is stopped.

    The first Ctrl-C or SIGTERM lets running calls finish, a second one puts them back and quits.
    After `--` come options of `celery worker`, as in: core runworker -- --max-tasks-per-child 100
    """
    if burst and reload:
        raise click.UsageError("--burst ends when nothing is left, and --reload never: choose one of them.")
    if reload:
        from core import reloader

        words, root = [word for word in sys.argv if word != "--reload"], options.load().root
        sys.exit(reloader.run({"worker": words}, root, {"CORE_RUNWORKER_RELOAD": ""}, labels=False))
    gc.disable()  # what is imported from here on stays, and looking for garbage in it takes a sixth of the start
    options.load()
    from core.tasks import worker

    sys.exit(
        worker.run(
            queues=queue,
            concurrency=concurrency,
            pool=pool,
            processes=processes,
            loglevel=loglevel.upper(),
            metrics_port=metrics_port,
            metrics_host=metrics_host,
            once=burst,
            extra=celery_options,
        )
    )
