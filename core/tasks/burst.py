"""When a worker has worked off what was there, and ends: `core runworker --burst`.

It looks on the loop that takes calls, and asks the broker only while no process of the worker runs anything. Then it
ends as at a signal to stop. What waits for its time, a countdown or the next attempt, is not waited for.
"""

import logging
import signal
from typing import Any

from core.errors import CoreError
from core.tasks import queues
from core.tasks.together import Together

logger = logging.getLogger("core.tasks")

#: Seconds between two looks.
EVERY = 0.1


def boot_step(together: Together | None) -> Any:
    """The step of Celery's consumer that ends this process when there is nothing left.

    Args:
        together: The worker that it is one of the processes of; None where it is the only one.
    """
    from celery import bootsteps
    from celery.worker import state

    class Burst(bootsteps.StartStopStep):  # type: ignore[misc]
        """Ends when two looks in a row find nothing: what was on its way at the first one is here by the second."""

        _found_nothing = False

        def start(self, parent: Any) -> None:
            parent.timer.call_repeatedly(EVERY, self._look, (parent,))

        def stop(self, parent: Any) -> None:
            """Do nothing: the consumer has thrown its timers away."""

        def _look(self, consumer: Any) -> None:
            if state.should_stop is not None:
                return
            before, idle = self._found_nothing, _is_idle(consumer)
            self._found_nothing = together.are_idle(idle) if together else idle
            if not self._found_nothing:
                return
            try:
                self._found_nothing = queues.are_empty([queue.name for queue in consumer.task_consumer.queues])
            except CoreError as error:  # the consumer notices as well, and waits for the broker
                logger.debug("whether anything is left is not known: %s", error)
                self._found_nothing = False
            if before and self._found_nothing:
                logger.info("nothing is left to do")
                signal.raise_signal(signal.SIGTERM)

    return Burst


def _is_idle(consumer: Any) -> bool:
    """Whether this process has taken nothing that it has not finished."""
    from celery.worker import state

    held = getattr(getattr(consumer, "holder", None), "calls", None)
    limited = any(bucket and bucket.contents for bucket in consumer.task_buckets.values())
    return not (state.reserved_requests or held or limited)
