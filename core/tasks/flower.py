"""Run Flower, Celery's web monitor, for this project's application.

Flower needs nothing but an application. What it leaves open is settled here: who can reach it, options that it
would pass over in silence, and the events of workers, which it asks for only five seconds after its start.
"""

import errno
import ipaddress
import logging
import os
import signal
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from core import config, embedded
from core.errors import BrokerUnreachable, ConfigurationError
from core.tasks import celery_app, inspection, log
from core.tasks.worker import prepared_app

logger = logging.getLogger("core.tasks")


def run(*, address: str | None = None, port: int | None = None, extra: Sequence[str] = ()) -> int:
    """Run Flower in this process until it is stopped, and return its exit code.

    Args:
        address: Where it listens; None takes what Flower's own configuration says, else 127.0.0.1.
        port: None takes what Flower's own configuration says, else 5555.
        extra: More options, as Flower takes them.

    Raises:
        ConfigurationError: Flower is not installed, does not take the options or cannot listen, or the project,
            the broker's URL or its password cannot be used.
    """
    try:
        from flower import command as flower
    except ImportError as error:
        raise ConfigurationError("core flower needs Flower: pip install 'core-tasks[flower]'.") from error
    app = prepared_app()
    log.log_to_stderr("INFO")
    words = [f"--address={address}"] * (address is not None) + [f"--port={port}"] * (port is not None)
    settings = _settle(flower, [*words, *extra])
    is_closed = settings.basic_auth or settings.auth or settings.unix_socket
    if not is_closed and not is_loopback(settings.address):
        logger.warning(
            "Flower asks nobody for a password, and listens on %s: who reaches it sees arguments and results, and with "
            "FLOWER_UNAUTHENTICATED_API=true can revoke and queue calls. Set FLOWER_BASIC_AUTH=name:password.",
            settings.address or "every address of this host",
        )
    _ask_for_events(app, settings)
    # Flower asks Celery's current application for results.
    app.set_current()
    app.set_default()
    try:
        _start(flower, app, [*words, *extra])
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another process has the port. Give another --port" if taken else error.strerror
        raise ConfigurationError(f"Flower cannot listen on {settings.address}:{settings.port}: {why}.") from error
    except ValueError as error:  # a certificate that is not there
        raise ConfigurationError(f"Flower does not take its options: {error}.") from error
    except SystemExit as end:
        return 2 if end.code else 0  # it has said what is wrong with its options
    finally:
        # What its threads wait for is waited for, unless somebody asks once more.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(130))
    return 0


def is_loopback(address: str) -> bool:
    """Whether only this host reaches the address; an empty one is every address."""
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _settle(flower: Any, words: Sequence[str]) -> Any:
    """Flower's settings from its variables, its file and these words, which come last."""
    from tornado.options import Error

    settings = flower.options
    for word in words:
        name = word.lstrip("-").partition("=")[0]
        if not word.startswith("--"):  # which may be a password
            raise ConfigurationError("Flower takes its options as --name=value, and one of these words is none.")
        if name not in settings:
            near = get_close_matches(name.replace("-", "_"), settings, n=1)
            meant = f" Did you mean --{near[0]}?" * bool(near)
            raise ConfigurationError(f"Flower has no option --{name}.{meant}")
    settings.address = "127.0.0.1"
    try:
        flower.apply_env_options()
        flower.apply_options("core flower", words)
    except (Error, ValueError, OSError) as error:
        raise ConfigurationError(f"Flower does not take its options: {error}.") from error
    return settings


def _ask_for_events(app: Any, settings: Any) -> None:
    """Have the workers tell of their calls from now on; what runs before Flower listens is not seen."""
    try:
        connection = celery_app.producer().connection
        if not inspection.can_ask(connection):
            raise ConfigurationError(f"Flower sees nothing on {embedded.broker_url()}: it has no messages to all.")
        if config.get_settings().remote_control == "off":
            logger.warning(
                "task_remote_control is off: workers answer nobody, and Flower sees those alone that run with --events."
            )
        elif settings.enable_events:
            app.control.enable_events(connection=connection)
    except BrokerUnreachable as error:
        logger.warning("%s Flower starts without it, and joins by itself.", error)
    finally:
        celery_app.drop_producer()


def _start(flower: Any, app: Any, words: Sequence[str]) -> None:
    """Run `celery flower`, with our application."""
    from celery.bin.base import CLIContext
    from celery.bin.celery import celery
    from click import Context

    parent = Context(celery, obj=CLIContext(app=app, no_color=None, workdir=None, quiet=False))
    with flower.flower.make_context("flower", ["--", *words], parent=parent) as context:
        flower.flower.invoke(context)
