"""Where the project is, where its settings are, and where its tasks are.

A command is run somewhere inside a project, and a task is declared in some file of it. Both have to agree
on the project's root, because a task's name on the wire is its file's place below that root. Nothing here
reads a setting: it only looks at files, and imports the modules that it found.
"""

import functools
import importlib
import os
import sys
import sysconfig
import tomllib
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from core.errors import ConfigurationError, ProjectImportError, SettingsNotFound, TasksNotFound

TASK_PLACES = ("src/apps/*/tasks.py", "src/apps/*/tasks/__init__.py", "src/tasks.py", "src/tasks/__init__.py")


@dataclass(frozen=True)
class Project:
    """A project on disk: its root, and the module (and perhaps class) that holds its settings."""

    root: Path
    #: `module` or `module:Class`.
    settings: str
    #: Which of the places named it, for `-v` and for error messages.
    source: str


def find_project(settings: str | None = None, start: Path | None = None) -> Project:
    """The project that the current directory is in. The first of these that names settings wins:

    *settings* (`--settings module:Class`), `CORE_SETTINGS`, `[tool.core]` in the nearest pyproject.toml,
    `src/settings.py` or `settings.py` here or in a directory above.

    Raises:
        SettingsNotFound: None of them does; the error lists every place that was tried.
    """
    start = (start or Path.cwd()).resolve()
    above = [start, *start.parents]
    pyproject = next((d / "pyproject.toml" for d in above if (d / "pyproject.toml").is_file()), None)
    for value, source in ((settings, "--settings"), (os.environ.get("CORE_SETTINGS"), "CORE_SETTINGS")):
        if value:
            return Project(project_root(start) or start, value, source)
    tried = ["--settings", "the variable CORE_SETTINGS"]
    if pyproject:
        if named := _tool_core(pyproject).get("settings"):
            return Project(pyproject.parent, str(named), f"[tool.core] in {pyproject}")
        tried.append(f"[tool.core] in {pyproject}")
    for directory in above:
        if root := _settings_root(directory):
            module = "src.settings" if (root / "src/settings.py").is_file() else "settings"
            return Project(root, module, str(root / (module.replace(".", "/") + ".py")))
        tried += [str(directory / "src/settings.py"), str(directory / "settings.py")]
        if (directory / ".git").exists():
            break
    raise SettingsNotFound(tried)


def _tool_core(pyproject: Path) -> dict[str, object]:
    try:
        document = tomllib.loads(pyproject.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{pyproject} cannot be read: {error}") from error
    table = document.get("tool", {}).get("core", {})
    if unknown := set(table) - {"settings"}:
        raise ConfigurationError(
            f"[tool.core] in {pyproject} has the unknown key {min(unknown)!r}; it knows `settings`."
        )
    return dict(table)


def _settings_root(directory: Path) -> Path | None:
    """The project root that a settings file in *directory* stands for."""
    if (directory / "src/settings.py").is_file():
        return directory
    if (directory / "settings.py").is_file():
        return directory.parent if directory.name == "src" else directory
    return None


@functools.cache
def project_root(directory: Path) -> Path | None:
    """The nearest directory at or above this one that looks like a project's root."""
    for candidate in (directory, *directory.parents):
        if root := _settings_root(candidate):
            return root
        if (candidate / "pyproject.toml").is_file() or (candidate / ".git").exists():
            return candidate
    return None


def project_name(root: Path) -> str:
    """What the project calls itself: `[project] name` in its pyproject.toml, else `core`.

    Not its directory: that may be another one after every deployment, and the schedule would begin anew.
    """
    try:
        document = tomllib.loads((root / "pyproject.toml").read_text())
        return str(document["project"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return "core"


@functools.cache
def _installed() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in names)


def module_path(file: str, module: str) -> str:
    """The dotted path of a source file from its project's root: what a task in it is called.

    It is the same whichever way the module was imported (`src.apps.x.tasks`, `apps.x.tasks`, or as a script).
    Installed packages, and files outside any project, keep the name of their module.
    """
    path = Path(file)
    if path.suffix == ".py" and path.is_file():
        path = path.resolve()
        root = project_root(path.parent)
        if root and not any(path.is_relative_to(place) for place in _installed() if place.is_relative_to(root)):
            return _dotted(path, root)
        if module == "__main__":
            return path.stem
    return module


def _dotted(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def add_to_path(root: Path) -> None:
    """Make the project's modules importable, behind everything that is installed."""
    for place in (str(root), str(root / "src")):
        if place not in sys.path and os.path.isdir(place):
            sys.path.append(place)


def import_settings(project: Project) -> ModuleType:
    """Import the module that holds the project's settings."""
    add_to_path(project.root)
    module = project.settings.partition(":")[0]
    file = project.root / (module.replace(".", "/") + ".py")
    return _import(module, file if file.is_file() else None, project.root)


def import_tasks(root: Path, modules: Sequence[str] = ()) -> list[ModuleType]:
    """Import every module of the project that declares tasks, in a fixed order.

    Args:
        root: The project's root.
        modules: Dotted names beside those in `src/apps/*/tasks.py`, `tasks/` packages and `src/tasks.py`.

    Raises:
        ProjectImportError: One or more of them failed; the error shows the user's own last frame of each.
        TasksNotFound: There is none.
    """
    add_to_path(root)
    wanted: list[tuple[str, Path | None]] = []
    for place in TASK_PLACES:
        for file in sorted(root.glob(place)):
            inside = sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else ()
            wanted += [(_dotted(one, root), one) for one in dict.fromkeys((file, *inside))]
    wanted += [(name, None) for name in modules]
    if not wanted:
        raise TasksNotFound([*(str(root / place) for place in TASK_PLACES), "the setting task_modules"])
    found: list[ModuleType] = []
    failed: list[ProjectImportError] = []
    for name, path in wanted:
        try:
            found.append(_import(name, path, root))
        except ProjectImportError as error:
            failed.append(error)
    if len(failed) > 1:
        raise ConfigurationError("\n".join(str(error) for error in failed)) from failed[0]
    if failed:
        raise failed[0]
    return found


def _import(name: str, file: Path | None, root: Path) -> ModuleType:
    if file is not None:
        for module in _modules_of(file):
            return module
    try:
        module = importlib.import_module(name)
    except BaseException as error:  # a module may even exit
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ProjectImportError(name, error, _own_last_frame(error, root), _shadow_hint(error, root)) from error
    if file is not None and Path(module.__file__ or "").resolve() != file.resolve():
        where = module.__file__ or "a namespace package"
        taken = ImportError(f"the name {name} already belongs to {where}")
        raise ProjectImportError(str(file), taken, "", "Rename one of the two, or start Python in your project.")
    return module


def _modules_of(file: Path) -> Iterable[ModuleType]:
    """A module that was imported from this file already, under whatever name."""
    for module in list(sys.modules.values()):
        origin = getattr(module, "__file__", None)
        if isinstance(origin, str) and origin.endswith(file.name) and Path(origin).resolve() == file.resolve():
            spec = getattr(module, "__spec__", None)
            # A module still being imported, or a script, is not the module that was asked for.
            if spec is not None and not getattr(spec, "_initializing", False):
                yield module


def _own_last_frame(error: BaseException, root: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"at {error.filename}:{error.lineno}: {(error.text or '').strip()}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(root) and "site-packages" not in f.filename]
    return f"at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""


def _shadow_hint(error: BaseException, root: Path) -> str:
    name = getattr(error, "name", None) or ""
    if isinstance(error, ImportError) and (name == "core" or name.startswith("core.")):
        if own := own_core(root):
            return f"Your own {own} has the name of the installed package `core`. Rename it."
        return "`core` is the package of core-tasks, which has no such name."
    return ""


def own_core(root: Path) -> Path | None:
    """A folder or file of the user's own that takes the name of this package, if there is one."""
    ours = Path(__file__).resolve().parent
    for candidate in (root / "core", root / "core.py", root / "src/core"):
        if (candidate.is_file() or any(candidate.glob("*.py"))) and candidate.resolve() != ours:
            return candidate
    return None
