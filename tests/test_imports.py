"""The floors of the house: imports point down, and what is heavy is loaded when it is needed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import CORE, clean_environment, redis_server

import core

PACKAGE = Path(core.__file__).parent
# From the ground up. A module imports what is on a floor below its own; on its own floor, what is named here.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core.errors",),
    ("core.discovery", "core.field", "core.pidfile", "core.redis_url"),
    ("core.broker_error", "core.config", "core.health"),
    ("core.embedded", "core.reloader"),
    ("core.ping",),
    ("core.tasks.bridge", "core.tasks.progress"),
    (
        "core.tasks.schedule",
        "core.tasks.retry",
        "core.tasks.timeout",
        "core.tasks.arguments",
        "core.tasks.options",
        "core.tasks.context",
        "core.tasks.heartbeat",
        "core.tasks.supervisor",
        "core.tasks.together",
        "core.tasks.celery_config",
        "core.tasks.celery_worker",
        "core.tasks.dead",
        "core.tasks.figures",
        "core.tasks.stand_in",
    ),
    (
        "core.tasks.cancellation",
        "core.tasks.correlation",
        "core.tasks.outcome",
        "core.tasks.resources",
        "core.tasks.signing",
        "core.tasks.unique",
        "core.tasks.watchdog",
        "core.tasks.wire",
    ),
    ("core.tasks.celery_app", "core.tasks.log"),
    ("core.tasks.envelope",),
    ("core.tasks.inspection", "core.tasks.listener", "core.tasks.sender"),
    ("core.tasks.poller",),
    ("core.tasks.publish", "core.tasks.result", "core.tasks.runner"),
    ("core.tasks.definition", "core.tasks.web"),
    ("core.tasks.decorators",),
    ("core.tasks",),
    ("core.tasks.catalog",),
    (
        "core.tasks.backlog",
        "core.tasks.checks",
        "core.tasks.control",
        "core.tasks.pool",
        "core.tasks.stop",
        "core.tasks.timetable",
    ),
    ("core.tasks.about", "core.tasks.metrics", "core.tasks.queues"),
    ("core.tasks.burst",),
    ("core.tasks.worker",),
    ("core.testing.outbox", "core.testing.schedule"),
    ("core.testing",),
    ("core.testing.memory", "core.testing.worker"),
    ("core.testing.plugin",),
    (
        "core.tasks.beat",
        "core.tasks.flower",
        "core.tasks.transport.callbacks",
        "core.tasks.transport.message",
        "core.tasks.transport.scripts",
    ),
    ("core.tasks.transport.held",),
    (
        "core.tasks.transport.take",
        "core.tasks.transport.lease",
        "core.tasks.transport.request",
        "core.tasks.transport.speak",
    ),
    ("core.tasks.transport.channel", "core.tasks.transport.strategy"),
    ("core.tasks.transport.backend", "core.tasks.transport.consumer"),
    ("core.tasks.transport.recorder",),
    ("core.celery", "core.cli"),
)
GROUND = ("core", "core.tasks.transport")  # packages whose __init__ imports nothing
HEAVY = ("celery", "kombu", "redis", "redbeat", "billiard", "pydantic", "pydantic_settings", "click")


def files() -> dict[str, Path]:
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = ("core", *file.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


FILES = files()


def floor(module: str) -> int:
    """The floor that a module is on. Every file of `core.cli` is on that of the package."""
    name = "core.cli" if module.startswith("core.cli") else module
    for number, names in enumerate(FLOORS):
        if name in names:
            return number
    raise AssertionError(f"{module} is on no floor: give it one in FLOORS")


def imports(module: str) -> set[str]:
    """The modules of ours that a file imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in FILES else str(node.module))
    return {name for name in found if name in FILES and name not in GROUND}


MODULES = [name for name in FILES if name not in GROUND]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_below_and_from_no_sibling(module: str) -> None:
    inside = {name for name in imports(module) if module.startswith("core.cli") and name.startswith("core.cli")}

    assert {name: floor(name) for name in imports(module) - inside if floor(name) >= floor(module)} == {}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("core.tasks")])
def test_what_is_beside_tasks_does_not_import_them(module: str) -> None:
    if module != "core.celery" and not module.startswith(("core.cli", "core.testing")):
        assert {name for name in imports(module) if name.startswith("core.tasks")} == set()


def test_what_celery_loads_by_name_is_imported_by_nobody() -> None:
    users = {module for module in MODULES if any(name.startswith("core.tasks.transport") for name in imports(module))}

    assert {user for user in users if not user.startswith("core.tasks.transport")} == set()


@pytest.mark.parametrize("name", GROUND)
def test_a_package_without_code_imports_nothing(name: str) -> None:
    nodes = ast.walk(ast.parse(FILES[name].read_text()))

    assert [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)] == []


# What an import loads


def loaded(code: str) -> set[str]:
    """The top-level modules beside the standard library that a fresh process has after this code."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=clean_environment()
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split()) - set(sys.stdlib_module_names)


def test_importing_core_imports_nothing_else() -> None:
    before = loaded("")

    assert loaded("import core") - before == {"core"}
    assert "core.errors" not in loaded("import core")


def test_help_loads_neither_celery_nor_settings() -> None:
    code = """
import sys
sys.argv = ["core", "--help"]
from core.cli import main
try:
    main()
except SystemExit:
    pass
"""
    assert loaded(code) & set(HEAVY) == {"click"}


@pytest.mark.parametrize(
    "command", ["runworker", "scheduler", "result", "tasks", "status", "dead", "health", "broker", "config"]
)
def test_the_help_of_a_command_loads_no_celery(command: str) -> None:
    code = f"""
import sys
sys.argv = ["core", {command!r}, "--help"]
from core.cli import main
try:
    main()
except SystemExit:
    pass
"""
    assert loaded(code) & {"celery", "kombu", "redis", "redbeat"} == set()


@pytest.mark.parametrize("who", ["worker", "scheduler"])
def test_health_loads_neither_celery_nor_settings_nor_the_project(tmp_path: Path, who: str) -> None:
    """A probe runs it every few seconds, in every container."""
    (tmp_path / "settings.py").write_text("import celery")
    code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
sys.argv = ["core", "health", {who!r}]
from core.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 3, end.code
"""
    assert loaded(code) & set(HEAVY) == {"click"}


def test_asking_the_broker_loads_the_settings_and_neither_celery_nor_the_redis_client(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text("from core.config import Settings\nclass AppSettings(Settings): ...\n")
    with redis_server("--requirepass", "secret") as (url, _):
        code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
os.environ["REDIS_URL"] = {url.replace("//", "//:secret@")!r}
sys.argv = ["core", "health", "broker"]
from core.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
"""
        assert loaded(code) & {*HEAVY, "opentelemetry"} == {"click", "pydantic", "pydantic_settings"}


@pytest.mark.parametrize("module", ["core.errors", "core.discovery", "core.redis_url", "core.tasks.retry"])
def test_a_module_of_the_ground_floors_needs_no_library(module: str) -> None:
    """`core.tasks.retry` is imported with its package, which needs pydantic and nothing of Celery."""
    allowed = {"core"} if not module.startswith("core.tasks") else loaded("import pydantic_settings") | {"core"}

    assert loaded(f"import {module}") - loaded("") <= allowed


@pytest.mark.parametrize("code", ["import core.tasks", "from core.tasks import task\n@task\nasync def f(x: int): ..."])
def test_importing_tasks_and_declaring_one_loads_no_celery(code: str) -> None:
    """A web process that only imports a module with tasks pays for pydantic, which it has, and for nothing else."""
    assert loaded(code) & set(HEAVY) == {"pydantic", "pydantic_settings"}


def test_the_plugin_for_pytest_costs_a_suite_that_does_not_use_it_nothing() -> None:
    assert loaded("import core.testing.plugin") - loaded("import pytest") == {"core"}


def test_help_works_outside_any_project(tmp_path: Path) -> None:
    done = subprocess.run(
        [CORE, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=clean_environment()
    )

    assert done.returncode == 0
    assert done.stdout.startswith("Usage: core ")
    assert done.stderr == ""


# Private names

LIBRARIES = ("celery", "kombu", "redbeat", "billiard", "redis")
MAY_USE_PRIVATE_NAMES = ("core.tasks.transport", "core.tasks.pool")


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(MAY_USE_PRIVATE_NAMES)])
def test_private_names_of_celery_and_kombu_stay_in_the_transport_and_the_pool(module: str) -> None:
    """A minor release may change them, and there a check at start says which one did."""
    tree = ast.parse(FILES[module].read_text())
    private: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            private += [f"{node.module}.{name}" for name in names if name.startswith("_")]
        elif isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr) and node.attr not in OWN_PRIVATE:
            private.append(ast.unparse(node))

    # The client's connections have no public name for what they write to; it has been the same since redis 4.2.
    allowed = {"core.tasks.wire": {"connection._writer"}}.get(module, set())
    assert set(private) - {"os._exit", "sys._current_frames", "sys._getframe"} == allowed


def _own_private() -> set[str]:
    """Private attributes that our own classes and modules define."""
    found: set[str] = set()
    for file in FILES.values():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found


OWN_PRIVATE = _own_private()


def test_no_file_has_a_name_that_says_nothing() -> None:
    nothing = {"utils", "util", "helpers", "base", "types", "constants", "common", "misc"}

    assert {name for name in FILES if name.rpartition(".")[2] in nothing} == set()


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    assert {name: n for name, file in FILES.items() if (n := len(file.read_text().splitlines())) > 400} == {}
