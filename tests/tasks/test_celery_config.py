"""The Celery configuration that the settings make: every key is Celery's, and no password is where it can be seen."""

import json
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.app.defaults import NAMESPACES, flatten
from pydantic import SecretStr

from core import discovery
from core.config import Settings, configure
from core.redis_url import BrokerURL, RedisURL, parse_broker
from core.tasks import celery_app
from core.tasks.celery_config import generate, is_one_database

SECRET = "Kq7xSecret"
PLAIN = RedisURL.parse("redis://cache:6380/2")


def made(broker: RedisURL | BrokerURL = PLAIN, results: RedisURL = PLAIN, **settings: Any) -> dict[str, Any]:
    return generate(Settings(**settings), broker, results, "shop")


def test_every_key_is_one_that_celery_or_redbeat_knows() -> None:
    """A misspelt key would be ignored in silence."""
    known = {name for name, _ in flatten(NAMESPACES)} | {"redis_backend_health_check_interval"}  # read, not listed

    assert [key for key in made() if key not in known and not key.startswith("redbeat_")] == []


def test_the_settings_reach_their_keys() -> None:
    config = made(
        task_default_queue="main",
        task_publish_timeout=2,
        task_result_expires=60,
        task_store_arguments=False,
        task_timezone="Europe/Berlin",
        task_worker_pool="threads",
        task_worker_concurrency=7,
    )

    assert config["task_default_queue"] == "main"
    assert config["broker_pool_acquire_timeout"] == 2
    assert config["result_expires"] == 60
    assert config["result_extended"] is False
    assert config["timezone"] == "Europe/Berlin"
    assert (config["worker_pool"], config["worker_concurrency"]) == ("threads", 7)
    assert "worker_concurrency" not in made()


def test_only_json_is_read_and_written() -> None:
    config = made()

    assert config["accept_content"] == config["result_accept_content"] == ["json"]
    assert {config[f"{kind}_serializer"] for kind in ("task", "result", "event")} == {"json"}


def test_certificates_are_checked_everywhere_unless_the_setting_says_otherwise() -> None:
    keys = ("broker_use_ssl", "redis_backend_use_ssl", "redbeat_redis_use_ssl")
    checked = made(*[RedisURL.parse("rediss://cache")] * 2)
    unchecked = made(*[RedisURL.parse("rediss://cache", verify=False)] * 2)

    assert [checked[key]["ssl_cert_reqs"] for key in keys] == [ssl.CERT_REQUIRED] * 3
    assert [unchecked[key]["ssl_cert_reqs"] for key in keys] == [ssl.CERT_NONE] * 3
    assert [made()[key] for key in keys] == [False] * 3


def test_broker_and_results_may_be_in_two_places() -> None:
    config = made(RedisURL.parse("redis://one/1"), RedisURL.parse("rediss://two/2"))

    assert (config["broker_url"], config["result_backend"]) == ("redis://one:6379/1", "rediss://two:6379/2")
    assert config["redbeat_redis_url"] == "redis://one:6379/1"
    assert config["broker_use_ssl"] is False
    assert config["redis_backend_use_ssl"]


def test_sentinel_is_said_to_each_reader_in_its_own_way() -> None:
    url = RedisURL.parse(f"sentinel://:{SECRET}@one,two:26380/1?master_name=m")
    config = made(url, url)
    redbeat = config["redbeat_redis_options"]

    assert config["broker_url"] == f"sentinel://:{SECRET}@one:26379/1;sentinel://:{SECRET}@two:26380/1"
    assert config["result_backend"] == f"sentinel://:{SECRET}@one:26379/1;sentinel://two:26380/1"
    for options in ("broker_transport_options", "result_backend_transport_options"):
        assert config[options]["master_name"] == "m"
        assert config[options]["sentinel_kwargs"]["socket_timeout"] == 5
    assert config["redbeat_redis_url"] == "redis-sentinel://one:26379/1"
    assert (redbeat["sentinels"], redbeat["service_name"]) == ([("one", 26379), ("two", 26380)], "m")
    assert (redbeat["db"], redbeat["password"]) == (1, SECRET)


@pytest.mark.parametrize(
    ("broker", "results", "one"),
    [
        ("redis://one/1", "redis://one/1", True),
        ("redis://one/1", "redis://one/2", False),
        (f"sentinel://:{SECRET}@a,b/1?master_name=m", f"sentinel://:{SECRET}@a,b/1?master_name=m", True),
        (f"sentinel://:{SECRET}@a,b/1?master_name=m", f"sentinel://:{SECRET}@a,b/1?master_name=n", False),
        ("amqp://one/1", "redis://one/1", False),
    ],
)
def test_calls_and_results_are_known_to_be_in_one_database(broker: str, results: str, one: bool) -> None:
    conf = SimpleNamespace(**{"worker_consumer": None, **made(parse_broker(broker), RedisURL.parse(results))})

    assert is_one_database(conf) is one


def test_another_broker_has_options_of_its_own_and_the_schedule_is_where_results_are() -> None:
    config = made(parse_broker(f"amqps://user:{SECRET}@broker/shop"), RedisURL.parse(f"rediss://:{SECRET}@two/2"))

    assert config["broker_url"] == f"amqps://user:{SECRET}@broker/shop"
    assert config["broker_transport_options"] == {"confirm_publish": True}
    assert config["broker_use_ssl"]["cert_reqs"] == ssl.CERT_REQUIRED
    assert config["result_backend"] == f"rediss://:{SECRET}@two:6379/2"
    assert config["redbeat_redis_url"] == "rediss://two:6379/2"
    assert config["redbeat_redis_options"]["password"] == SECRET
    assert config["redbeat_redis_use_ssl"]["ssl_cert_reqs"] == ssl.CERT_REQUIRED


def test_our_own_way_of_taking_calls_is_for_redis_alone() -> None:
    assert "worker_consumer" not in made(parse_broker("amqp://broker"))
    assert "worker_consumer" in made()


def test_the_schedules_url_which_celerys_reports_print_has_no_password() -> None:
    url = RedisURL.parse(f"redis://someone:{SECRET}@cache")
    config = made(url, url)

    assert SECRET not in config["redbeat_redis_url"]
    assert config["redbeat_redis_options"]["password"] == SECRET
    assert config["redbeat_redis_options"]["username"] == "someone"


def test_schedules_of_two_projects_in_one_database_are_kept_apart() -> None:
    assert made()["redbeat_key_prefix"] == "shop:beat:"


def test_celerys_own_settings_come_last_and_options_are_merged() -> None:
    config = made(celery={"worker_prefetch_multiplier": 8, "broker_transport_options": {"visibility_timeout": 60}})

    assert config["worker_prefetch_multiplier"] == 8
    assert config["broker_transport_options"]["visibility_timeout"] == 60
    assert config["broker_transport_options"]["socket_keepalive"] is True


class Secretive(Settings):
    redis_url: SecretStr | None = SecretStr(f"redis://someone:{SECRET}@cache:6380/1")
    celery: dict[str, Any] = {  # noqa: RUF012  pydantic copies it
        "broker_url": f"redis://:{SECRET}@one/1;redis://:{SECRET}@two/1",
        "security_key_password": SECRET,
        "broker_transport_options": {"sentinel_kwargs": {"password": SECRET}, "urls": [f"redis://:a/{SECRET}@x"]},
        "worker_send_task_events": False,
    }


def test_the_configuration_for_people_has_no_password_at_any_depth(tmp_path: Path) -> None:
    configure(Secretive, project=discovery.Project(tmp_path, "x", "test"))

    shown = celery_app.masked_configuration()

    assert SECRET not in json.dumps(shown, default=str)
    assert shown["result_backend"] == "redis://someone:********@cache:6380/1"
    assert shown["worker_send_task_events"] is False
    assert shown["broker_transport_options"]["visibility_timeout"] == 7200


@pytest.mark.parametrize("key", ["accept_content", "result_accept_content"])
def test_more_than_json_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="more than JSON"):
        made(celery={key: ["json", "pickle"]})
