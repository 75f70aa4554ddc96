"""`celery worker`, as a command whose options are read once, however many processes then run it.

The other commands of Celery stay away: importing those would take a tenth of a process's memory.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any


class CeleryWorker:
    """The command with its options; click's UsageError tells of one that there is not, or that does not take its value.

    Args:
        app: The Celery application.
        options: As they follow `celery worker`.
    """

    def __init__(self, app: Any, options: Sequence[str]) -> None:
        from celery.bin.base import CLIContext
        from celery.bin.worker import worker

        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("-n", "--hostname")
        named, options = parser.parse_known_args(options)
        self._hostname: str | None = named.hostname
        worker.params.extend([*app.user_options["worker"], *app.user_options["preload"]])
        context = CLIContext(app=app, no_color=None, workdir=None, quiet=True)
        self._context = worker.make_context("celery worker", options, obj=context)

    def run(self, concurrency: int | None = None, number: int = 0) -> int:
        """Run it in this process, and return its exit code.

        Args:
            concurrency: Calls at once, where no option says how many; None is what Celery is configured with.
            number: Which of the worker's processes this is, from 1 on; 0 is the only one.
        """
        from celery.bin.worker import HOSTNAME
        from click.core import ParameterSource
        from click.exceptions import Exit

        # Two workers on one host are ordinary, and two nodes of one name answer for each other.
        name, at, host = (self._hostname or f"worker-{os.getpid()}@%h").partition("@")
        if self._hostname and number:
            name += f"-{number}"
        context = self._context
        context.params["hostname"] = HOSTNAME.convert(f"{name}{at}{host}", None, context)
        if concurrency and context.get_parameter_source("concurrency") is not ParameterSource.COMMANDLINE:
            context.params["concurrency"] = concurrency
        try:
            with context:
                context.command.invoke(context)
        except Exit as end:
            return end.exit_code or 0
        return 0
