"""`core runworker`: what it refuses to start with, and what it serves."""

from collections.abc import Iterator

import pytest
from support import Project, project, redis_server

SETTINGS = "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n"


@pytest.fixture(scope="module")
def shared() -> Iterator[Project]:
    """One project for the tests that only start a command which refuses."""
    with project() as made:
        yield made


def refused(project: Project, *command: str, **environment: str) -> str:
    """What a command says that ends for a mistake of the user's: exit code 2, no traceback."""
    ended = project.run("core", *command, **environment)
    assert ended.returncode == 2, f"{ended.returncode}\n{ended.stdout}{ended.stderr}"
    assert "Traceback" not in ended.stderr
    return str(ended.stderr)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--pool", "gevent"), "'gevent' is not one of 'asyncio', 'prefork', 'threads'"),
        (("--concurrency", "0"), "0 is not a number from 1 on"),
        (("--concurrency", "-3"), "-3 is not a number from 1 on"),
        (("--concurrency", "many"), "'many' is not a valid integer"),
        (("--concurrency", "nan"), "'nan' is not a valid integer"),
        (("--loglevel", "loud"), "'loud' is not one of"),
        (("--queue", "high-prioritiy"), "names the queue 'high-prioritiy', so no worker would serve it. Did you mean"),
        (("--queue", ""), "names the queue ''"),
        (("--queue", "default", "--queue", "nosuch"), "names the queue 'nosuch'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_without_meaning_is_refused_by_name(shared: Project, options: tuple[str, ...], says: str) -> None:
    assert says in refused(shared, "runworker", *options)


def test_an_unknown_queue_names_the_known_ones(shared: Project) -> None:
    said = refused(shared, "runworker", "--queue", "nosuch", TASK_QUEUES="mail,reports")

    assert "Known queues: default, mail, reports, high-priority" in said


def test_options_come_from_the_environment_as_well(shared: Project) -> None:
    assert "'gevent' is not one of" in refused(shared, "runworker", CORE_RUNWORKER_POOL="gevent")


def test_a_worker_does_not_start_where_tasks_are_disabled(shared: Project) -> None:
    said = refused(shared, "runworker", TASK_ENABLED="false")

    assert "The worker does not start: task_enabled is False. Set TASK_ENABLED=true" in said


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost/0", "the scheme 'http'; known are redis://, rediss://, unix://"),
        ("localhost:6379", "no scheme"),
        ("redis://localhost/first", "the database 'first'; a database is a number"),
        ("redis://localhost:port/0", "a port or host that cannot be read"),
        ("redis://localhost/0?nosuch=1", "the unknown option 'nosuch'"),
        ("unix://", "names no socket"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(shared: Project, url: str, says: str) -> None:
    said = refused(shared, "runworker", REDIS_URL=url)

    assert says in said
    assert "variable REDIS_URL" in said


COMMANDS = [
    ("runworker",),
    ("scheduler", "start"),
    ("scheduler", "stop"),
    ("scheduler", "status"),
    ("scheduler", "list"),
]


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """Where a Redis is that asks for the password `right`, without user and password: host, port and slash."""
    with redis_server("--requirepass", "right") as (url, _):
        yield url.removeprefix("redis://").removesuffix("0")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_wrong_password_is_refused_everywhere(shared: Project, guarded: str, command: tuple[str, ...]) -> None:
    said = refused(shared, *command, REDIS_URL=f"redis://:wrong-one@{guarded}0")

    assert f"Redis at {guarded}0 refuses the user or password in REDIS_URL" in said
    assert "wrong-one" not in said


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_database_that_is_not_there_is_refused_everywhere(
    shared: Project, guarded: str, command: tuple[str, ...]
) -> None:
    said = refused(shared, *command, REDIS_URL=f"redis://:right@{guarded}99")

    assert f"Redis at {guarded}99 has no such database" in said


def test_a_missing_password_is_refused(shared: Project, guarded: str) -> None:
    assert "refuses the user or password" in refused(shared, "runworker", REDIS_URL=f"redis://{guarded}0")


@pytest.mark.parametrize("wrong", ["redis://:wrong-one@{}0", "redis://:right@{}99"], ids=["password", "database"])
def test_delay_says_why_redis_refuses_and_queues_nothing(shared: Project, guarded: str, wrong: str) -> None:
    ended = shared.caller(
        "import asyncio\n"
        "from core.tasks import PublishError\n"
        "from src.apps.probe.tasks import add\n"
        "try:\n    asyncio.run(add.delay(1))\n"
        "except PublishError as error:\n    print(error.maybe_sent, error)\n",
        REDIS_URL=wrong.format(guarded),
    )

    assert ended.stdout.startswith("False src.apps.probe.tasks.add was not queued: Redis at "), ended.stderr
    assert "refuses the user or password" in ended.stdout or "no such database" in ended.stdout
    assert "wrong-one" not in ended.stdout


def test_without_task_modules_every_place_is_named(empty: Project) -> None:
    """Never an idle worker."""
    empty.write("src/settings.py", SETTINGS)

    said = refused(empty, "runworker")

    assert "No tasks found, so there is nothing to run." in said
    for place in ("src/apps/*/tasks.py", "src/apps/*/tasks/__init__.py", "src/tasks.py", "src/tasks/__init__.py"):
        assert f"looked for {empty.root}/{place}" in said
    assert "task_modules" in said


@pytest.mark.parametrize("command", [("runworker",), ("scheduler", "start")], ids=" ".join)
def test_every_broken_task_module_shows_the_users_own_last_line(fresh: Project, command: tuple[str, ...]) -> None:
    fresh.write("src/apps/bad/tasks.py", "def first():\n    return {}['missing']\n\n\nfirst()\n")
    fresh.write("src/apps/worse/tasks.py", "from core.tasks import task\n\n\n@task(retries=3)\nasync def f(): ...\n")
    fresh.write("src/apps/worst/tasks.py", "import json\n\njson.loads('{')\n")

    said = refused(fresh, *command)

    assert (
        f"src.apps.bad.tasks could not be imported: KeyError: 'missing'\n  at {fresh.root}/src/apps/bad/tasks.py:2:"
        in said
    )
    assert "src.apps.worse.tasks could not be imported: TaskDefinitionError: " in said
    assert f"{fresh.root}/src/apps/worse/tasks.py:4" in said
    assert f"at {fresh.root}/src/apps/worst/tasks.py:3: json.loads('{{')" in said


def test_a_module_in_task_modules_that_is_not_there_is_named(shared: Project) -> None:
    assert "nosuch.jobs could not be imported" in refused(shared, "runworker", TASK_MODULES="nosuch.jobs")


def test_tasks_are_found_in_every_place(empty: Project) -> None:
    """Files, packages with their submodules, `src/tasks.py` and `task_modules`."""
    empty.write("src/settings.py", SETTINGS)
    text = "from core.tasks import task\n\n\n@task(queue='{0}')\nasync def {0}(): ...\n"
    for place, name in {
        "src/apps/one/tasks.py": "one",
        "src/apps/two/tasks/__init__.py": "two",
        "src/apps/two/tasks/more.py": "three",
        "src/tasks.py": "four",
        "elsewhere/jobs.py": "five",
    }.items():
        empty.write(place, text.format(name))

    worker = empty.worker("--pool", "threads", TASK_MODULES="elsewhere.jobs")

    for queue in ("one", "two", "three", "four", "five"):
        assert queue in worker.text().partition("serving ")[2].partition(" ·")[0].split(", ")


def test_options_of_celery_worker_come_after_two_dashes(shared: Project) -> None:
    """They reach Celery, which here refuses one that it does not know."""
    assert "No such option '--no-such-option'" in refused(shared, "runworker", "--", "--no-such-option")


def test_a_module_that_prints_does_not_disturb_the_worker(empty: Project) -> None:
    """What the project itself logs and prints stays as it is."""
    empty.write("src/settings.py", SETTINGS)
    empty.write(
        "src/tasks.py",
        "import logging\n\nfrom core.tasks import task\n\n"
        "logging.basicConfig(format='MINE %(message)s', level='INFO')\n\n\n@task\nasync def f(): ...\n",
    )

    worker = empty.worker("--pool", "threads")

    assert "MINE serving default" in worker.text()
    assert worker.text().count("serving default") == 1
