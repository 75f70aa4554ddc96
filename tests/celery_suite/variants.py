"""Which worker the suite is run on: plain Celery's, or ours on one of its pools and on either transport."""

import os
from dataclasses import dataclass
from typing import Any, Self

from support import CELERY, CORE


@dataclass(frozen=True)
class Variant:
    """A kind of worker, by its pool and by the transport that takes its calls."""

    kind: str
    #: `loop` is the asyncio pool with the suite's tasks run as it runs coroutines: on the loop, in a greenlet each.
    pool: str
    transport: str

    @classmethod
    def parse(cls, said: str) -> Self:
        return cls(*said.split(":"))

    def __str__(self) -> str:
        return f"{self.kind}:{self.pool}:{self.transport}"

    @property
    def _name(self) -> str:
        return "asyncio" if self.pool == "loop" else self.pool

    @property
    def ready(self) -> str:
        """What the worker prints when it takes calls."""
        return "serving " if self.kind == "ours" else " ready."

    def command(self, node: str) -> list[str]:
        """The command line of a worker that is called *node*, one call at once as in Celery's own runs."""
        if self.kind == "ours":
            return [CORE, "runworker", "--pool", self._name, "--concurrency", "1", "--", "--hostname", node]
        return [CELERY, "-A", "control", "worker", "--pool", self.pool, "--concurrency", "1", "--hostname", node,
                "--without-heartbeat", "--without-mingle", "--without-gossip", "--loglevel", "INFO"]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """What configures it, beside the address of the server."""
        return {
            "TASK_BROKER_TRANSPORT": self.transport,
            "REDIS_URL": os.environ["TEST_BROKER"],
            "SUITE_ON_LOOP": "1" if self.pool == "loop" else "",
        }

    def inside(self, control: Any) -> dict[str, Any]:
        """What Celery's own function starts a worker in this process with; *control* is the suite's application."""
        if self.kind == "control":
            return {"app": control, "pool": self.pool}
        os.environ.update(self.environment())
        from core.tasks import celery_app, celery_config

        celery_app.import_tasks()
        return {"app": celery_app.get_app(), "pool": celery_config.POOL if self._name == "asyncio" else self.pool}


CONTROL = Variant("control", "prefork", "stock")
OURS = tuple(Variant("ours", pool, "core") for pool in ("asyncio", "loop", "prefork", "threads"))
