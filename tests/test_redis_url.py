"""One URL means the same to Celery, RedBeat, the Redis client and people, and a password is never in a message."""

import ssl
from importlib.util import find_spec

import pytest
from kombu import Connection
from redis.connection import parse_url
from redis.exceptions import RedisError

from core.errors import ConfigurationError
from core.redis_url import BrokerURL, RedisURL, parse_broker

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
        ("amqp://cache", "goes into task_broker_url"),
        ("redis+sentinel://cache", "'redis+sentinel'"),
        ("redis+cluster://cache", "several servers"),
        ("rediss+cluster://cache", "several servers"),
        ("sentinel://cache:26379/0", "add ?master_name=mymaster"),
        ("sentinel://one:26379,two:x/0?master_name=m", "port or host"),
        ("sentinel://one,,two/0?master_name=m", "port or host"),
        ("sentinel://one/first?master_name=m", "'first'"),
        ("sentinel://one/0?master_name=m&ssl=1", "neither true nor false"),
        ("sentinel://one/0?master_name=m&min_other_sentinels=1", "'min_other_sentinels'"),
        ("redis://cache/0?master_name=m", "'master_name'"),
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
        f"sentinel://:{SECRET}@cache/0",
        f"sentinel://:a/{SECRET}@cache/0?master_name=m",
        f"sentinel://:x@cache:26379/0;sentinel://:{SECRET}@two/0?master_name=m",
        f"sentinel://cache/0?master_name=m&sentinel_password={SECRET}@x",
        f"amqp://user:{SECRET}@cache",
        f"redis+cluster://user:{SECRET}@cache",
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


# Sentinel

WATCHED = f"sentinel://someone:p%40{SECRET}@one:26380,[::1]/3?master_name=mymaster&sentinel_password=0ther{SECRET}"


def test_each_reader_learns_the_sentinels_the_master_and_the_database() -> None:
    url = RedisURL.parse(WATCHED)
    celery = Connection(url.for_celery())
    client = url.client().connection_pool

    assert (url.sentinels, url.master, url.db) == ((("one", 26380), ("::1", 26379)), "mymaster", 3)
    assert len(celery.alt) == 2
    for place in celery.alt:
        part = Connection(place)
        assert (part.virtual_host, part.userid, part.password) == ("3", "someone", f"p@{SECRET}")
    assert (client.service_name, client.connection_kwargs["db"]) == ("mymaster", 3)
    assert (client.connection_kwargs["username"], client.connection_kwargs["password"]) == ("someone", f"p@{SECRET}")
    assert [one.connection_pool.connection_kwargs["port"] for one in client.sentinel_manager.sentinels] == [
        26380,
        26379,
    ]


def test_people_see_the_sentinels_and_the_master_and_no_password() -> None:
    url = RedisURL.parse(WATCHED)

    assert str(url) == "one:26380,::1:26379/3 (mymaster)"
    assert SECRET not in repr(url) + str(url.sentinel_options()) + url.for_schedule() + repr(url.masked())
    assert url.for_results().count(SECRET) == 1  # Celery's reports mask the first password and no other


def test_a_sentinel_that_is_down_is_not_told_of_with_its_password() -> None:
    """The client's error has the innards of each sentinel's client in it."""
    url = RedisURL.parse(f"sentinel://127.0.0.1:1/0?master_name=m&sentinel_password={SECRET}")
    client = url.client()

    with pytest.raises(RedisError) as caught:
        client.ping()

    client.close()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "tls"),
    [("", False), ("&ssl=true", True), ("&ssl=false", False), ("&ssl_ca_certs=/etc/ca.pem", True)],
)
def test_tls_to_servers_and_sentinels_is_asked_for_with_an_option(options: str, tls: bool) -> None:
    url = RedisURL.parse(f"sentinel://one/0?master_name=m{options}")

    assert (url.tls_options() is not None) is tls
    assert url.sentinel_options().get("ssl", False) is tls
    assert url.sentinel_options().get("ssl_cert_reqs") == (ssl.CERT_REQUIRED if tls else None)


# Brokers that are no Redis


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"amqp://user:{SECRET}@broker/shop", "amqp://broker:5672/shop"),
        (f"amqp://user:{SECRET}@broker:5673//", "amqp://broker:5673//"),
        (f"amqps://user:{SECRET}@broker/shop", "amqps://broker:5671/shop"),
        ("pyamqp://", "pyamqp://localhost:5672"),
        (f"amqp://:{SECRET}@one/a;amqp://:{SECRET}@two/b", "amqp://one:5672/a, amqp://two:5672/b"),
    ],
)
def test_celery_reads_another_broker_as_it_was_written_and_people_see_no_password(text: str, shown: str) -> None:
    url = parse_broker(text)

    assert isinstance(url, BrokerURL)
    assert url.for_celery() == text
    assert str(url) == shown
    assert SECRET not in repr(url) + url.masked().for_celery()


@pytest.mark.parametrize("text", ["redis://cache/1", "sentinel://one/1?master_name=m", "unix:///run/redis.sock"])
def test_a_redis_is_a_broker_too(text: str) -> None:
    assert parse_broker(text) == RedisURL.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"kafka://user:{SECRET}@broker", "a broker's URL has the scheme 'kafka'; known are redis://"),
        (f"amqp://user:{SECRET}@broker:port/shop", "port or host"),
        (f"amqp://user:1/{SECRET}@broker/shop", "write %2F"),
        (f"amqp://user:x@one;{SECRET}://two", "no further amqp:// URL"),
        (f"amqps://user:{SECRET}@broker?ssl_cert_reqs=none", "broker_use_ssl"),
    ],
)
def test_a_broker_that_cannot_be_used_is_refused_without_its_password(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_broker(text)

    assert said.lower() in str(caught.value).lower()
    assert SECRET not in str(caught.value)


@pytest.mark.skipif(find_spec("boto3") is not None, reason="boto3 is installed")
def test_a_driver_that_is_missing_is_named_with_what_installs_it() -> None:
    with pytest.raises(ConfigurationError, match=r"boto3.*pip install 'celery\[sqs\]'"):
        parse_broker("sqs://")


def test_certificates_of_another_broker_are_checked_unless_the_setting_says_otherwise() -> None:
    checked = parse_broker("amqps://broker").tls_options()
    unchecked = parse_broker("amqps://broker", verify=False).tls_options()

    assert checked == {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}  # kombu puts the host there
    assert unchecked == {"cert_reqs": ssl.CERT_NONE}
    assert parse_broker("amqp://broker").tls_options() is None
