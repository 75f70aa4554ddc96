"""A thousand calls at once that end in every way there is, at random, on two processes of one worker."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from marks import core_transport
from stock.world import World, world
from support import held, wait_until

pytestmark = core_transport

TESTS = Path(__file__).parent.parent
#: What is played: 5,000 calls are `TEST_MANY_CALLS=5000 pytest tests/acceptance/test_many.py`.
CALLS, SEED = int(os.environ.get("TEST_MANY_CALLS", "1000")), int(os.environ.get("TEST_MANY_SEED", "5"))


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world(str(TESTS / "load/tasks.py")) as made:
        made.start("--pool", "asyncio", "--processes", "2", "--concurrency", "1000")
        yield made


def test_each_of_many_calls_of_every_kind_ends_as_it_should(made: World) -> None:
    program = made.project.run(
        sys.executable, "-m", "load.calls", f"{SEED}", f"{CALLS}", f"{CALLS}",
        timeout=30 + CALLS / 50, PYTHONPATH=f"{TESTS}:{made.project.root}",
    )  # fmt: skip
    assert program.returncode == 0, program.stderr
    said = json.loads(program.stdout)
    assert not said["wrong"], "\n".join(said["wrong"][:20])

    parked = said["kinds"]["dropped"]
    wait_until(lambda: not held(made.redis) and not made.redis.llen("default"), 5, "nothing waits, nothing is held")
    assert made.redis.zcard("core-delayed") == made.redis.hlen("core-delayed-calls") == parked
    assert not made.redis.hlen("unacked")
    for answer in made.app.control.broadcast("look", reply=True, timeout=10, limit=2):
        for look in answer.values():
            assert (look["bodies"], look["tracers"]) == (0, 0), look["kinds"]
    assert made.worker.stop() == 0
    text = made.worker.text()
    assert not [said for said in ("ended the tracer", "never retrieved", "was destroyed") if said in text]
