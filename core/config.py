"""The project's settings: one class to subclass, and the one instance that this process uses."""

import os
import sys
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from core import discovery
from core.errors import ConfigurationError, SettingsNotFound
from core.field import Count, CountOrZero, Names, QueueName, QueueNames, Seconds, SecondsOrZero, Secrets
from core.redis_url import BrokerURL, RedisURL, parse_broker

S = TypeVar("S", bound="Settings")


class Settings(BaseSettings):
    """What a project may set. Subclass it in `src/settings.py`; each field is also read from the
    environment variable of its own name in capitals, then from `.env.{ENVIRONMENT}` and `.env` in the
    project's root. Durations are seconds.
    """

    model_config = SettingsConfigDict(
        extra="ignore", frozen=True, env_ignore_empty=True, validate_default=True, hide_input_in_errors=True
    )

    environment: Literal["development", "staging", "production", "testing"] = Field(
        default="development", description="Where this process runs. `production` never starts a development server."
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis or Valkey for broker, results and schedule: `redis://`, `rediss://`, `unix://` or "
        "`sentinel://`. Unset, a development server is started inside the project.",
    )
    redis_verify_certificates: bool = Field(
        default=True,
        description="Whether TLS checks the server's certificate. False invites a man in the middle.",
    )
    task_broker_url: SecretStr | None = Field(
        default=None,
        description="The broker, where it is not at `redis_url`: a Redis as there, or `amqp://`, `amqps://`, `sqs://`.",
    )
    task_result_backend_url: SecretStr | None = Field(
        default=None, description="The Redis for results, where it is not at `redis_url`."
    )
    task_enabled: bool = Field(
        default=True, description="False: `delay` raises TasksDisabled, and worker and scheduler refuse to start."
    )
    task_default_queue: QueueName = Field(default="default", description="The queue of tasks that name none.")
    task_queues: QueueNames = Field(
        default=(), description="Queues beside the default one and those that tasks name, as a list or `a,b`."
    )
    task_modules: Names = Field(
        default=(), description="Modules with tasks beside `src/apps/*/tasks.py` and `src/tasks.py`: a list or `a,b`."
    )
    task_default_max_retries: CountOrZero = Field(
        default=3, description="Retries after the first attempt: 3 means up to 4 attempts, 0 never retries."
    )
    task_default_retry_delay: SecondsOrZero = Field(default=60.0, description="Seconds between attempts.")
    task_default_timeout: Seconds | None = Field(
        default=300.0, description="Seconds one attempt may take; empty in code (None) means no limit."
    )
    task_publish_timeout: Seconds = Field(
        default=5.0, description="Seconds after which `delay` gives up on the broker."
    )
    task_max_argument_bytes: Count = Field(
        default=262_144,
        description="Largest size of a call's arguments as JSON. Big values belong in a store, not in Redis.",
    )
    task_broker_transport: Literal["core", "stock"] = Field(
        default="core",
        description="How a worker takes calls from Redis: `core` never loses one, `stock` is Celery's own way.",
    )
    task_lease: Annotated[Seconds, Field(ge=1)] = Field(
        default=60.0, description="Seconds after which the calls of a worker that died are given to others."
    )
    task_unknown_hold: Seconds = Field(
        default=3600.0,
        description="Seconds for which a call whose task no worker knows waits for one that does.",
    )
    task_worker_stuck_after: Seconds = Field(
        default=300.0, description="Seconds after which a worker that does not react any more exits, with code 70."
    )
    task_remote_control: Literal["full", "safe", "off"] | None = Field(
        default=None,
        description="Which commands of `celery control` a worker follows: `full` is all, `safe` refuses those that "
        "stop or slow it, `off` is none. A running call is cancelled some seconds later then, and with Celery's own "
        "transport not at all. Unset it is `full`, and in production `safe`.",
    )
    task_signing_keys: Secrets = Field(
        default=(),
        description="Secrets of 32 characters or more, as a list or `new,old`. The first signs what this process "
        "sends; workers set aside what none of them has signed. Empty signs nothing.",
    )
    task_accept_unsigned: bool = Field(
        default=False, description="True while signing is rolled out: workers with keys also run what is not signed."
    )
    task_foreign_callbacks: Names = Field(
        default=(),
        description="Tasks of other projects that a call may name to follow it, as names or patterns like `billing.*`.",
    )
    task_log_format: Literal["text", "json"] = Field(
        default="text",
        description="How worker and scheduler log on stderr: `json` is one object a line, with the task and its call's "
        "id in those of a task.",
    )
    task_context_headers: Names = Field(
        default=(),
        description="Context variables whose text travels with calls, as `module:NAME`: a list or `a,b`. The worker "
        "sets them around each call.",
    )
    task_slow_callback: Seconds = Field(
        default=1.0,
        description="Seconds for which a body may block the event loop before the log names it, with the place in its "
        "code (asyncio and threads).",
    )
    task_worker_pool: Literal["asyncio", "prefork", "threads"] = Field(
        default="asyncio",
        description="`asyncio`: coroutines share event loops. `prefork`: a process per call at once. `threads`: a "
        "thread per call at once.",
    )
    task_worker_concurrency: Count | None = Field(
        default=None,
        description="Calls at once in a worker. Unset: 100 (asyncio), the number of cores (prefork) or 50 (threads).",
    )
    task_worker_processes: Count | None = Field(
        default=None,
        description="Processes that a worker's calls are spread over (asyncio). Unset: one for each core.",
    )
    task_worker_threads: Count = Field(
        default=32, description="Plain functions at once in each process (asyncio); each takes a thread."
    )
    task_shutdown_timeout: Seconds = Field(
        default=25.0, description="Seconds a stopping worker lets calls finish before it puts them back."
    )
    task_result_expires: Count = Field(default=86_400, description="Seconds that results are kept.")
    task_store_arguments: bool = Field(
        default=True,
        description="Keep name and arguments beside the result, where Flower shows them. False for privacy.",
    )
    task_timezone: str = Field(default="UTC", description="The time zone in which cron entries are read.")
    celery: dict[str, Any] = Field(
        default_factory=dict, description="Celery's own settings, merged last over the generated ones."
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _keep_our_rules(cls, value: Any, theirs: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """`task_default_queue: str = ""` in a subclass replaces the field and with it the field's rules: both count."""
        checked = theirs(value)
        name = str(info.field_name)
        ours = Settings.model_fields[name].rebuild_annotation() if name in Settings.model_fields else None
        if ours is None or ours == cls.model_fields[name].rebuild_annotation():
            return checked
        try:
            return TypeAdapter[Any](ours).validate_python(value)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None

    @field_validator("task_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            zoneinfo.ZoneInfo(value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"there is no time zone {value!r}; write one like Europe/Berlin") from None
        return value

    @field_validator("redis_url", "task_broker_url", "task_result_backend_url")
    @classmethod
    def _readable_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        parse = parse_broker if info.field_name == "task_broker_url" else RedisURL.parse
        try:
            if value is not None:
                # Certificates are judged where the URL is used, with the setting that governs them.
                parse(value.get_secret_value(), verify=False)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("task_signing_keys")
    @classmethod
    def _long_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < 32 for key in value):
            raise ValueError("a key has fewer than 32 characters; `openssl rand -hex 32` makes one")
        return value

    @field_validator("celery")
    @classmethod
    def _json_only(cls, value: dict[str, Any]) -> dict[str, Any]:
        if capitals := [key for key in value if key != key.lower()]:
            raise ValueError(f"{min(capitals)} is a name of Celery 3; write the one of today, in small letters")
        for key in ("accept_content", "result_accept_content"):
            if key in value and set(value[key] or ["json"]) - {"json", "application/json"}:
                raise ValueError(f"{key} admits more than JSON, which lets whoever can write to Redis run code")
        for key in ("task_serializer", "result_serializer", "event_serializer"):
            if value.get(key, "json") != "json":
                raise ValueError(f"{key} must be json")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, then `.env.{ENVIRONMENT}`, then `.env`, both in the project's root, then the class."""
        if settings_cls.model_config.get("env_file") is not None:
            return init_settings, env_settings, dotenv_settings, file_secret_settings
        root = _root_of(settings_cls)
        base = DotEnvSettingsSource(settings_cls, env_file=root / ".env")
        named = os.environ.get("ENVIRONMENT") or base.env_vars.get("environment")
        named = named or settings_cls.model_fields["environment"].default
        return init_settings, env_settings, DotEnvSettingsSource(settings_cls, env_file=root / f".env.{named}"), base

    @property
    def remote_control(self) -> Literal["full", "safe", "off"]:
        """`task_remote_control`, or what it is where that is unset."""
        return self.task_remote_control or ("safe" if self.environment == "production" else "full")

    @property
    def uses_core_transport(self) -> bool:
        """Whether workers take their calls from Redis by our own transport, which alone knows how each ends."""
        return self.task_broker_transport == "core" and not isinstance(self.broker_url, BrokerURL)

    @property
    def broker_url(self) -> RedisURL | BrokerURL | None:
        """Where the broker is; None when nothing says so."""
        secret = self.task_broker_url or self.redis_url
        return parse_broker(secret.get_secret_value(), verify=self.redis_verify_certificates) if secret else None

    @property
    def result_url(self) -> RedisURL | None:
        """Where results are; None when nothing says so."""
        secret = self.task_result_backend_url or self.redis_url
        return RedisURL.parse(secret.get_secret_value(), verify=self.redis_verify_certificates) if secret else None


def _root_of(settings_class: type[BaseSettings]) -> Path:
    """The root of the project that a settings class was written in."""
    if _current.project:
        return _current.project.root
    file = getattr(sys.modules.get(settings_class.__module__), "__file__", None)
    if file and settings_class is not Settings:
        return discovery.project_root(Path(file).resolve().parent) or Path.cwd()
    return discovery.project_root(Path.cwd()) or Path.cwd()


class _Current:
    """This process's project and settings, found once."""

    project: discovery.Project | None = None
    settings: Settings | None = None


_current = _Current()


def configure(settings_class: type[S], *, project: discovery.Project | None = None) -> S:
    """Read the settings from *settings_class* and make them this process's own.

    Raises:
        ConfigurationError: A field has a value of the wrong kind; the message names field, variable and reason.
    """
    try:
        settings = settings_class()
    except ValidationError as error:
        raise _explained(error, settings_class) from None
    except SettingsError as error:  # text in the environment or a .env file that is to be JSON and is not
        raise ConfigurationError(f"The settings cannot be used: {error}. Write the value as JSON.") from None
    _current.project = project or _current.project
    _current.settings = settings
    return settings


def get_settings() -> Settings:
    """This process's settings: what `configure` made, else what discovery finds from the current directory.

    Raises:
        SettingsNotFound: There is no settings module in any of the places where one may be.
        ConfigurationError: The settings are there and cannot be used.
    """
    if _current.settings is None:
        load_project()
    assert _current.settings is not None
    return _current.settings


@contextmanager
def overridden(**fields: Any) -> Iterator[Settings]:
    """Have other values in some fields of this process's settings for a while.

    Where the project has no settings, they are those of `Settings` itself.

    Raises:
        ConfigurationError: The settings are there and cannot be used.
    """
    before = _current.project, _current.settings
    try:
        try:
            settings = get_settings()
        except SettingsNotFound:
            settings = configure(Settings)
        _current.settings = settings.model_copy(update=fields)
        yield _current.settings
    finally:
        _current.project, _current.settings = before


def get_project() -> discovery.Project:
    """The project that this process runs."""
    if _current.project is None:
        if _current.settings is None:
            return load_project()
        # configure() was called by hand: the project is where its class was written.
        made = type(_current.settings)
        _current.project = discovery.Project(_root_of(made), f"{made.__module__}:{made.__qualname__}", "configure()")
    return _current.project


def load_project(settings: str | None = None) -> discovery.Project:
    """Find the project, import its settings module and read its settings.

    Args:
        settings: `module:Class`, as `--settings` gives it; None looks in the usual places.
    """
    project = discovery.find_project(settings)
    _current.project = project
    _current.settings = None
    module = discovery.import_settings(project)
    if _current.settings is None:  # unless the module called configure() itself
        configure(_settings_class(module, project), project=project)
    return project


def _settings_class(module: Any, project: discovery.Project) -> type[Settings]:
    named = project.settings.partition(":")[2]
    if named:
        found = getattr(module, named, None)
        if not (isinstance(found, type) and issubclass(found, Settings)):
            raise ConfigurationError(
                f"{project.settings} ({project.source}) is not a subclass of core.config.Settings."
            )
        return found
    own = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Settings) and value.__module__ == module.__name__
    }
    if "AppSettings" in own:
        return own["AppSettings"]
    if len(own) == 1:
        return next(iter(own.values()))
    if own:
        raise ConfigurationError(
            f"{project.source} defines {', '.join(sorted(own))}. Name the one to use AppSettings, "
            f"or set CORE_SETTINGS={module.__name__}:{min(own)}."
        )
    raise ConfigurationError(
        f"{project.source} defines no settings. Write `from core.config import Settings` "
        "and `class AppSettings(Settings): ...` there."
    )


def _explained(error: ValidationError, settings_class: type[Settings]) -> ConfigurationError:
    lines = []
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        reason = problem["msg"].removeprefix("Value error, ")
        missing = problem["type"] == "missing"
        set_there = name in os.environ or name.upper() in os.environ
        variable = f" (variable {name.upper()})" if missing or set_there else ""
        # A field of the project's own may hold a secret, and so may a URL, a key and Celery's own settings.
        open_field = name in Settings.model_fields and name != "celery" and not name.endswith(("_url", "_keys"))
        shown = f" = {problem['input']!r}" if open_field and not missing else ""
        lines.append(f"{settings_class.__name__}.{name}{shown}{variable}: {reason}")
    return ConfigurationError("The settings cannot be used.\n  " + "\n  ".join(lines))
