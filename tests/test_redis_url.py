"""One URL means the same to Celery, to the Redis client and to people, and a password is never in a message."""

import ssl

import pytest
from kombu import Connection
from redis.connection import parse_url

from core.errors import ConfigurationError
from core.redis_url import RedisURL

SECRET = "Kq7xSecret"


@pytest.mark.parametrize(
    ("text", "host", "port", "db", "user", "password"),
    [
        ("redis://", "localhost", 6379, 0, None, None),
        ("redis://cache", "cache", 6379, 0, None, None),
        ("redis://cache:6380/2", "cache", 6380, 2, None, None),
        ("redis://cache/?db=5", "cache", 6379, 5, None, None),
        ("redis://:p%40s%2Fs%23%3F@cache:6380/2", "cache", 6380, 2, None, "p@s/s#?"),
        ("redis://us%3Aer:pw@cache/1", "cache", 6379, 1, "us:er", "pw"),
        ("redis://user@cache", "cache", 6379, 0, "user", None),
        ("redis://[::1]:6380/1", "::1", 6380, 1, None, None),
        ("rediss://:pw@cache:6390/0", "cache", 6390, 0, None, "pw"),
    ],
)
def test_celery_and_the_client_read_the_same_as_the_user_wrote(
    text: str, host: str, port: int, db: int, user: str | None, password: str | None
) -> None:
    url = RedisURL.parse(text)
    celery = Connection(url.for_celery())
    client = parse_url(url.for_client())

    assert (url.host, url.port, url.db, url.username, url.password) == (host, port, db, user, password)
    assert (celery.hostname, celery.port, int(celery.virtual_host)) == (host, port, db)
    assert (celery.userid, celery.password) == (user, password)
    assert (client["host"], client["port"], client["db"]) == (host, port, db)
    assert (client.get("username"), client.get("password")) == (user, password)


@pytest.mark.parametrize(
    ("text", "path", "db", "password"),
    [
        ("unix:///run/redis.sock", "/run/redis.sock", 0, None),
        ("unix:///run/redis.sock?db=3", "/run/redis.sock", 3, None),
        ("redis+socket:///run/redis.sock?virtual_host=4", "/run/redis.sock", 4, None),
        ("unix:///run/a%20b@c/redis.sock", "/run/a b@c/redis.sock", 0, None),
        ("unix://user:p%40@/run/redis.sock?db=1", "/run/redis.sock", 1, "p@"),
    ],
)
def test_a_unix_socket_may_be_written_in_either_spelling(text: str, path: str, db: int, password: str | None) -> None:
    url = RedisURL.parse(text)
    client = parse_url(url.for_client())

    assert (url.host, url.socket, url.db, url.password) == (None, path, db, password)
    assert (client["path"], client["db"], client.get("password")) == (path, db, password)
    assert url.for_celery().startswith("redis+socket://")
    assert url.for_celery().endswith(f"?virtual_host={db}")
    assert RedisURL.parse(url.for_celery()) == url
    assert RedisURL.parse(url.for_client()) == url


def test_tls_checks_certificates_unless_the_setting_says_otherwise() -> None:
    checked = RedisURL.parse("rediss://cache?ssl_ca_certs=/etc/ca.pem").tls_options()
    unchecked = RedisURL.parse("rediss://cache", verify=False).tls_options()

    assert checked == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/etc/ca.pem"}
    assert unchecked == {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}
    assert RedisURL.parse("redis://cache").tls_options() is None


@pytest.mark.parametrize("value", ["none", "CERT_NONE", "optional"])
def test_a_url_cannot_switch_certificate_checks_off(value: str) -> None:
    with pytest.raises(ConfigurationError, match="redis_verify_certificates"):
        RedisURL.parse(f"rediss://cache?ssl_cert_reqs={value}")


@pytest.mark.parametrize("value", ["required", "CERT_REQUIRED"])
def test_a_url_may_ask_for_the_checks_that_are_made_anyway(value: str) -> None:
    assert RedisURL.parse(f"rediss://cache?ssl_cert_reqs={value}").verify


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no scheme"),
        ("localhost:6379", "no scheme"),
        ("http://cache", "'http'"),
        ("amqp://cache", "'amqp'"),
        ("redis+sentinel://cache", "'redis+sentinel'"),
        ("redis://cache:port/0", "port or host"),
        ("redis://cache:99999/0", "port or host"),
        ("redis://[::1/0", "port or host"),
        ("redis://cache/first", "'first'"),
        ("redis://cache/-1", "'-1'"),
        ("redis://cache/²", "'²'"),
        ("unix:///run/redis.sock?db=x", "'x'"),
        ("redis://cache?max_connection=3", "'max_connection'"),
        ("unix://", "names no socket"),
        ("unix://run/redis.sock", "three slashes"),
        ("redis+socket://run/redis.sock", "three slashes"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisURL.parse(text)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{SECRET}@cache",
        f"user:{SECRET}@cache:6379",
        f"user:{SECRET}@redis://cache",
        f"redis://:a/{SECRET}@cache:6379/0",
        f"redis://:12/{SECRET}@cache:6379/0",
        f"redis://:12?{SECRET}=1@cache:6379/0",
        f"redis://:12#{SECRET}@cache:6379/0",
        f"redis://:{SECRET}@cache:port/0",
        f"redis://:{SECRET}@cache/first",
        f"redis://:{SECRET}@cache?option=1",
        f"unix://:{SECRET}@",
        f"rediss://:{SECRET}@cache?ssl_cert_reqs=none",
    ],
)
def test_a_url_that_cannot_be_used_never_shows_its_password(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisURL.parse(text)

    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None or SECRET not in str(caught.value.__context__)


@pytest.mark.parametrize("where", ["cache:6380/2", "/run/redis.sock?db=2"])
def test_people_see_the_place_without_user_and_password(where: str) -> None:
    scheme = "unix" if where.startswith("/") else "redis"
    url = RedisURL.parse(f"{scheme}://someone:{SECRET}@{where}")

    assert str(url) in ("cache:6380/2", "/run/redis.sock db 2")
    assert SECRET not in repr(url)
    assert SECRET not in url.for_client(password=False)
    assert "someone" in url.for_client(password=False)
