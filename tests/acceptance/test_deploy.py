"""The commands in docs/deploy, run as the files say: they become ready, are probed, and stop by the file's signal."""

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Project, project, redis_server, wait_until

DEPLOY = Path(__file__).parent.parent.parent / "docs/deploy"
FILES = sorted(file for file in DEPLOY.rglob("*") if file.is_file())
#: What says that one is ready, by the command's words after `core`.
READY = {"runworker": "serving ", "scheduler start": "scheduling "}


def uncommented(file: Path) -> str:
    return "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))


def commands(file: Path) -> list[str]:
    """Every command of `core` in a file, by its words after `core`: as a JSON array, or in a unit of systemd."""
    text = uncommented(file)
    arrays = [json.loads(array) for array in re.findall(r'\[[^\[\]]*"core"[^\[\]]*\]', text)]
    found = [" ".join(array[array.index("core") + 1 :]) for array in arrays]
    return found + re.findall(r"^Exec\w+=\S+/core (.+)$", text, re.MULTILINE)


def services() -> dict[str, set[str]]:
    """What runs, and how it is probed, over all files: a file's probes are those of what it runs."""
    found: dict[str, set[str]] = {}
    for file in FILES:
        words = commands(file)
        for long_running in {each for each in words if not each.startswith("health ")}:
            found.setdefault(long_running, set()).update(each for each in words if each.startswith("health "))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(DEPLOY)))
def test_every_mention_of_a_command_is_one_that_is_run_here(file: Path) -> None:
    mentions = re.findall(r'(?<![.\w])core(?=["\s])', uncommented(file))

    assert len(mentions) == len(commands(file))
    assert {each for each in commands(file) if not each.startswith("health ")} <= READY.keys()


def test_what_runs_for_long_is_probed() -> None:
    assert {each: bool(probes) for each, probes in services().items()} == dict.fromkeys(READY, True)


@pytest.fixture(scope="module")
def shop() -> Iterator[Project]:
    """The project in production, where nothing is started for it."""
    with redis_server("--requirepass", "secret") as (url, _), project() as made:
        made.environment |= {"ENVIRONMENT": "production", "REDIS_URL": url.replace("//", "//:secret@")}
        yield made


@pytest.mark.parametrize(("command", "probes"), services().items(), ids=services())
def test_it_becomes_ready_is_probed_and_stops(shop: Project, command: str, probes: set[str]) -> None:
    stop = signal.Signals[re.findall(r"^STOPSIGNAL (\w+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[0]]

    def probed() -> set[int]:
        return {shop.run("core", *probe.split()).returncode for probe in probes}

    assert probed() == {3}
    process = shop.start("core", *command.split())
    process.wait_for(READY[command])
    wait_until(lambda: probed() == {0}, 20, "it is well")

    began = time.monotonic()
    process.signal(stop)

    assert process.wait() == 0  # else `on-failure` would start it again
    assert time.monotonic() - began < 10  # the shortest time that one of the files gives
    assert probed() == {3}
