"""Tasks in a web application: what calls need is open before the first request, and closed after the last one."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from core import config
from core.errors import BrokerUnreachable, TasksNotFound
from core.tasks import celery_app, listener, publish, sender
from core.tasks.poller import results

logger = logging.getLogger("core.tasks")

#: Seconds that broker and result store have for their answer when an application starts.
PATIENCE = 2.0

#: How many applications have a loop's connections open.
_open: "WeakKeyDictionary[asyncio.AbstractEventLoop, int]" = WeakKeyDictionary()


@asynccontextmanager
async def lifespan(app: object = None) -> AsyncIterator[None]:
    """Open what this loop's calls need, and close it at the end: FastAPI's, Starlette's and Litestar's `lifespan=`.

    In a lifespan of your own write `async with lifespan(app):` around its `yield`. The project's task modules are
    imported, and the connections for calls and for results are opened, so that the first request does not pay for
    them. A broker that does not answer within 2 s is a warning: the application starts, and calls raise until it is
    there. With `task_enabled` False nothing is opened.

    Args:
        app: The application; it is not looked at.

    Raises:
        ConfigurationError: The settings or a task module cannot be used, or the broker does not let us in.
    """
    loop = asyncio.get_running_loop()
    _open[loop] = _open.get(loop, 0) + 1
    try:
        if config.get_settings().task_enabled:
            await _prepare()
        yield
    finally:
        _open[loop] -= 1
        if not _open[loop]:
            del _open[loop]
            await sender.close()
            await listener.close()


async def _prepare() -> None:
    await asyncio.to_thread(_import_tasks)
    try:
        await publish.prepare(PATIENCE)
        await _listen()
    except BrokerUnreachable as error:
        logger.warning("%s The application starts without it.", error)


def _import_tasks() -> None:
    try:
        celery_app.import_tasks()
    except TasksNotFound:
        if not any(celery_app.declared()):  # the application's own module may declare them
            raise
    celery_app.get_app()


async def _listen() -> None:
    found = await results()
    if isinstance(found, listener.Listener):
        found.lasting = True
        try:
            async with asyncio.timeout(PATIENCE):
                await found.command("PING")
        except TimeoutError:
            raise BrokerUnreachable("The result backend", f"no answer within {PATIENCE:g} s",
                                    setting="TASK_RESULT_BACKEND_URL") from None  # fmt: skip
