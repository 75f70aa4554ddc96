"""What is killed while its worker runs."""

import time

from src.apps.probe.tasks import add


def test_that_does_not_end(worker_tasks: None) -> None:
    assert add.delay_sync(1, 2).get_sync(timeout=30) == 3
    print("a worker runs", flush=True)
    time.sleep(100)
