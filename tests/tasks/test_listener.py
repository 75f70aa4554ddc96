"""The subscription of an event loop, beside what the acceptance tests see of it."""

from support import Project

ENDING_LOOPS = """
import asyncio, time
from uuid import uuid4
from core.tasks import TaskResult

async def wait_and_give_up(waiters, pause):
    waiting = [asyncio.create_task(TaskResult.from_id(str(uuid4())).get()) for _ in range(waiters)]
    await asyncio.sleep(pause)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

longest = 0.0
for number in range(30):
    began = time.monotonic()
    asyncio.run(wait_and_give_up(300 + number, number / 1000))
    longest = max(longest, time.monotonic() - began)
print(longest)
"""


def test_a_loop_that_ends_while_results_are_waited_for_ends_at_once(fresh: Project) -> None:
    """A cancellation that comes in the middle of a write may be swallowed below us; the loop must not hang on it."""
    ended = fresh.python(ENDING_LOOPS)

    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 5
