"""Where a project is, where its settings and tasks are, and what its tasks are therefore called."""

import json
import sys
from pathlib import Path

import pytest
from support import Project

from core import discovery
from core.errors import ConfigurationError, SettingsNotFound

SETTINGS = "from core.config import Settings\nclass AppSettings(Settings): ...\n"
TASK = "from core.tasks import task\n@task\nasync def send(): ...\n"


def write(root: Path, *files: str) -> None:
    for name in files:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")


@pytest.fixture(autouse=True)
def _no_core_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORE_SETTINGS", raising=False)


# Which settings


@pytest.mark.parametrize("below", [".", "src", "src/apps/emails", "docs/deep/down"])
def test_settings_in_src_are_found_from_any_directory_below(tmp_path: Path, below: str) -> None:
    write(tmp_path, "src/settings.py")
    (tmp_path / below).mkdir(parents=True, exist_ok=True)

    found = discovery.find_project(start=tmp_path / below)

    assert (found.root, found.settings) == (tmp_path, "src.settings")
    assert found.source == str(tmp_path / "src/settings.py")


def test_settings_beside_the_code_are_found_too(tmp_path: Path) -> None:
    write(tmp_path, "settings.py")
    (tmp_path / "app").mkdir()

    assert discovery.find_project(start=tmp_path / "app").settings == "settings"


def test_the_nearest_settings_win(tmp_path: Path) -> None:
    write(tmp_path, "src/settings.py", "inner/src/settings.py", "inner/x/y.py")

    assert discovery.find_project(start=tmp_path / "inner/x").root == tmp_path / "inner"


def test_the_option_wins_over_the_variable_and_both_over_what_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "src/settings.py")
    (tmp_path / "pyproject.toml").write_text('[tool.core]\nsettings = "conf.base:Base"\n')

    assert discovery.find_project(start=tmp_path).settings == "conf.base:Base"
    assert discovery.find_project(start=tmp_path).source == f"[tool.core] in {tmp_path / 'pyproject.toml'}"

    monkeypatch.setenv("CORE_SETTINGS", "from_variable")
    assert discovery.find_project(start=tmp_path) == discovery.Project(tmp_path, "from_variable", "CORE_SETTINGS")
    assert discovery.find_project("given:Own", start=tmp_path).settings == "given:Own"
    assert discovery.find_project("given:Own", start=tmp_path).source == "--settings"


def test_a_project_without_settings_is_told_every_place_that_was_tried(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    (tmp_path / "app").mkdir()

    with pytest.raises(SettingsNotFound) as caught:
        discovery.find_project(start=tmp_path / "app")

    for place in ("--settings", "CORE_SETTINGS", f"[tool.core] in {tmp_path}/pyproject.toml",
                  f"{tmp_path}/app/src/settings.py", f"{tmp_path}/app/settings.py",
                  f"{tmp_path}/src/settings.py", f"{tmp_path}/settings.py"):  # fmt: skip
        assert f"looked for {place}" in str(caught.value).replace("the variable ", "")
    assert str(tmp_path.parent / "settings.py") not in str(caught.value), "the repository's root is the last place"


@pytest.mark.parametrize(
    ("text", "said"), [("[tool.core]\nsetings = 'x'\n", "unknown key 'setings'"), ("[tool.core\n", "cannot be read")]
)
def test_a_pyproject_that_cannot_be_used_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)

    with pytest.raises(ConfigurationError) as caught:
        discovery.find_project(start=tmp_path)

    assert str(tmp_path / "pyproject.toml") in str(caught.value)
    assert said in str(caught.value)


def test_a_project_is_called_what_its_pyproject_says(tmp_path: Path) -> None:
    """Not by its directory, which may be another one after every deployment."""
    named, plain = tmp_path / "named", tmp_path / "plain"
    named.mkdir()
    plain.mkdir()
    (named / "pyproject.toml").write_text("[project]\nname = 'shop'\n")

    assert discovery.project_name(named) == "shop"
    assert discovery.project_name(plain) == "core"


# What a task is called


@pytest.mark.parametrize("module", ["src.apps.x.tasks", "apps.x.tasks", "tasks", "__main__"])
def test_a_modules_path_does_not_depend_on_how_it_was_imported(tmp_path: Path, module: str) -> None:
    write(tmp_path, "src/settings.py", "src/apps/x/tasks.py")

    assert discovery.module_path(str(tmp_path / "src/apps/x/tasks.py"), module) == "src.apps.x.tasks"


def test_a_package_is_called_without_its_init(tmp_path: Path) -> None:
    write(tmp_path, "src/settings.py", "src/apps/x/tasks/__init__.py", "src/apps/x/tasks/more.py")

    assert discovery.module_path(str(tmp_path / "src/apps/x/tasks/__init__.py"), "a") == "src.apps.x.tasks"
    assert discovery.module_path(str(tmp_path / "src/apps/x/tasks/more.py"), "a") == "src.apps.x.tasks.more"


@pytest.mark.parametrize("marker", ["settings.py", "src/settings.py", "pyproject.toml", ".git/config"])
def test_a_projects_root_is_marked_by_its_settings_its_pyproject_or_its_repository(tmp_path: Path, marker: str) -> None:
    write(tmp_path, marker, "a/b.py")

    assert discovery.module_path(str(tmp_path / "a/b.py"), "other") == "a.b"


def test_a_file_reached_through_a_link_has_its_own_name(tmp_path: Path) -> None:
    write(tmp_path, "pyproject.toml", "a/b.py")
    (tmp_path / "link").symlink_to(tmp_path / "a")

    assert discovery.module_path(str(tmp_path / "link/b.py"), "other") == "a.b"


def test_an_installed_module_keeps_its_name() -> None:
    """Also where the environment lies inside a project, as `.venv` usually does."""
    assert discovery.module_path(pytest.__file__, "pytest") == "pytest"
    assert discovery.module_path(json.__file__, "json") == "json"


@pytest.mark.parametrize("file", ["<string>", "<stdin>", "/gone/tasks.py", "/tmp/x.ipynb"])
def test_code_without_a_file_keeps_the_name_of_its_module(file: str) -> None:
    assert discovery.module_path(file, "some.module") == "some.module"


NAMES = """
import json
from core.tasks import celery_app
print(json.dumps([task.name for task in celery_app.declared()]))
"""


def names(of: Project, code: str, cwd: str = ".", *, script: str | None = None) -> list[str]:
    """The names of the tasks that a process has declared after it ran *code* (or a script and then *code*)."""
    command = ["-c", code + NAMES] if script is None else [script]
    done = of.run(sys.executable, *command, cwd=of.root / cwd)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("cwd", "code"),
    [
        (".", "import src.apps.x.tasks"),
        ("src", "import apps.x.tasks"),
        ("src/apps/x", "import tasks"),
        ("src/apps/x", "from core.tasks.celery_app import import_tasks; import_tasks()"),
        (".", "import src.apps.x.tasks, sys; sys.path.insert(0, 'src'); import apps.x.tasks"),
        (".", "import src.apps.x.tasks, importlib; importlib.reload(src.apps.x.tasks)"),
        (".", "import src.apps.x.tasks; from core.tasks.celery_app import import_tasks; import_tasks()"),
        (".", "import runpy; runpy.run_path('src/apps/x/tasks.py')"),
    ],
)
def test_a_task_has_one_name_whichever_way_it_is_reached(empty: Project, cwd: str, code: str) -> None:
    """The name is on the wire: a web process and a worker must not differ because they start elsewhere."""
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/apps/x/tasks.py", TASK)

    assert names(empty, code, cwd) == ["src.apps.x.tasks.send"]


@pytest.mark.parametrize("cwd", [".", "src/apps/x", "/"])
def test_a_script_that_is_run_directly_names_its_tasks_by_its_file(empty: Project, cwd: str) -> None:
    empty.write("src/settings.py", SETTINGS)
    script = empty.write("src/apps/x/tasks.py", TASK + NAMES)

    assert names(empty, "", cwd, script=str(script)) == ["src.apps.x.tasks.send"]


def test_a_script_outside_any_project_names_its_tasks_by_its_file(tmp_path: Path, empty: Project) -> None:
    script = empty.write("alone.py", TASK + NAMES)

    assert names(empty, "", script=str(script)) == ["alone.send"]


def test_a_task_in_a_package_is_called_by_the_package(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/apps/x/tasks/__init__.py", TASK)
    empty.write("src/apps/x/tasks/more.py", TASK)
    code = "from core.tasks.celery_app import import_tasks; import_tasks()"

    assert names(empty, code) == ["src.apps.x.tasks.more.send", "src.apps.x.tasks.send"]


def test_a_task_of_an_installed_package_is_called_by_its_module(empty: Project) -> None:
    """A library is not part of the project, even where it is installed below the project's root."""
    empty.write("src/settings.py", SETTINGS)
    library = empty.write(".venv/lib/site-packages/newsletter/jobs.py", TASK).parent.parent
    code = f"""
import sys, sysconfig
paths = sysconfig.get_paths()
sysconfig.get_path = lambda name, *_: {str(library)!r} if name == "purelib" else paths[name]
sys.path.append({str(library)!r})
import newsletter.jobs
"""

    assert names(empty, code) == ["newsletter.jobs.send"]


# Which modules have tasks


IMPORT = "from core.tasks.celery_app import import_tasks, declared; import_tasks()\n"
FAILS = """
from core.errors import CoreError
from core.tasks.celery_app import import_tasks
try:
    import_tasks()
except CoreError as error:
    print(type(error).__name__)
    print(error)
"""


def test_tasks_are_found_in_every_place_where_they_may_be(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    for file in ("src/apps/a/tasks.py", "src/apps/b/tasks/__init__.py", "src/apps/b/tasks/mail.py", "src/tasks.py",
                 "jobs/nightly.py"):  # fmt: skip
        empty.write(file, TASK)
    done = empty.python(IMPORT + NAMES, TASK_MODULES="jobs.nightly")

    assert json.loads(done.stdout) == [
        "jobs.nightly.send",
        "src.apps.a.tasks.send",
        "src.apps.b.tasks.mail.send",
        "src.apps.b.tasks.send",
        "src.tasks.send",
    ]


def test_a_project_without_tasks_is_told_every_place_that_was_tried(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)

    kind, *lines = empty.python(FAILS).stdout.splitlines()

    assert kind == "TasksNotFound"
    for place in ("src/apps/*/tasks.py", "src/apps/*/tasks/__init__.py", "src/tasks.py", "src/tasks/__init__.py"):
        assert f"  looked for {empty.root / place}" in lines
    assert "  looked for the setting task_modules" in lines


def test_a_failing_module_is_named_with_the_users_own_last_line(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/helpers.py", "import json\n\ndef load():\n    return json.loads('{')\n")
    empty.write("src/apps/x/tasks.py", TASK + "from src.helpers import load\nload()\n")

    kind, *lines = empty.python(FAILS).stdout.splitlines()

    assert kind == "ProjectImportError"
    assert lines[0].startswith("src.apps.x.tasks could not be imported: JSONDecodeError: Expecting property name")
    assert lines[1] == f"  at {empty.root}/src/helpers.py:4: return json.loads('{{')"


def test_every_failing_module_is_named_not_the_first_alone(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/apps/a/tasks.py", "import nothing_of_this_name\n")
    empty.write("src/apps/b/tasks.py", "def broken(:\n")
    empty.write("src/apps/c/tasks.py", "raise SystemExit(3)\n")
    empty.write("src/apps/d/tasks.py", TASK)

    said = empty.python(FAILS).stdout

    assert "src.apps.a.tasks could not be imported: ModuleNotFoundError: No module named 'nothing_of" in said
    assert f"at {empty.root}/src/apps/a/tasks.py:1: import nothing_of_this_name" in said
    assert "src.apps.b.tasks could not be imported: SyntaxError" in said
    assert f"at {empty.root}/src/apps/b/tasks.py:1: def broken(:" in said
    assert "src.apps.c.tasks could not be imported: SystemExit: 3" in said


def test_a_module_in_task_modules_that_is_missing_is_an_error(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)

    said = empty.python(FAILS, TASK_MODULES="jobs.nightly").stdout

    assert "jobs.nightly could not be imported: ModuleNotFoundError: No module named 'jobs'" in said


def test_a_broken_settings_module_is_an_error_with_the_users_own_last_line(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS + "1 / 0\n")

    done = empty.run("core", "config")

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "Error: src.settings could not be imported: ZeroDivisionError: division by zero",
        f"  at {empty.root}/src/settings.py:3: 1 / 0",
    ]


def test_a_settings_module_that_is_missing_is_named(empty: Project) -> None:
    done = empty.run("core", "config", CORE_SETTINGS="nowhere.settings")

    assert done.returncode == 2
    assert "nowhere.settings could not be imported" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_settings_at_all_is_an_error_that_lists_the_places(empty: Project) -> None:
    (empty.root / ".git").mkdir()

    done = empty.run("core", "config")

    assert done.returncode == 2
    assert done.stderr.startswith("Error: No settings found.")
    assert f"looked for {empty.root}/src/settings.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_verbose_says_where_the_settings_come_from(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    (empty.root / "deep/down").mkdir(parents=True)

    done = empty.run("core", "-v", "config", cwd=empty.root / "deep/down")

    assert done.returncode == 0
    assert f"settings: src.settings from {empty.root}/src/settings.py · project: {empty.root}" in done.stderr


def test_a_name_that_belongs_to_another_file_is_an_error_not_that_other_file(empty: Project) -> None:
    """`src` of some other place on the path comes first: its tasks are not this project's."""
    empty.write("other/src/__init__.py", "")
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/apps/x/tasks.py", TASK)
    code = "import sys; sys.path.insert(0, 'other'); import src\n"

    said = empty.python(code + FAILS).stdout

    assert "could not be imported" in said
    assert "src" in said.splitlines()[1]


@pytest.mark.parametrize("own", ["core/models.py", "core/__init__.py", "src/core/models.py"])
def test_a_folder_of_the_users_own_that_is_called_core_is_named_as_the_cause(empty: Project, own: str) -> None:
    empty.write("src/settings.py", SETTINGS)
    empty.write(own, "")
    empty.write("src/apps/x/tasks.py", "from core.models import User\n")

    done = empty.run("core", "scheduler", "list")

    assert done.returncode == 2
    assert f"Your own {empty.root / own.rpartition('/')[0]} has the name of the installed package `core`" in done.stderr
    assert "Rename it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_core_does_not_have_is_told_to_be_ours(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/apps/x/tasks.py", "import core.models\n")

    assert "`core` is the package of core-tasks, which has no such name" in empty.python(FAILS).stdout


def test_a_module_is_imported_once_under_whatever_name_it_has(empty: Project) -> None:
    """A second copy of a module would have a second copy of its state."""
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/apps/x/tasks.py", TASK + "print('imported')\n")
    code = "import sys, os; sys.path.insert(0, 'src'); import apps.x.tasks\n" + IMPORT

    assert empty.python(code).stdout.splitlines() == ["imported"]


def test_the_projects_directory_stands_behind_what_is_installed(empty: Project) -> None:
    """A `src/redis.py` of the project must not hide the client library from a worker."""
    empty.write("src/settings.py", SETTINGS)
    empty.write("src/redis.py", "raise RuntimeError('the wrong one')\n")
    empty.write("src/apps/x/tasks.py", TASK + "import redis\nredis.Redis\n")

    done = empty.run(sys.executable, "-P", "-c", IMPORT + NAMES)

    assert json.loads(done.stdout) == ["src.apps.x.tasks.send"], done.stderr
