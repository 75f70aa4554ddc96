"""What all commands share: where they find the project and its settings, and how a mistake ends them."""

import json
import sys
from typing import Any

import pytest
from support import Project

SETTINGS = "from core.config import Settings\n\n\nclass {name}(Settings):\n    task_default_queue: str = {queue!r}\n"


def setting(project: Project, name: str, *options: str, **where: Any) -> Any:
    """One key of the Celery configuration that the project's settings make."""
    shown = project.run("core", *options, "config", "--json", **where)
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)[name]


def refused(project: Project, *command: str, **where: Any) -> str:
    """What a command says that ends for a mistake of the user's."""
    ended = project.run("core", *command, **where)
    assert ended.returncode == 2, f"{ended.returncode}\n{ended.stdout}{ended.stderr}"
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    return str(ended.stderr)


# Help.


@pytest.mark.parametrize(
    "command",
    [(), ("runworker",), ("scheduler",), ("scheduler", "start"), ("broker",), ("config",)],
    ids=lambda command: " ".join(command) or "core",
)
def test_help_works_outside_a_project(empty: Project, command: tuple[str, ...]) -> None:
    shown = empty.run("core", *command, "--help")

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("Usage: core")


def test_help_names_exactly_the_pools_that_work(empty: Project) -> None:
    shown = empty.run("core", "runworker", "--help").stdout

    assert "[asyncio|prefork|threads]" in shown
    assert not [name for name in ("gevent", "eventlet", "solo") if name in shown]


def test_help_imports_neither_celery_nor_the_settings(empty: Project) -> None:
    """That is what makes `core --help` quick."""
    shown = empty.python(
        "import sys, time\n"
        "began = time.process_time()\n"
        "from core.cli import main\n"
        "sys.argv = ['core', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "seconds = time.process_time() - began\n"
        "print(sorted({'celery', 'kombu', 'redis', 'pydantic', 'core.config'} & set(sys.modules)), seconds < 0.5)"
    )

    assert shown.stdout.splitlines()[-1] == "[] True"


def test_help_and_version_need_no_home_and_no_terminal(empty: Project) -> None:
    assert empty.run("core", "--version", HOME="/nonexistent").stdout.startswith("core, version ")


@pytest.mark.parametrize(
    ("command", "meant"),
    [(("runwoker",), "runworker"), (("scheduler", "strat"), "start"), (("broker", "stauts"), "status")],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistyped_command_is_guessed(empty: Project, command: tuple[str, ...], meant: str) -> None:
    assert f"No such command '{command[-1]}'. Did you mean '{meant}'?" in refused(empty, *command)


def test_a_command_unlike_any_other_is_refused_without_a_guess(empty: Project) -> None:
    said = refused(empty, "zzz")

    assert "No such command 'zzz'" in said
    assert "Did you mean" not in said


def test_an_unknown_option_is_refused(empty: Project) -> None:
    assert "No such option" in refused(empty, "runworker", "--concurency", "4")


# Where the project is.


@pytest.mark.parametrize("below", ["src/apps/probe", "docs/a/b"])
def test_commands_work_from_any_directory_of_the_project(fresh: Project, below: str) -> None:
    (fresh.root / below).mkdir(parents=True, exist_ok=True)
    fresh.write("src/settings.py", SETTINGS.format(name="AppSettings", queue="found"))

    shown = fresh.run("core", "-v", "config", "--json", cwd=fresh.root / below)

    assert json.loads(shown.stdout)["task_default_queue"] == "found"
    assert shown.stderr == (f"settings: src.settings from {fresh.root / 'src/settings.py'} · project: {fresh.root}\n")


def test_the_first_place_that_names_settings_wins_and_v_says_which(empty: Project) -> None:
    """From the last place to the first; each new one beats all before it."""
    places: list[tuple[str, tuple[str, ...], dict[str, str]]] = []

    def shown() -> tuple[str, str]:
        options = [option for _, more, _ in places for option in more]
        environment = {key: value for *_, more in places for key, value in more.items()}
        ended = empty.run("core", "-v", *options, "config", "--json", **environment)
        return json.loads(ended.stdout)["task_default_queue"], ended.stderr

    empty.write("settings.py", SETTINGS.format(name="AppSettings", queue="top"))
    assert (shown()[0], "settings.py" in shown()[1]) == ("top", True)

    empty.write("src/settings.py", SETTINGS.format(name="AppSettings", queue="src"))
    assert shown()[0] == "src"

    empty.write("pyproject.toml", '[tool.core]\nsettings = "conf.project"\n')
    empty.write("conf/project.py", SETTINGS.format(name="Whatever", queue="pyproject"))
    queue, said = shown()
    assert (queue, f"conf.project from [tool.core] in {empty.root}/pyproject.toml" in said) == ("pyproject", True)

    empty.write("conf/variable.py", SETTINGS.format(name="Whatever", queue="variable"))
    places.append(("CORE_SETTINGS", (), {"CORE_SETTINGS": "conf.variable"}))
    queue, said = shown()
    assert queue == "variable"
    assert "settings: conf.variable" in said

    empty.write("conf/option.py", SETTINGS.format(name="Named", queue="option"))
    places.append(("--settings", ("--settings", "conf.option:Named"), {}))
    queue, said = shown()
    assert (queue, "settings: conf.option:Named from --settings" in said) == ("option", True)


def test_core_settings_works_without_the_command_as_well(empty: Project) -> None:
    """A web process finds its settings by the same rules."""
    empty.write("conf.py", SETTINGS.format(name="Whatever", queue="variable"))

    shown = empty.python(
        "from core.config import get_settings; print(get_settings().task_default_queue)", CORE_SETTINGS="conf:Whatever"
    )

    assert shown.stdout.strip() == "variable", shown.stderr


def test_settings_that_configure_made_are_the_ones(empty: Project) -> None:
    text = SETTINGS.format(name="Mine", queue="configured") + "\n\nsettings = configure(settings_class=Mine)\n"
    empty.write("src/settings.py", text.replace("import Settings", "import Settings, configure"))

    assert setting(empty, "task_default_queue") == "configured"


# What is missing or broken.


def test_without_settings_every_place_that_was_tried_is_named(empty: Project) -> None:
    below = empty.root / "deep/down"
    below.mkdir(parents=True)
    empty.write("pyproject.toml", "[project]\nname = 'x'\n")

    said = refused(empty, "runworker", cwd=below)

    for place in ("--settings", "CORE_SETTINGS", f"[tool.core] in {empty.root}/pyproject.toml"):
        assert f"looked for {place}" in said or f"looked for the variable {place}" in said, place
    for directory in (below, below.parent, empty.root):
        assert f"looked for {directory}/src/settings.py" in said
        assert f"looked for {directory}/settings.py" in said
    assert "class AppSettings(Settings)" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("from core.config import Settings\n\nLIMIT = int('many')\n", "/src/settings.py:3: LIMIT = int('many')"),
        ("class AppSettings(Settings):\n", "/src/settings.py:1: class AppSettings(Settings):"),
        ("import nosuchpackage\n", "No module named 'nosuchpackage'"),
        ("raise SystemExit(0)\n", "SystemExit"),
        ("x = 1\n", "defines no settings"),
        (SETTINGS.format(name="A", queue="a") + SETTINGS.format(name="B", queue="b"), "defines A, B. Name the one"),
    ],
    ids=["error", "syntax", "import", "exit", "none", "two"],
)
def test_broken_settings_show_the_users_own_last_line(empty: Project, text: str, says: str) -> None:
    empty.write("src/settings.py", text)

    said = refused(empty, "runworker")

    assert says in said
    assert "src/settings.py" in said or "src.settings" in said


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("nosuch:AppSettings", "nosuch could not be imported: ModuleNotFoundError"),
        ("src.settings:Nosuch", "src.settings:Nosuch (--settings) is not a subclass of core.config.Settings"),
        ("src.apps.emails.tasks", "defines no settings"),
    ],
)
def test_settings_that_are_not_there_are_refused_by_name(fresh: Project, named: str, says: str) -> None:
    assert says in refused(fresh, "--settings", named, "config")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tool.core]\nsetings = 'a'\n", "unknown key 'setings'"),
        ("[tool.core\n", "cannot be read"),
        ("[tool]\ncore = 'conf'\n", "pyproject.toml"),
    ],
    ids=["key", "syntax", "table"],
)
def test_a_pyproject_that_cannot_be_used_is_named(fresh: Project, text: str, says: str) -> None:
    fresh.write("pyproject.toml", text)

    assert says in refused(fresh, "config")


def test_a_field_of_the_wrong_type_is_named_with_variable_value_and_reason(fresh: Project) -> None:
    """All of them at once, not one after the other."""
    said = refused(fresh, "config", TASK_DEFAULT_TIMEOUT="soon", TASK_WORKER_CONCURRENCY="0", TASK_TIMEZONE="Mars/X")

    assert "AppSettings.task_default_timeout = 'soon' (variable TASK_DEFAULT_TIMEOUT): " in said
    assert "AppSettings.task_worker_concurrency = '0' (variable TASK_WORKER_CONCURRENCY): " in said
    assert "there is no time zone 'Mars/X'" in said


@pytest.mark.parametrize(
    "values",
    [
        {"TASK_DEFAULT_TIMEOUT": "nan", "TASK_DEFAULT_MAX_RETRIES": "-1", "ENVIRONMENT": "prod"},
        {"TASK_DEFAULT_TIMEOUT": "-1", "TASK_SHUTDOWN_TIMEOUT": "inf", "TASK_WORKER_POOL": "gevent"},
        {"TASK_DEFAULT_TIMEOUT": "0", "TASK_DEFAULT_QUEUE": " ", "REDIS_URL": "amqp://x"},
        {"TASK_QUEUES": "[1"},
    ],
    ids=lambda values: " ".join(values),
)
def test_a_value_without_meaning_is_refused(fresh: Project, values: dict[str, str]) -> None:
    said = refused(fresh, "config", **values)

    for variable in values:
        assert f"AppSettings.{variable.lower()}" in said


def test_a_folder_named_core_is_named_as_the_cause(fresh: Project) -> None:
    fresh.write("core/__init__.py", "")
    fresh.write("core/mail.py", "HOST = 'x'\n")
    fresh.write("src/apps/own/tasks.py", "from core.mail import HOST\nfrom core.tasks import task\n")

    said = refused(fresh, "runworker")

    assert f"Your own {fresh.root}/core has the name of the installed package `core`. Rename it." in said
    assert "src/apps/own/tasks.py:1: from core.mail import HOST" in said


# .env files.


def test_an_env_file_with_keys_of_others_is_no_mistake(fresh: Project) -> None:
    fresh.write(".env", "DATABASE_URL=postgres://x\nTASK_DEFAULT_QUEUE=from-env\nAPP_NAME='my app'\n")

    assert setting(fresh, "task_default_queue") == "from-env"


def test_env_files_are_those_of_the_project_root_and_the_nearest_to_the_process_wins(fresh: Project) -> None:
    """Environment, then .env.{ENVIRONMENT}, then .env, then the class – from whatever directory."""
    below = fresh.root / "src/apps"
    (below / ".env").write_text("TASK_DEFAULT_QUEUE=wrong-directory\n")
    fresh.write(".env", "TASK_DEFAULT_QUEUE=plain\nTASK_TIMEZONE=Europe/Berlin\n")
    fresh.write(".env.staging", "TASK_DEFAULT_QUEUE=staging\n")

    assert setting(fresh, "task_default_queue", cwd=below) == "plain"
    assert setting(fresh, "task_default_queue", cwd=below, ENVIRONMENT="staging") == "staging"
    assert setting(fresh, "timezone", cwd=below, ENVIRONMENT="staging") == "Europe/Berlin"
    assert (
        setting(fresh, "task_default_queue", cwd=below, ENVIRONMENT="staging", TASK_DEFAULT_QUEUE="variable")
        == "variable"
    )


def test_the_env_file_may_say_which_environment_it_is(fresh: Project) -> None:
    """ENVIRONMENT itself is a setting, so .env can choose .env.production."""
    fresh.write(".env", "ENVIRONMENT=production\n")
    fresh.write(".env.production", "REDIS_URL=redis://127.0.0.1:1/5\n")

    assert setting(fresh, "broker_url") == "redis://127.0.0.1:1/5"


def test_a_bad_value_in_an_env_file_is_refused_like_any_other(fresh: Project) -> None:
    fresh.write(".env", "TASK_DEFAULT_MAX_RETRIES=lots\n")

    assert "AppSettings.task_default_max_retries" in refused(fresh, "config")


def test_python_code_below_the_root_finds_the_same_project(fresh: Project) -> None:
    (fresh.root / "src/apps/deep").mkdir()

    shown = fresh.run(
        sys.executable, "-c", "from core.config import get_project; print(get_project().root)",
        cwd=fresh.root / "src/apps/deep",
    )  # fmt: skip

    assert shown.stdout.strip() == str(fresh.root)
