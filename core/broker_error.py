"""What Redis, kombu, a broker's driver or a socket raised, told as one of our own errors: the one translator."""

import os
from typing import Any

from core.errors import BrokerUnreachable, ConfigurationError, CoreError
from core.redis_url import BrokerURL, RedisURL

#: What a part of a cluster answers about a key that is not its own, or about several.
CLUSTER = ("MovedError", "AskError", "ClusterDownError", "ClusterCrossSlotError")
#: Errors of the drivers of RabbitMQ and SQS by their names, since the drivers need not be installed.
REFUSED = ("AccessRefused", "NoCredentialsError", "PartialCredentialsError")
MISSING = {"NotAllowed": "virtual host", "NoRegionError": "region", "UndefinedQueueException": "queue"}
TLS = ("SSLCertVerificationError", "SSLError")


def broker_error(error: BaseException, url: RedisURL | BrokerURL) -> CoreError:
    """One of our errors for what was raised: the server is away, does not let us in, or cannot be used."""
    return _of_redis(_chain(error), url) if isinstance(url, RedisURL) else _of_another(_chain(error), url)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what led to it, the outermost first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _of_redis(chain: list[BaseException], url: RedisURL) -> CoreError:
    from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

    for link in chain:
        text = str(link)
        if isinstance(link, _no_master()) and "AuthenticationError" in text:
            return ConfigurationError(f"The sentinels at {url} refuse the sentinel_password in REDIS_URL.")
        if isinstance(link, NoPermissionError):
            return ConfigurationError(f"Redis at {url} does not give the user in REDIS_URL the rights that are needed "
                                      f"({reason(link)}). docs/security.md has them all.")  # fmt: skip
        if isinstance(link, AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
            return ConfigurationError(f"Redis at {url} refuses the user or password in REDIS_URL ({reason(link)}).")
        if isinstance(link, ResponseError) and "DB index" in text:
            return ConfigurationError(f"Redis at {url} has no such database. Lower the number at the end of REDIS_URL.")
        if type(link).__name__ in CLUSTER or "in a cluster node" in text:
            return _cluster(url)
        if type(link).__name__ in TLS:
            return ConfigurationError(
                f"TLS with Redis at {url} failed ({reason(link)}). Add ?ssl_ca_certs=/path/to/ca.pem to REDIS_URL, "
                "or check that this port speaks TLS."
            )
    if url.ca_certs and not os.access(url.ca_certs, os.R_OK):
        return ConfigurationError(f"The file {url.ca_certs}, which REDIS_URL names in ssl_ca_certs, cannot be read.")
    # What Redis itself said is outermost. The deepest link may be a detail of kombu's own, like an empty list
    # of channels.
    told: list[BaseException] = [*filter(lambda link: isinstance(link, ResponseError), chain)][:1]
    told = told or [link for link in chain if isinstance(link, OSError | RedisError)] or chain
    why = reason(told[-1])
    if url.tls and "handshake" in why:
        why = "the TLS handshake was not answered; perhaps this port speaks no TLS"
    return BrokerUnreachable(str(url), why, answered=isinstance(told[-1], ResponseError))


def _of_another(chain: list[BaseException], url: BrokerURL) -> CoreError:
    for link in chain:
        kind = type(link).__name__
        if kind in REFUSED:
            return ConfigurationError(
                f"The broker at {url} refuses the user or password in TASK_BROKER_URL ({reason(link)})."
            )
        if kind in MISSING:
            return ConfigurationError(f"The broker at {url} has no such {MISSING[kind]} ({reason(link)}).")
        if kind in TLS:
            return ConfigurationError(
                f"TLS with the broker at {url} failed ({reason(link)}). Name the authority's certificates in the "
                'setting `celery`, as in {"broker_use_ssl": {"ca_certs": "/path/to/ca.pem"}}.'
            )
    # The driver's own words are outermost, unless a socket has said it more plainly.
    told = [link for link in chain if isinstance(link, OSError)] or chain[:1]
    return BrokerUnreachable(f"The broker at {url}", reason(told[-1]), setting="TASK_BROKER_URL")


def refuse_what_is_no_server(client: Any, url: RedisURL) -> None:
    """Refuse a Redis whose keys are spread over several servers, and a sentinel taken for a server.

    Args:
        client: A client of the Redis at *url*.
        url: Where it is, for the message.

    Raises:
        ConfigurationError: It is one of them.
    """
    from redis.exceptions import ResponseError

    try:
        said = client.execute_command("HELLO")
    except ResponseError:
        return  # too old to know the command, or not allowed to be asked
    judge(said, url)


def judge(said: Any, url: RedisURL) -> None:
    """Refuse what is no server by its answer to HELLO.

    Raises:
        ConfigurationError: Its keys are spread over several servers, or it is a sentinel.
    """
    pairs = said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=False))
    mode = pairs.get(b"mode", pairs.get("mode", b""))
    if mode in (b"cluster", "cluster"):
        raise _cluster(url)
    if mode in (b"sentinel", "sentinel"):
        place = f"{url.host}:{url.port}" if url.host else "host:26379"
        raise ConfigurationError(
            f"A sentinel answers at {url}, and no server. Write sentinel://{place}/0?master_name=mymaster."
        )


def _cluster(url: RedisURL) -> ConfigurationError:
    return ConfigurationError(
        f"Redis at {url} is part of a Redis Cluster, which keeps the keys of one step on several servers; a call could "
        "be lost between them. Set REDIS_URL to one server, or to several with Sentinel."
    )


def reason(error: BaseException) -> str:
    """What an error says, in one line without its last full stop."""
    if isinstance(error, _no_master()):  # the rest of its text is the innards of each client of a sentinel
        return f"{str(error).partition(' : ')[0]}: no sentinel answers that knows one that is up"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _no_master() -> tuple[type[Exception], ...]:
    from redis.asyncio import sentinel as asynchronous
    from redis.sentinel import MasterNotFoundError

    return MasterNotFoundError, asynchronous.MasterNotFoundError


def never_sent(error: BaseException) -> bool:
    """Whether an error of a write shows that nothing reached the server."""
    from redis.exceptions import ResponseError

    return any(isinstance(link, ConnectionRefusedError | FileNotFoundError | ResponseError) for link in _chain(error))
