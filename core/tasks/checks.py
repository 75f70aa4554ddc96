"""What about the settings and the server would cost calls one day, found before it does."""

import ipaddress
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from core import config, embedded
from core.broker_error import broker_error
from core.errors import CoreError
from core.redis_url import RedisURL
from core.tasks import celery_app
from core.tasks.definition import Task

logger = logging.getLogger("core.tasks")

#: The oldest server that has all the commands: BLMOVE, and ZRANGE by score.
OLDEST = (6, 2)


@dataclass(frozen=True)
class Finding:
    """One thing to change."""

    level: Literal["error", "warning"]
    #: A word that names it: eviction, persistence, version, replica, shared, limits, unique, password, tls or
    #: certificates.
    name: str
    #: What is so, what may come of it, and what to do.
    text: str


def findings(deploy: bool) -> list[Finding]:
    """Everything there is to change.

    Args:
        deploy: Whether to judge as for production, whatever the environment is now.

    Raises:
        BrokerUnreachable: Redis does not answer.
        ConfigurationError: It does not let us in, or cannot be used.
    """
    from redis.exceptions import NoPermissionError, RedisError

    settings = config.get_settings()
    deploy = deploy or settings.environment == "production"
    url = embedded.schedule_url()
    found = list(of_settings(url, deploy))
    try:
        with url.client(decode_responses=True) as client:
            with suppress(NoPermissionError):
                found += of_server(client.info(), deploy)
            found += _of_neighbours(client)
    except (RedisError, OSError) as error:
        raise broker_error(error, url) from error
    return sorted(found + list(_of_limits()), key=lambda finding: finding.level)


def warn() -> None:
    """Say in the log what there is to change."""
    try:
        for finding in findings(False):
            logger.warning("%s", finding.text)
    except CoreError as error:  # whoever starts now waits for a server that is away, and joins
        logger.debug("nothing was checked: %s", error)


def of_server(info: dict[str, Any], deploy: bool) -> Iterator[Finding]:
    """What a server says of itself. Where it is not allowed to be asked something, that is left out."""
    grave: Literal["error", "warning"] = "error" if deploy else "warning"
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) == 2 and numbers < OLDEST:
        yield Finding("error", "version", f"Redis {version} lacks commands that are needed: use 6.2 or newer.")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Finding(grave, "eviction", "Redis may throw calls away when its memory is full (maxmemory-policy "
                      f"{policy}): CONFIG SET maxmemory-policy noeviction, and it refuses new ones.")  # fmt: skip
    if info.get("aof_enabled", 1) == 0:
        yield Finding("warning", "persistence", "Redis writes no append-only file: a restart loses all calls since its "
                      "last snapshot. CONFIG SET appendonly yes.")  # fmt: skip
    if info.get("role", "master") != "master":
        yield Finding("error", "replica", "Redis is a replica, which accepts no calls: set REDIS_URL to its master, or "
                      "to Sentinel.")  # fmt: skip


def _of_neighbours(client: Any) -> Iterator[Finding]:
    if config.get_settings().uses_core_transport and client.exists("unacked_index"):
        yield Finding("warning", "shared", "Workers of plain Celery take calls from this database, too. What such a "
                      "worker holds runs again after its visibility timeout, also while it still runs: keep that "
                      "longer than the longest call and countdown, or give them a database of their own.")  # fmt: skip


def _of_limits() -> Iterator[Finding]:
    if config.get_settings().uses_core_transport:
        return  # leases are renewed for as long as a call runs, and end with it
    celery_app.import_tasks()
    declared = [task for task in celery_app.declared() if isinstance(task, Task)]
    if names := [task.name for task in declared if task.options_declared.unique]:
        yield Finding("error", "unique", f"Calls of {', '.join(names)} are refused, since they are unique or do not "
                      "overlap: that needs Redis as the broker, with task_broker_transport core.")  # fmt: skip
    most = celery_app.get_app().conf.broker_transport_options.get("visibility_timeout")
    if most is None:
        return
    if names := [task.name for task in declared if (limit := task.limit()) is None or limit.hard > float(most)]:
        yield Finding("warning", "limits", f"Calls that run for longer than {most:g} s, the visibility timeout, run a "
                      f"second time meanwhile. Nothing ends these before: {', '.join(sorted(names))}. Give them a "
                      "timeout.")  # fmt: skip


def of_settings(url: RedisURL, deploy: bool) -> Iterator[Finding]:
    """What is for development only."""
    if not deploy:
        return
    place = str(url.host)
    if config.get_settings().broker_url is None:
        yield Finding("error", "server", "No Redis is configured, and the development server is not for production: "
                      "set REDIS_URL.")  # fmt: skip
    if url.socket or _is_inside(place, loopback=True):
        return
    if not url.password:
        yield Finding("error", "password", f"Redis at {place} asks for no password: whoever reaches it can run any "
                      "task. Give it one, and put it into REDIS_URL.")  # fmt: skip
    if not url.tls and not _is_inside(place, loopback=False):
        yield Finding("error", "tls", f"Calls travel to {place} as plain text, readable on the way: use rediss://.")
    if url.tls and not url.verify:
        yield Finding("error", "certificates", "redis_verify_certificates is False, so anybody on the way can be the "
                      "server. Name the authority with ?ssl_ca_certs= in REDIS_URL instead.")  # fmt: skip


def _is_inside(host: str, loopback: bool) -> bool:
    """Whether a host is this machine itself, or one of a private network. A name without dots is inside."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or (not loopback and ("." not in host or host.endswith((".local", ".internal"))))
    return address.is_loopback if loopback else address.is_private
