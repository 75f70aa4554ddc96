"""What became of each test of the suite, on one kind of worker."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Outcome:
    """One test: `passed`, `failed` or `skipped`, with what was said."""

    status: str = ""
    said: str = ""


def read(file: Path) -> dict[str, Outcome]:
    """The outcomes that the plugin has noted, by the ids of the tests."""
    found: dict[str, Outcome] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        node, when, status, said = json.loads(line)
        outcome = found.setdefault(node, Outcome())
        if status == "failed" or (status == "skipped" and not outcome.status):
            outcome.status, outcome.said = status, said
        elif when == "teardown" and not outcome.status:
            outcome.status = "passed"
    for outcome in found.values():
        if not outcome.status:
            outcome.status, outcome.said = "failed", "it had not ended when the run was"
    return found
