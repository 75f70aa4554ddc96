"""A web process that has made calls and then forks, as a preloading server does."""

import json

import pytest
from marks import one_pool
from support import Project

pytestmark = one_pool

#: Forks twice after it called, and prints what the parent and its children got.
FORKS = """
import asyncio, json, os, sys
from src.apps.probe.tasks import add, add_sync

async def call(number):
    result = await add.delay(number, 0)
    return await result.get(timeout=20)

def work(number):
    loops = [asyncio.run(call(number)) for _ in range(2)]
    return [*loops, add_sync.delay_sync(number, 0).get_sync(timeout=20)]

def forked(number):
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.write(writable, json.dumps(work(number)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writable)
    return child, readable

def collected(child, readable):
    with open(readable) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, said
    return json.loads(said)
"""


@pytest.mark.usefixtures("worker")
def test_a_process_that_called_and_then_forks_works_in_parent_and_children(example: Project) -> None:
    done = example.python(
        FORKS
        + """
before = work(1)
children = [forked(2), forked(3)]
after = work(4)
print(json.dumps([before, *(collected(*child) for child in children), after]))
"""
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[1] * 3, [2] * 3, [3] * 3, [4] * 3]
    assert done.stderr == ""


@pytest.mark.usefixtures("worker")
def test_a_child_of_a_child_works_too(example: Project) -> None:
    done = example.python(
        FORKS
        + """
work(1)
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps([work(2), collected(*forked(3)), work(4)]))
sys.stdout.flush()
os._exit(0)
"""
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[2] * 3, [3] * 3, [4] * 3]


@pytest.mark.usefixtures("worker")
def test_a_parent_that_only_imported_leaves_its_children_nothing_to_trip_over(example: Project) -> None:
    done = example.python(FORKS + "print(json.dumps([collected(*forked(2)), collected(*forked(3)), work(4)]))")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[2] * 3, [3] * 3, [4] * 3]


@pytest.mark.usefixtures("worker")
def test_children_that_are_forked_while_other_threads_call_work(example: Project) -> None:
    """Whatever lock a thread of the parent holds at that moment, nobody in the child will release it."""
    done = example.python(
        FORKS
        + """
import threading
over = threading.Event()

async def keep_calling():
    while not over.is_set():
        await call(1)

callers = [threading.Thread(target=lambda: asyncio.run(keep_calling())) for _ in range(3)]
for caller in callers:
    caller.start()
work(1)
children = [forked(number) for number in range(2, 8)]
print(json.dumps([collected(*child) for child in children]))
over.set()
"""
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[number] * 3 for number in range(2, 8)]
