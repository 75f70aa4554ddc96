"""Where a broker or the results are, in the spellings that their readers want.

Celery, RedBeat and the Redis client each spell a unix socket, a database, Sentinel and TLS in their own way,
and each has another idea of what to do about certificates. A user writes one URL; this file says it to each
of them with the same meaning, and writes it for people without its password.
"""

import re
import ssl
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from core.errors import ConfigurationError

SCHEMES = ("redis", "rediss", "unix", "redis+socket", "sentinel")
#: Brokers that are no Redis: the modules that each needs, what installs them, and the port it has by default.
OTHER_SCHEMES: dict[str, tuple[tuple[str, ...], str, int | None]] = {
    "amqp": (("amqp",), "amqp", 5672),
    "amqps": (("amqp",), "amqp", 5671),
    "pyamqp": (("amqp",), "amqp", 5672),
    "sqs": (("boto3", "pycurl"), "celery[sqs]", None),
}
#: What stands where a password is, for people.
MASK = "********"


@dataclass(frozen=True)
class RedisURL:
    """Where a Redis or Valkey server is, and how to get in; with Sentinel, who knows where it is at the moment."""

    host: str | None = None
    port: int = 6379
    socket: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_certs: str | None = None
    verify: bool = True
    #: The sentinels by host and port, and the name that they know the server by. `host` and `port` are the first's.
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str, *, verify: bool = True) -> "RedisURL":
        """Read `redis://`, `rediss://`, `unix://`, `redis+socket://` or `sentinel://`.

        Args:
            text: The URL. Its password may be percent-encoded.
            verify: Whether TLS certificates are checked (`redis_verify_certificates`).

        Raises:
            ConfigurationError: The URL cannot be used. The message never repeats a password.
        """
        scheme = _scheme(text, SCHEMES)
        local, sentinel = scheme in ("unix", "redis+socket"), scheme == "sentinel"
        try:
            # Newer Pythons refuse an address in brackets after another host, so each is read by itself.
            names, plain = _hosts(text) if sentinel else ([], text)
            parts = urlsplit(plain)
            places = _sentinels(names)
            host, port = places[0] if places else (parts.hostname, parts.port)
        except ValueError:
            raise ConfigurationError(f"A {scheme}:// URL has a port or host that cannot be read.") from None
        query = dict(parse_qsl(parts.query))
        _refuse_misplaced(parts, local)
        if local and parts.hostname:
            raise ConfigurationError(
                f"A {scheme}:// URL names a host; write three slashes: {scheme}:///path/to/redis.sock."
            )
        database = query.pop("db", None) or query.pop("virtual_host", None)
        if not local:
            database = parts.path.strip("/") or database
        if database and not (database.isascii() and database.isdigit()):
            raise ConfigurationError(f"A {scheme}:// URL names the database {database!r}; a database is a number.")
        if query.pop("ssl_cert_reqs", "required") not in ("required", "CERT_REQUIRED") and verify:
            raise ConfigurationError(
                "A Redis URL switches certificate checks off with ssl_cert_reqs. "
                "Remove it, or set redis_verify_certificates to False to go without them knowingly."
            )
        ca_certs = query.pop("ssl_ca_certs", None)
        options = _sentinel_options(query) if sentinel else {}
        tls = scheme == "rediss" or options.pop("ssl", "true" if sentinel and ca_certs else "false") == "true"
        if query:
            raise ConfigurationError(f"A {scheme}:// URL has the unknown option {min(query)!r}.")
        if local and not parts.path.strip("/"):
            raise ConfigurationError(f"A {scheme}:// URL names no socket; write {scheme}:///path/to/redis.sock.")
        return cls(
            host=None if local else host or "localhost",
            port=port or 6379,
            socket=unquote(parts.path) if local else None,
            db=int(database or 0),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            tls=tls,
            ca_certs=ca_certs,
            verify=verify,
            sentinels=places,
            **options,
        )

    def __str__(self) -> str:
        """The server and database for people: no user, no password."""
        if self.socket:
            return self.socket + (f" db {self.db}" if self.db else "")
        places = self.sentinels or ((str(self.host), self.port),)
        name = f" ({self.master})" if self.sentinels else ""
        return f"{','.join(f'{host}:{port}' for host, port in places)}/{self.db}{name}"

    def masked(self) -> "RedisURL":
        """The same place with a mask for each password."""
        return replace(
            self,
            password=MASK if self.password else None,
            sentinel_password=MASK if self.sentinel_password else None,
        )

    def _credentials(self, password: bool = True) -> str:
        user = quote(self.username or "", safe="")
        secret = f":{quote(self.password, safe='*')}" if self.password and password else ""
        return f"{user}{secret}@" if user or secret else ""

    def _by_sentinel(self, passwords: int) -> str:
        return ";".join(
            f"sentinel://{self._credentials(number < passwords)}{_place(host, port)}/{self.db}"
            for number, (host, port) in enumerate(self.sentinels)
        )

    def for_celery(self) -> str:
        """As Celery's broker reads it. kombu may go on with any of the sentinels, and asks its part alone."""
        if self.sentinels:
            return self._by_sentinel(len(self.sentinels))
        if self.socket:
            return f"redis+socket://{self._credentials()}{quote(self.socket)}?virtual_host={self.db}"
        return self.for_client()

    def for_results(self) -> str:
        """As Celery's result backend reads it: its reports mask the first password only, and it needs no other."""
        return self._by_sentinel(1) if self.sentinels else self.for_celery()

    def for_schedule(self) -> str:
        """As RedBeat reads it, without the password, since Celery's reports print it."""
        if self.sentinels:
            return f"redis-sentinel://{_place(*self.sentinels[0])}/{self.db}"
        return self.for_client(password=False)

    def for_client(self, *, password: bool = True) -> str:
        """As the Redis client reads it. With Sentinel no URL can say it to the client: see `client`."""
        if self.socket:
            return f"unix://{self._credentials(password)}{quote(self.socket)}?db={self.db}"
        place = _place(str(self.host), self.port)
        return f"{'rediss' if self.tls else 'redis'}://{self._credentials(password)}{place}/{self.db}"

    def tls_options(self) -> dict[str, Any] | None:
        """The certificate rules for a URL that asks for TLS, None for any other."""
        if not self.tls:
            return None
        options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE}
        if not self.verify:
            options["ssl_check_hostname"] = False
        if self.ca_certs:
            options["ssl_ca_certs"] = self.ca_certs
        return options

    def sentinel_options(self) -> dict[str, Any]:
        """How the sentinels themselves are reached. One that is down is not tried twice: there are others."""
        options: dict[str, Any] = {**self.timeouts(), "retry": None}
        if self.sentinel_password:
            from redis import UsernamePasswordCredentialProvider

            # A password in an option of its own is in the error that tells of a sentinel that is down.
            options["credential_provider"] = UsernamePasswordCredentialProvider(
                self.sentinel_username, self.sentinel_password
            )
        return options | ({"ssl": True, **(self.tls_options() or {})} if self.tls else {})

    def client(self, **options: Any) -> Any:
        """A Redis client for this URL. Its commands raise what the Redis client raises; close it after use.

        Args:
            options: Options of the Redis client beside those that the URL makes.
        """
        from redis import Redis
        from redis.sentinel import Sentinel

        options = {**self.timeouts(), **(self.tls_options() or {}), **options}
        if self.sentinels:
            return self._watched(Sentinel, options).master_for(self.master)
        return Redis.from_url(self.for_client(), **options)

    def async_client(self, **options: Any) -> Any:
        """`client` for the running event loop, which can send commands on a connection that is subscribed."""
        from redis.asyncio import Redis
        from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

        class Pool(SentinelConnectionPool):
            async def disconnect(self, inuse_connections: bool = True) -> None:
                await super().disconnect(inuse_connections)
                for one in self.sentinel_manager.sentinels:  # nobody else closes what they were asked over
                    await one.aclose()

        options = {**self.timeouts(), **(self.tls_options() or {}), "protocol": 3, **options}
        if not self.socket:
            options["socket_keepalive"] = True
        if self.sentinels:
            return self._watched(Sentinel, options).master_for(self.master, connection_pool_class=Pool)
        return Redis.from_url(self.for_client(), **options)

    def _watched(self, sentinel: Any, options: dict[str, Any]) -> Any:
        options |= {"username": self.username, "password": self.password, "db": self.db, "ssl": self.tls}
        return sentinel(self.sentinels, sentinel_kwargs=self.sentinel_options(), **options)

    def timeouts(self) -> dict[str, float]:
        """How long a Redis client waits, in seconds; a unix socket has no connecting phase, and no option for it."""
        return {"socket_timeout": 5.0} | ({} if self.socket else {"socket_connect_timeout": 3.0})


@dataclass(frozen=True)
class BrokerURL:
    """Where a broker is that is no Redis. Celery reads the URL as the user wrote it."""

    text: str = field(repr=False)
    verify: bool = True

    @classmethod
    def parse(cls, text: str, *, verify: bool = True) -> "BrokerURL":
        """Read `amqp://`, `amqps://`, `pyamqp://` or `sqs://`; several of one broker have `;` between them.

        Args:
            text: The URL.
            verify: Whether TLS certificates are checked (`redis_verify_certificates`).

        Raises:
            ConfigurationError: The URL cannot be used, or the package that its broker needs is not installed.
                The message never repeats a password.
        """
        scheme = _scheme(text, tuple(OTHER_SCHEMES))
        for one in text.split(";"):
            if not one.startswith(f"{scheme}://"):
                raise ConfigurationError(f"The {scheme}:// URL has after ';' what is no further {scheme}:// URL.")
            try:
                parts = urlsplit(one)
                _ = parts.port, parts.hostname
            except ValueError:
                raise ConfigurationError(f"The {scheme}:// URL has a port or host that cannot be read.") from None
            _refuse_misplaced(parts)
            if any(name.startswith("ssl") for name, _ in parse_qsl(parts.query)):
                raise ConfigurationError(
                    f"The {scheme}:// URL cannot say how TLS is done; put it into the setting `celery`, as in "
                    '{"broker_use_ssl": {"ca_certs": "/path/to/ca.pem"}}.'
                )
        modules, package, _ = OTHER_SCHEMES[scheme]
        if missing := [module for module in modules if find_spec(module) is None]:
            raise ConfigurationError(
                f"A broker at {scheme}:// needs {' and '.join(missing)}, not installed here: pip install '{package}'."
            )
        return cls(text, verify)

    @property
    def scheme(self) -> str:
        """What stands before `://`."""
        return self.text.partition("://")[0]

    def __str__(self) -> str:
        """The broker for people: no user, no password."""
        shown = []
        for parts in map(urlsplit, self.text.split(";")):
            port = parts.port or OTHER_SCHEMES[parts.scheme][2]
            shown.append(f"{parts.scheme}://{_place(parts.hostname or 'localhost', port) if port else ''}{parts.path}")
        return ", ".join(shown)

    def masked(self) -> "BrokerURL":
        """The same place with a mask for each password."""
        return replace(self, text=re.sub(r"(://[^:@/]*:)[^/]+@", rf"\1{MASK}@", self.text))

    def for_celery(self) -> str:
        """As Celery's broker reads it."""
        return self.text

    def tls_options(self) -> dict[str, Any] | None:
        """The certificate rules for a URL that asks for TLS, None for any other."""
        if self.scheme != "amqps":
            return None
        # Without a name to compare with, any certificate would do; kombu puts the URL's host there.
        return (
            {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None} if self.verify else {"cert_reqs": ssl.CERT_NONE}
        )


def parse_broker(text: str, *, verify: bool = True) -> RedisURL | BrokerURL:
    """Read the URL of a broker of any kind.

    Args:
        text: The URL.
        verify: Whether TLS certificates are checked (`redis_verify_certificates`).

    Raises:
        ConfigurationError: The URL cannot be used. The message never repeats a password.
    """
    if _scheme(text, (*SCHEMES, *OTHER_SCHEMES)) in OTHER_SCHEMES:
        return BrokerURL.parse(text, verify=verify)
    return RedisURL.parse(text, verify=verify)


def _scheme(text: str, known: tuple[str, ...]) -> str:
    """What a URL begins with. Nothing else of one that cannot be read is quoted: the rest may be a password."""
    scheme, separator, _ = text.partition("://")
    if separator and scheme in known:
        return scheme
    if separator and scheme in ("redis+cluster", "rediss+cluster", "redis-cluster"):
        raise ConfigurationError(
            f"The scheme {scheme!r} is that of a Redis Cluster, which keeps the keys of one step on several servers; "
            "a call could be lost between them. Use one server, or several with Sentinel: sentinel://."
        )
    if separator and scheme in OTHER_SCHEMES:
        raise ConfigurationError(
            f"A Redis URL has the scheme {scheme!r}. A broker that is no Redis goes into task_broker_url; "
            "results and schedule stay in Redis."
        )
    named = "no scheme that can be read"
    if separator and scheme.replace("+", "").isalnum():
        named = f"the scheme {scheme!r}"
    kind = "Redis" if "redis" in known and "amqp" not in known else "broker's"
    raise ConfigurationError(f"A {kind} URL has {named}; known are {', '.join(s + '://' for s in known)}.")


def _refuse_misplaced(parts: SplitResult, local: bool = False) -> None:
    """Refuse a URL in which a part of the password has become path, query or fragment."""
    if parts.fragment or "@" in parts.query or (not local and "@" in parts.path):
        raise ConfigurationError(
            f"The {parts.scheme}:// URL has '/', '?' or '#' in its user or password; write %2F, %3F or %23 there."
        )


def _hosts(text: str) -> tuple[list[str], str]:
    """The hosts that a URL names with commas between them, and the URL with the first one alone."""
    scheme, _, rest = text.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    credentials, at, hosts = authority.rpartition("@")
    names = hosts.split(",")
    return names, f"{scheme}://{credentials}{at}{names[0]}{rest[len(authority) :]}"


def _sentinels(names: list[str]) -> tuple[tuple[str, int], ...]:
    """The sentinels by host and port. Raises ValueError for what is no host and port."""
    found = [urlsplit(f"//{name}") for name in names]
    if len(found) > 1 and not all(one.hostname for one in found):
        raise ValueError("a host without a name")
    return tuple((one.hostname or "localhost", one.port or 26379) for one in found)


def _sentinel_options(query: dict[str, str]) -> dict[str, Any]:
    """Take the options of a `sentinel://` URL out of its query."""
    if query.get("ssl", "true") not in ("true", "false"):
        raise ConfigurationError("A sentinel:// URL has an option ssl that is neither true nor false.")
    master = query.pop("master_name", None)
    if not master:
        raise ConfigurationError(
            "A sentinel:// URL does not say which master it is about; add ?master_name=mymaster, "
            "with the name that the sentinels know it by."
        )
    names = ("ssl", "sentinel_username", "sentinel_password")
    return {"master": master} | {name: query.pop(name) for name in names if name in query}


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
