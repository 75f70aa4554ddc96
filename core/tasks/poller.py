"""Asks for results where Celery keeps them in what is no Redis: nothing tells of a new one, so again and again."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, TypeVar

from core.broker_error import reason
from core.errors import BrokerUnreachable, ConfigurationError
from core.tasks import bridge, celery_app
from core.tasks.listener import ANSWER, FINAL, Listener, listener
from core.tasks.stand_in import StandIn, stand_in

T = TypeVar("T")

#: Seconds between two looks: at first, and at most.
OFTEN, SELDOM = 0.05, 1.0


async def results() -> "Listener | Poller | StandIn":
    """What the running loop asks for results."""
    if (instead := stand_in()) is not None:
        return instead
    found = await listener()
    return Poller(found) if found.elsewhere else found


class Poller:
    """What `Listener` does, by way of Celery's own result backend, in a few threads."""

    def __init__(self, cancellations: Listener) -> None:
        self._cancellations = cancellations

    async def read(self, task_id: str) -> dict[str, Any] | None:
        """What is stored of a call now, or None.

        Raises:
            BrokerUnreachable: The store does not answer.
            ConfigurationError: There is none, or its driver is not installed.
        """

        def stored(backend: Any) -> dict[str, Any] | None:
            meta: dict[str, Any] = backend.get_task_meta(task_id)
            if isinstance(meta["result"], BaseException):  # Celery has made it of what was stored; so do we
                meta = {**meta, "result": backend.prepare_exception(meta["result"], "json")}
            return None if meta["status"] == "PENDING" else meta

        return await _ask(stored)

    async def final(self, task_id: str, timeout: float | None) -> dict[str, Any]:
        """Wait until a call has its final state, and return what is stored of it.

        Raises:
            TimeoutError: That took longer than *timeout* seconds.
        """
        pause = OFTEN
        async with asyncio.timeout(timeout):
            while True:
                with suppress(BrokerUnreachable):
                    meta = await self.read(task_id)
                    if meta and meta["status"] in FINAL:
                        return meta
                await asyncio.sleep(pause)
                pause = min(pause * 2, SELDOM)

    async def changes(self, task_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """What is stored of a call, now and after each change that is seen, until it has its final state."""
        pause, before = OFTEN, None
        while True:
            meta = None
            with suppress(BrokerUnreachable):
                meta = await self.read(task_id)
            if meta and meta["status"] in FINAL:
                return
            if meta and meta != before:
                pause, before = OFTEN, meta
                yield meta
            await asyncio.sleep(pause)
            pause = min(pause * 2, SELDOM)

    async def cancel(self, task_id: str, store: bool) -> str:
        """As `Listener.cancel`."""
        await self._cancellations.cancel(task_id, store=False)
        meta = await self.read(task_id)
        if meta and meta["status"] != "RETRY":
            return str(meta["status"])
        if store:
            await _ask(lambda backend: backend.mark_as_revoked(task_id, "cancelled"))
        return "PENDING"


async def _ask(work: Callable[[Any], T]) -> T:
    from celery.backends.base import DisabledBackend
    from celery.exceptions import ImproperlyConfigured

    def ask(_: bridge.Handoff) -> T:
        backend = celery_app.get_app().backend
        if isinstance(backend, DisabledBackend):
            raise ConfigurationError("The result backend cannot be used: there is none.")
        return work(backend)

    try:
        return await bridge.in_thread(ask, ANSWER)
    except ConfigurationError:
        raise
    except bridge.NotInTime:
        why = f"no answer within {ANSWER:g} s"
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"The result backend cannot be used: {reason(error)}.") from error
    except Exception as error:  # each store has a driver, with errors of its own
        why = reason(error)
    raise BrokerUnreachable("The result backend", why, setting="result_backend")
