"""Asking whether a Redis answers, whichever way it is reached, and what is said when it does not."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr
from redis import Redis
from support import free_port, redis_server
from tls_proxy import TLSProxy

from core import config, ping
from core.errors import BrokerUnreachable, ConfigurationError


@dataclass
class Ways:
    """The ways to one server: its port, the port at which it speaks TLS, its socket, and the file of the authority."""

    port: int
    tls: int
    socket: Path
    ca_certs: Path


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    place = tmp_path_factory.mktemp("ping")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(place / "ca.pem"))
    with redis_server("--requirepass", "rig/ht", "--unixsocket", str(place / "redis.sock")) as (url, _):
        port = int(url.rpartition(":")[2].partition("/")[0])
        with Redis(port=port, password="rig/ht") as admin:
            admin.execute_command("ACL", "SETUSER", "probe", "on", ">own", "+ping", "+select")
            admin.execute_command("ACL", "SETUSER", "mute", "on", ">own", "+select", "+hello", "+client")
        proxy = TLSProxy(authority.issue_cert("127.0.0.1", "localhost"), port)
        yield Ways(port, proxy.port, place / "redis.sock", place / "ca.pem")
        proxy.close()


def asked(url: str, verify: bool = True) -> str | None:
    with config.overridden(redis_url=SecretStr(url), task_broker_url=None, redis_verify_certificates=verify):
        return ping.broker()


@pytest.mark.parametrize(
    ("url", "verify"),
    [
        ("redis://:rig%2Fht@127.0.0.1:{port}/0", True),
        ("redis://:rig%2Fht@127.0.0.1:{port}/3", True),
        ("redis://probe:own@localhost:{port}/1", True),
        ("rediss://:rig%2Fht@127.0.0.1:{tls}/1?ssl_ca_certs={ca_certs}", True),
        ("rediss://:rig%2Fht@127.0.0.1:{tls}/0", False),
        ("unix://:rig%2Fht@{socket}?db=2", True),
    ],
)
def test_it_answers_every_way_and_is_named_without_its_password(ways: Ways, url: str, verify: bool) -> None:
    said = asked(url.format(**vars(ways)), verify)

    assert said
    assert said.startswith((f"127.0.0.1:{ways.port}/", f"localhost:{ways.port}/", f"127.0.0.1:{ways.tls}/",
                            f"{ways.socket} db 2"))  # fmt: skip


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://:wrong-one@127.0.0.1:{port}/0", "refuses the user or password"),
        ("redis://127.0.0.1:{port}/0", "refuses the user or password"),
        ("redis://:rig%2Fht@127.0.0.1:{port}/99", "has no such database"),
        ("redis://mute:own@127.0.0.1:{port}/0", "does not give the user in REDIS_URL the rights"),
        ("rediss://:rig%2Fht@127.0.0.1:{tls}/0", "certificate verify failed"),
        ("rediss://:rig%2Fht@127.0.0.1:{tls}/0?ssl_ca_certs=/nonexistent/ca.pem", "ssl_ca_certs, cannot be read"),
    ],
)
def test_why_it_does_not_let_us_in_is_said(ways: Ways, url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as refused:
        asked(url.format(**vars(ways)))

    assert "wrong-one" not in str(refused.value)


def test_nobody_at_the_port_or_the_socket_is_unreachable() -> None:
    with pytest.raises(BrokerUnreachable, match="refused"):
        asked(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(BrokerUnreachable, match="No such file"):
        asked("unix:///nonexistent/redis.sock")


def test_what_answers_and_is_no_redis_is_unreachable() -> None:
    def serve() -> None:
        for _ in range(2):
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(BrokerUnreachable):
            asked(f"redis://127.0.0.1:{server.getsockname()[1]}/0")
