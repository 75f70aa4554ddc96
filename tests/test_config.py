"""Settings: where they come from, what each refuses, and what a message never shows."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from support import Project, project

from core.config import Settings
from core.errors import ConfigurationError

SECRET = "Kq7xSecret"
NUMBERS = (
    "task_default_max_retries",
    "task_default_retry_delay",
    "task_default_timeout",
    "task_publish_timeout",
    "task_max_argument_bytes",
    "task_worker_concurrency",
    "task_shutdown_timeout",
    "task_result_expires",
)
ZERO_MEANS_SOMETHING = ("task_default_max_retries", "task_default_retry_delay")

# Reads cases as [[class body, environment], …] from stdin and prints what configure() makes of each.
CASES = """
import json, os, sys
from core.config import Settings, configure
from core.errors import ConfigurationError
outcomes = []
for body, variables in json.loads(os.environ["CASES"]):
    before = dict(os.environ)
    os.environ.update(variables)
    scope = {"__name__": "case"}
    exec("from core.config import *\\nfrom pydantic import Field, SecretStr\\n"
         f"class AppSettings(Settings):\\n    \\"own\\"\\n    {body}\\n", scope)
    try:
        made = configure(scope["AppSettings"])
        outcomes.append({"made": json.loads(made.model_dump_json())})
    except ConfigurationError as error:
        outcomes.append({"error": str(error)})
    os.environ.clear()
    os.environ.update(before)
print(json.dumps(outcomes))
"""


def outcomes(of: Project, *cases: tuple[str, dict[str, str]]) -> list[dict[str, Any]]:
    """What `configure` makes of classes with these bodies under these environments."""
    done = of.python(CASES, CASES=json.dumps(cases))
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` of this checkout and no variable of this machine reaches the settings."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def shared() -> Iterator[Project]:
    with project(copy=None) as made:
        made.write("pyproject.toml", "[project]\nname = 'x'\n")
        yield made


# What is refused


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), float("-inf"), True, False, "many", [1]])
@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_that_means_nothing_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Settings(**{field: value})


@pytest.mark.parametrize("field", [name for name in NUMBERS if name not in ZERO_MEANS_SOMETHING])
def test_zero_is_refused_where_it_means_nothing(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Settings(**{field: 0})


@pytest.mark.parametrize("field", ZERO_MEANS_SOMETHING)
def test_zero_is_taken_where_it_means_something(field: str) -> None:
    assert getattr(Settings(**{field: 0}), field) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task_default_queue", ""),
        ("task_default_queue", " "),
        ("task_default_queue", " default"),
        ("task_default_queue", 3),
        ("task_default_queue", None),
        ("task_queues", ["a", ""]),
        ("task_queues", 5),
        ("task_queues", '["a", '),
        ("task_enabled", "perhaps"),
        ("task_worker_pool", "gevent"),
        ("environment", "prod"),
        ("task_timezone", "Mars/Phobos"),
        ("task_timezone", ""),
        ("task_timezone", "../../etc/passwd"),
        ("redis_url", "http://cache"),
        ("redis_url", "amqp://broker"),
        ("task_broker_url", "kafka://broker"),
        ("task_result_backend_url", "amqp://broker"),
        ("task_result_backend_url", "cache:6379"),
        ("celery", "x"),
        ("celery", {"accept_content": ["json", "pickle"]}),
        ("celery", {"result_accept_content": ["yaml"]}),
        ("celery", {"task_serializer": "pickle"}),
        ("celery", {"result_serializer": "pickle"}),
        ("celery", {"CELERY_ACCEPT_CONTENT": ["pickle"]}),  # Celery still takes the names of old, and prefers them
        ("task_signing_keys", "short"),
        ("task_signing_keys", ["k" * 32, ""]),
        ("task_accept_unsigned", "perhaps"),
    ],
)
def test_a_value_that_a_field_cannot_mean_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Settings(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "made"),
    [
        ("task_queues", "a, b,,c", ("a", "b", "c")),
        ("task_queues", '["a", "b"]', ("a", "b")),
        ("task_queues", "", ()),
        ("task_modules", ["x.y"], ("x.y",)),
        ("task_foreign_callbacks", "a.b, shop.*", ("a.b", "shop.*")),
        ("task_default_timeout", None, None),
        ("task_worker_concurrency", None, None),
        ("task_timezone", "Europe/Berlin", "Europe/Berlin"),
        ("celery", {"accept_content": ["json"]}, {"accept_content": ["json"]}),
    ],
)
def test_a_value_may_be_written_as_people_write_it(field: str, value: object, made: object) -> None:
    assert getattr(Settings(**{field: value}), field) == made


def test_settings_cannot_be_changed_once_they_are_read() -> None:
    settings = Settings()

    with pytest.raises(ValidationError, match="frozen"):
        settings.task_enabled = False  # type: ignore[misc]


# What is said


def test_a_wrong_variable_is_named_with_field_value_and_reason(shared: Project) -> None:
    (found,) = outcomes(shared, ("", {"TASK_PUBLISH_TIMEOUT": "-3", "TASK_WORKER_POOL": "gevent"}))

    assert found["error"].splitlines() == [
        "The settings cannot be used.",
        "  AppSettings.task_publish_timeout = '-3' (variable TASK_PUBLISH_TIMEOUT): Input should be greater than 0",
        "  AppSettings.task_worker_pool = 'gevent' (variable TASK_WORKER_POOL): "
        "Input should be 'asyncio', 'prefork' or 'threads'",
    ]


def test_a_wrong_default_in_the_class_is_named_with_field_value_and_reason(shared: Project) -> None:
    """A subclass that repeats a field with a plain type, as the page does, keeps the field's rules."""
    found = outcomes(
        shared,
        ("task_default_queue: str = ''", {}),
        ("task_publish_timeout: float = float('nan')", {}),
        ("task_default_max_retries: int = True", {}),
        ("task_default_timeout: float = 0", {}),
        ("task_timezone: str = 'Mars/Phobos'", {}),
        ("task_queues: list[str] = ['a', ' b']", {}),
        ("task_worker_pool: str = 'gevent'", {}),
    )

    said = [outcome["error"].splitlines()[1].strip() for outcome in found]
    assert said == [
        "AppSettings.task_default_queue = '': a queue has a name without spaces around it",
        "AppSettings.task_publish_timeout = nan: the number must be finite",
        "AppSettings.task_default_max_retries = True: True and False are not numbers",
        "AppSettings.task_default_timeout = 0: Input should be greater than 0",
        "AppSettings.task_timezone = 'Mars/Phobos': there is no time zone 'Mars/Phobos'; write one like Europe/Berlin",
        "AppSettings.task_queues = ['a', ' b']: a queue has a name without spaces around it",
        "AppSettings.task_worker_pool = 'gevent': Input should be 'asyncio', 'prefork' or 'threads'",
    ]


def test_a_good_default_in_the_class_is_taken(shared: Project) -> None:
    found = outcomes(
        shared,
        ("task_default_queue: str = 'mine'", {}),
        ("task_queues: list[str] = ['a', 'b']", {}),
        ("redis_url: str = 'redis://cache/1'", {}),
        ("own: int = 3", {"OWN": "4"}),
    )

    assert found[0]["made"]["task_default_queue"] == "mine"
    assert found[1]["made"]["task_queues"] == ["a", "b"]
    assert found[2]["made"]["redis_url"] == "*" * 10
    assert found[3]["made"]["own"] == 4


def test_a_field_without_a_value_is_named_with_its_variable(shared: Project) -> None:
    (found,) = outcomes(shared, ("api_key: str", {"REDIS_URL": f"redis://:{SECRET}@cache"}))

    assert found["error"].endswith("AppSettings.api_key (variable API_KEY): Field required")


def test_text_that_should_be_json_is_a_clear_error(shared: Project) -> None:
    found = outcomes(shared, ("", {"CELERY": "worker_pool=x"}), ("task_queues: list[str] = []", {"TASK_QUEUES": "a,b"}))

    assert ['"celery"' in found[0]["error"], '"task_queues"' in found[1]["error"]] == [True, True]
    assert all(outcome["error"].endswith("Write the value as JSON.") for outcome in found)


def test_no_message_shows_what_may_be_a_secret(shared: Project) -> None:
    """URLs, Celery's own settings, and fields that the project adds."""
    found = outcomes(
        shared,
        ("", {"REDIS_URL": f"http://:{SECRET}@cache"}),
        ("", {"REDIS_URL": f"redis://:a/{SECRET}@cache"}),
        ("", {"TASK_BROKER_URL": f"redis://:{SECRET}@cache/x"}),
        (f"redis_url: str = 'http://:{SECRET}@cache'", {}),
        ("", {"CELERY": f'{{"accept_content": ["{SECRET}"]}}'}),
        ("", {"CELERY": SECRET}),
        ("api_key: int", {"API_KEY": SECRET}),
        ("password: SecretStr = Field(min_length=99)", {"PASSWORD": SECRET}),
        ("needed: str", {"REDIS_URL": f"redis://:{SECRET}@cache"}),
    )

    assert [outcome for outcome in found if "error" not in outcome or SECRET in outcome["error"]] == []


def test_a_url_is_not_printed_with_its_settings() -> None:
    settings = Settings(redis_url=SecretStr(f"redis://:{SECRET}@cache"))

    assert SECRET not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    assert settings.broker_url is not None
    assert settings.broker_url.password == SECRET


# Where they come from


def read(of: Project, *names: str, **environment: str) -> list[Any]:
    """Fields of the project's settings, as a process inside it sees them."""
    shown = ", ".join(f"s.{name}" for name in names)
    done = of.python(
        f"import json; from core.config import get_settings; s = get_settings(); print(json.dumps([{shown}]))",
        **environment,
    )
    assert done.returncode == 0, done.stderr
    values: list[Any] = json.loads(done.stdout)
    return values


SETTINGS = """
from core.config import Settings

class AppSettings(Settings):
    task_default_queue: str = "class"
    task_timezone: str = "Europe/Rome"
"""


def test_the_environment_comes_before_the_files_and_the_files_before_the_class(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    empty.write(".env", "TASK_DEFAULT_QUEUE=file\nTASK_RESULT_EXPIRES=1\nTASK_MAX_ARGUMENT_BYTES=7\nSOMEONE_ELSES=1\n")
    empty.write(".env.staging", "TASK_RESULT_EXPIRES=2\nTASK_MAX_ARGUMENT_BYTES=8\n")
    names = ("task_default_queue", "task_timezone", "task_result_expires", "task_max_argument_bytes")

    assert read(empty, *names) == ["file", "Europe/Rome", 1, 7]
    assert read(empty, *names, ENVIRONMENT="staging") == ["file", "Europe/Rome", 2, 8]
    assert read(empty, *names, ENVIRONMENT="staging", TASK_RESULT_EXPIRES="3") == ["file", "Europe/Rome", 3, 8]


def test_the_env_file_is_that_of_the_project_not_of_the_current_directory(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    empty.write(".env", "TASK_DEFAULT_QUEUE=root\n")
    empty.write("src/apps/.env", "TASK_DEFAULT_QUEUE=here\n")
    code = "from core.config import get_settings; print(get_settings().task_default_queue)"

    assert empty.run(sys.executable, "-c", code, cwd=empty.root / "src/apps").stdout.strip() == "root"


def test_the_env_file_may_name_the_environment(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)
    empty.write(".env", "ENVIRONMENT=testing\n")
    empty.write(".env.testing", "TASK_DEFAULT_QUEUE=tests\n")

    assert read(empty, "environment", "task_default_queue") == ["testing", "tests"]


def test_an_empty_variable_is_no_value(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)

    assert read(empty, "task_default_queue", TASK_DEFAULT_QUEUE="") == ["class"]


def test_configure_makes_its_settings_those_of_the_process(empty: Project) -> None:
    empty.write(
        "src/settings.py",
        SETTINGS + "from core.config import configure\nsettings = configure(settings_class=AppSettings)\n",
    )
    code = "from src.settings import settings; from core.config import get_settings; print(get_settings() is settings)"

    assert empty.python(code).stdout.strip() == "True"


def test_a_settings_module_that_calls_configure_is_found_too(empty: Project) -> None:
    empty.write(
        "src/settings.py",
        "from core.config import Settings, configure\n"
        "class Plain(Settings): ...\n"
        "class Mine(Settings):\n    task_default_queue: str = 'mine'\n"
        "settings = configure(settings_class=Mine)\n",
    )

    assert read(empty, "task_default_queue") == ["mine"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "defines no settings"),
        ("from core.config import Settings\n", "defines no settings"),
        (
            "from core.config import Settings\nclass One(Settings): ...\nclass Two(Settings): ...\n",
            "defines One, Two. Name the one to use AppSettings, or set CORE_SETTINGS=src.settings:One.",
        ),
    ],
)
def test_a_settings_module_without_one_clear_class_is_an_error(empty: Project, text: str, said: str) -> None:
    empty.write("src/settings.py", text)

    done = empty.run("core", "config")

    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_named_class_that_is_no_settings_class_is_an_error(empty: Project) -> None:
    empty.write("conf.py", "class Other: ...\n")

    done = empty.run("core", "--settings", "conf:Other", "config")

    assert done.returncode == 2
    assert "conf:Other (--settings) is not a subclass of core.config.Settings" in done.stderr


def test_settings_of_the_wrong_kind_end_a_command_with_2_and_no_traceback(empty: Project) -> None:
    empty.write("src/settings.py", SETTINGS)

    done = empty.run("core", "config", TASK_PUBLISH_TIMEOUT="soon")

    assert done.returncode == 2
    assert "task_publish_timeout = 'soon' (variable TASK_PUBLISH_TIMEOUT)" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_two_urls_may_differ_and_one_serves_for_both() -> None:
    one = Settings(redis_url=SecretStr("redis://one/1"))
    two = Settings(redis_url=SecretStr("redis://one/1"), task_result_backend_url=SecretStr("redis://two/2"))
    none = Settings()

    assert (str(one.broker_url), str(one.result_url)) == ("one:6379/1", "one:6379/1")
    assert (str(two.broker_url), str(two.result_url)) == ("one:6379/1", "two:6379/2")
    assert (none.broker_url, none.result_url) == (None, None)


def test_the_broker_may_be_no_redis_and_results_are_in_one_all_the_same() -> None:
    broker = SecretStr(f"amqp://user:{SECRET}@broker/shop")
    both, alone = (
        Settings(redis_url=SecretStr("redis://one/1"), task_broker_url=broker),
        Settings(task_broker_url=broker),
    )

    assert (str(both.broker_url), str(both.result_url)) == ("amqp://broker:5672/shop", "one:6379/1")
    assert (str(alone.broker_url), alone.result_url) == ("amqp://broker:5672/shop", None)


def test_unchecked_certificates_need_the_setting_not_the_url() -> None:
    url = SecretStr("rediss://cache?ssl_cert_reqs=none")

    with pytest.raises(ConfigurationError, match="redis_verify_certificates"):
        _ = Settings(redis_url=url).broker_url
    unchecked = Settings(redis_url=url, redis_verify_certificates=False).broker_url
    assert unchecked is not None
    assert not unchecked.verify


def test_every_field_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
