"""A fork of the process that has everything imported is for a test what a process of its own is."""

import pytest
from support import Project

CODES = {
    "place": "import os, sys\nprint(sys.path, sys.argv, __name__, os.getcwd(), os.environ['GIVEN'])",
    "traceback": "import core.errors\nraise core.errors.TaskError('no')",
    "message": "raise SystemExit('a word')",
    "code": "import atexit, sys\natexit.register(print, 'at the end')\nsys.exit(7)",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "forgotten": "async def f(): ...\nf()",
    "thread": "import threading\nthreading.Thread(target=print, args=('from a thread',)).start()",
    "input": "import sys\nprint(repr(sys.stdin.read()), sys.stdout.isatty())",
}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_a_fork_says_and_ends_as_a_process_does(empty: Project, code: str) -> None:
    forked, started = empty.caller(code, GIVEN="é"), empty.python(code, GIVEN="é")

    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_a_fork_leaves_nothing_to_the_next(empty: Project) -> None:
    assert empty.caller("import core, os\ncore.left = os.environ['LEFT'] = 'x'").returncode == 0

    said = empty.caller(
        "import core, os, sys\nprint(hasattr(core, 'left'), 'LEFT' in os.environ, 'src' in sys.modules)"
    )

    assert said.stdout == "False False False\n"
