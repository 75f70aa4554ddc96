"""What Redis, kombu or a socket raised, told as one of our own errors: the one translator."""

import os

from core.errors import BrokerUnreachable, ConfigurationError, CoreError
from core.redis_url import RedisURL


def broker_error(error: BaseException, url: RedisURL) -> CoreError:
    """One of our errors for what Redis, kombu or a socket raised: the server is away, or does not let us in."""
    from redis.exceptions import AuthenticationError, RedisError, ResponseError

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        text = str(link)
        if isinstance(link, AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
            return ConfigurationError(f"Redis at {url} refuses the user or password in REDIS_URL ({_reason(link)}).")
        if isinstance(link, ResponseError) and "DB index" in text:
            return ConfigurationError(f"Redis at {url} has no such database. Lower the number at the end of REDIS_URL.")
        if type(link).__name__ in ("SSLCertVerificationError", "SSLError"):
            return ConfigurationError(
                f"TLS with Redis at {url} failed ({_reason(link)}). Add ?ssl_ca_certs=/path/to/ca.pem to REDIS_URL, "
                "or check that this port speaks TLS."
            )
    if url.ca_certs and not os.access(url.ca_certs, os.R_OK):
        return ConfigurationError(f"The file {url.ca_certs}, which REDIS_URL names in ssl_ca_certs, cannot be read.")
    # What Redis itself said is outermost. The deepest link may be a detail of kombu's own, like an empty list
    # of channels.
    told: list[BaseException] = [*filter(lambda link: isinstance(link, ResponseError), chain)][:1]
    told = told or [link for link in chain if isinstance(link, OSError | RedisError)] or chain
    reason = _reason(told[-1])
    if url.tls and "handshake" in reason:
        reason = "the TLS handshake was not answered; perhaps this port speaks no TLS"
    return BrokerUnreachable(str(url), reason, answered=isinstance(told[-1], ResponseError))


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def never_sent(error: BaseException) -> bool:
    """Whether an error of a write shows that nothing reached the server."""
    from redis.exceptions import ResponseError

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ConnectionRefusedError | FileNotFoundError | ResponseError):
            return True
        link = link.__cause__ or link.__context__
    return False
