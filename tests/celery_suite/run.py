"""`make test-celery`: Celery's own integration tests, on plain Celery and on core.tasks, and docs/celery-suite.md.

python tests/celery_suite/run.py                                     everything, and the page
python tests/celery_suite/run.py --pool threads -k test_revoked      some tests on one pool, with its worker's log
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

sys.path.append(str(Path(__file__).parent.parent))

from celery_suite import page, suite
from celery_suite.outcomes import Outcome, read
from celery_suite.reasons import FILES
from celery_suite.variants import CONTROL, OURS, Variant
from support import redis_server, sweep, temporary_directory

#: Shares of the tests, beside those that have their worker inside; each has a server and a worker of its own.
SHARES = 8
#: Seconds for one of them.
LONGEST = 540
#: Runs at once; tests mostly wait.
AT_ONCE = 4


def pytest(directory: Path, variant: Variant, part: str, selected: Sequence[str]) -> dict[str, Outcome]:
    """Run tests in a process of its own, with a server of its own; the outcomes of those that it got to."""
    with redis_server() as (url, _):
        noted = directory / "outcomes"
        noted.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{Path(__file__).parent.parent}:{directory}",
            "SUITE_VARIANT": str(variant), "SUITE_PART": part, "SUITE_OUTCOMES": str(noted),
            "SUITE_LOG": str(directory / "worker.log"), "TEST_BROKER": url, "TEST_BACKEND": url,
            "WORKER_LOGLEVEL": "INFO", "REDIS_HOST": str(urlsplit(url).hostname), "REDIS_PORT": str(urlsplit(url).port),
        }  # fmt: skip
        command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:celery", "-p", "celery.contrib.pytest",
                   "-p", "celery_suite.plugin", "-p", "no:cacheprovider", "-p", "no:asyncio"]  # fmt: skip
        with (directory / "pytest.log").open("a") as said:
            process = subprocess.Popen([*command, *selected], cwd=directory, env=environment, stdout=said, stderr=said)
            try:
                process.wait(LONGEST)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # it stops its worker, and what it got to is noted
                with suppress(subprocess.TimeoutExpired):
                    process.wait(40)
            finally:
                process.kill()
                process.wait()
        return read(noted)


def play(variant: Variant, part: str, keyword: str) -> dict[str, Outcome]:
    """Run one part of the suite; what fails is tried a second time, as the suite's own runs try it a sixth."""
    with temporary_directory("core-celery-") as made:
        directory = Path(made)
        suite.unpack(directory)
        files = [f"t/integration/{name}.py" for name in FILES]
        try:
            found = pytest(directory, variant, part, [*files, *(["-k", keyword] if keyword else [])])
            failed = [node for node, outcome in found.items() if outcome.status == "failed"]
            if failed and not keyword:
                found |= pytest(directory, variant, "inside" if part == "inside" else "1/1", failed)
            if keyword:
                for log in directory.glob("*.log"):
                    print(log.read_text(errors="replace"))
            return found
        finally:
            sweep(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", choices=[variant.pool for variant in OURS], help="one pool of ours only")
    parser.add_argument("--transport", choices=["core", "stock"], default="core", help="what takes calls for ours")
    parser.add_argument("--control", action="store_true", help="plain Celery only")
    parser.add_argument("-k", dest="keyword", default="", help="some tests only, as pytest takes it")
    options = parser.parse_args()
    ours = [Variant("ours", each.pool, options.transport) for each in OURS if options.pool in (None, each.pool)]
    variants = [CONTROL] if options.control else ours if options.pool else [CONTROL, *ours]
    shares = 1 if options.keyword else SHARES
    parts = [*(f"{share}/{shares}" for share in range(1, shares + 1)), "inside"]
    suite.download()
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        started = {
            (variant, part): threads.submit(play, variant, part, options.keyword)
            for variant in variants
            for part in parts
        }
        results: dict[Variant, dict[str, Outcome]] = {}
        for (variant, part), future in started.items():
            results.setdefault(variant, {}).update(future.result())
            print(f"{variant} {part}: {time.monotonic() - began:.0f} s", flush=True)
    unexplained = list(page.unexplained(results))
    for line in unexplained:
        print(line)
    if variants == [CONTROL, *OURS] and not options.keyword:
        page.write(results)
    return bool(unexplained)


if __name__ == "__main__":
    sys.exit(main())
