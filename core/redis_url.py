"""One Redis URL, in the spellings that its three readers want.

Celery, RedBeat and the Redis client each spell a unix socket, a database and TLS in their own way, and
each has another idea of what to do about certificates. A user writes one URL; this file says it to each
of them with the same meaning, and writes it for people without its password.
"""

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from core.errors import ConfigurationError

SCHEMES = ("redis", "rediss", "unix", "redis+socket")


@dataclass(frozen=True)
class RedisURL:
    """Where a Redis or Valkey server is, and how to get in."""

    host: str | None
    port: int
    socket: str | None
    db: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_certs: str | None = None
    verify: bool = True

    @classmethod
    def parse(cls, text: str, *, verify: bool = True) -> "RedisURL":
        """Read `redis://`, `rediss://`, `unix://` or `redis+socket://`.

        Args:
            text: The URL. Its password may be percent-encoded.
            verify: Whether TLS certificates are checked (`redis_verify_certificates`).

        Raises:
            ConfigurationError: The URL cannot be used. The message never repeats a password.
        """
        # Nothing of a URL that cannot be read is quoted but its scheme: the rest may be a password.
        scheme, separator, _ = text.partition("://")
        if not separator or scheme not in SCHEMES:
            named = (
                f"the scheme {scheme!r}"
                if separator and scheme.replace("+", "").isalnum()
                else "no scheme that can be read"
            )
            raise ConfigurationError(f"A Redis URL has {named}; known are {', '.join(s + '://' for s in SCHEMES)}.")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise ConfigurationError(f"A {scheme}:// URL has a port or host that cannot be read.") from None
        query = dict(parse_qsl(parts.query))
        local = scheme in ("unix", "redis+socket")
        if parts.fragment or "@" in parts.query or (not local and "@" in parts.path):
            raise ConfigurationError(
                f"A {scheme}:// URL has '/', '?' or '#' in its user or password; write %2F, %3F or %23 there."
            )
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
        if query:
            raise ConfigurationError(f"A {scheme}:// URL has the unknown option {min(query)!r}.")
        if local and not parts.path.strip("/"):
            raise ConfigurationError(f"A {scheme}:// URL names no socket; write {scheme}:///path/to/redis.sock.")
        return cls(
            host=None if local else parts.hostname or "localhost",
            port=port or 6379,
            socket=unquote(parts.path) if local else None,
            db=int(database or 0),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            tls=scheme == "rediss",
            ca_certs=ca_certs,
            verify=verify,
        )

    def __str__(self) -> str:
        """The server and database for people: no user, no password."""
        if self.socket:
            return self.socket + (f" db {self.db}" if self.db else "")
        return f"{self.host}:{self.port}/{self.db}"

    def _credentials(self, password: bool) -> str:
        user = quote(self.username or "", safe="")
        secret = f":{quote(self.password, safe='*')}" if self.password and password else ""
        return f"{user}{secret}@" if user or secret else ""

    def _network(self, password: bool) -> str:
        host = f"[{self.host}]" if ":" in str(self.host) else self.host
        return f"{'rediss' if self.tls else 'redis'}://{self._credentials(password)}{host}:{self.port}/{self.db}"

    def for_celery(self) -> str:
        """As Celery's broker and result backend read it."""
        if self.socket:
            return f"redis+socket://{self._credentials(True)}{quote(self.socket)}?virtual_host={self.db}"
        return self._network(password=True)

    def for_client(self, *, password: bool = True) -> str:
        """As the Redis client, and RedBeat, read it."""
        if self.socket:
            return f"unix://{self._credentials(password)}{quote(self.socket)}?db={self.db}"
        return self._network(password)

    def tls_options(self) -> dict[str, Any] | None:
        """The certificate rules for a `rediss` URL, None for any other."""
        if not self.tls:
            return None
        options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE}
        if not self.verify:
            options["ssl_check_hostname"] = False
        if self.ca_certs:
            options["ssl_ca_certs"] = self.ca_certs
        return options

    def timeouts(self) -> dict[str, float]:
        """How long a Redis client waits, in seconds; a unix socket has no connecting phase, and no option for it."""
        return {"socket_timeout": 5.0} | ({} if self.socket else {"socket_connect_timeout": 3.0})
