"""What is checked before production: pure judgements of settings and of what a server says."""

from typing import Any

import pytest

from core.config import Settings, configure
from core.redis_url import RedisURL
from core.tasks import checks


def names(found: Any) -> set[str]:
    return {finding.name for finding in found}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://127.0.0.1:6379/0", set()),
        ("unix:///run/redis.sock", set()),
        ("redis://redis:6379/0", {"password"}),
        ("redis://:word@redis:6379/0", set()),
        ("redis://:word@10.0.0.7:6379/0", set()),
        ("redis://:word@redis.example.com:6379/0", {"tls"}),
        ("redis://8.8.8.8:6379/0", {"password", "tls"}),
        ("rediss://:word@redis.example.com:6379/0", set()),
    ],
)
def test_for_production_a_server_has_a_password_and_tls_outside(text: str, expected: set[str]) -> None:
    class Own(Settings):
        redis_url: Any = text

    configure(Own)
    url = RedisURL.parse(text)

    assert names(checks.of_settings(url, deploy=True)) == expected
    assert names(checks.of_settings(url, deploy=False)) == set()


def test_certificates_that_nobody_checks_are_named() -> None:
    class Own(Settings):
        redis_url: Any = "rediss://:word@redis.example.com"

    configure(Own)
    url = RedisURL.parse("rediss://:word@redis.example.com", verify=False)

    assert names(checks.of_settings(url, deploy=True)) == {"certificates"}


@pytest.mark.parametrize(
    ("version", "expected"),
    [("6.0.16", {"version"}), ("5.0", {"version"}), ("6.2.0", set()), ("7.2.4", set()), ("", set())],
)
def test_an_old_server_is_named(version: str, expected: set[str]) -> None:
    assert names(checks.of_server({"redis_version": version}, deploy=False)) == expected
