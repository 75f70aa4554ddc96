"""`rediss://`: broker, results and scheduler over TLS, with certificates that are checked."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from support import Project, project, redis_server
from tls_proxy import TLSProxy

CALL = """
import asyncio
from src.apps.probe.tasks import add

async def main():
    call = await add.delay(20, 3)
    print(await call.get(timeout=20))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no machine knows by itself."""
    return trustme.CA()


@pytest.fixture(scope="module")
def url(authority: trustme.CA) -> Iterator[str]:
    """A Redis behind TLS, with a certificate of that authority for 127.0.0.1 and localhost."""
    with redis_server() as (plain, _):
        target = int(plain.rpartition(":")[2].partition("/")[0])
        proxy = TLSProxy(authority.issue_cert("127.0.0.1", "localhost"), target)
        yield f"rediss://127.0.0.1:{proxy.port}/0"
        proxy.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Project]:
    with project() as made:
        yield made


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return file


@pytest.mark.parametrize("command", ["runworker", "scheduler start", "scheduler list"])
def test_a_certificate_of_an_unknown_authority_is_refused(shared: Project, url: str, command: str) -> None:
    refused = shared.run("core", *command.split(), REDIS_URL=url)

    assert refused.returncode == 2, refused.stderr
    assert "certificate verify failed" in refused.stderr
    assert "?ssl_ca_certs=" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_call_is_refused_as_well(shared: Project, url: str) -> None:
    refused = shared.python(CALL, REDIS_URL=url)

    last = refused.stderr.splitlines()[-1]
    assert last.startswith("core.errors.PublishError: src.apps.probe.tasks.add was not queued: ")
    assert "certificate verify failed" in last


def test_a_certificate_for_another_host_is_refused(shared: Project, authority: trustme.CA, ca_file: Path) -> None:
    """Its authority is known; the name on it is not the one that was asked for."""
    proxy = TLSProxy(authority.issue_cert("redis.example"), 1)

    refused = shared.run(
        "core", "scheduler", "list", REDIS_URL=f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={ca_file}"
    )

    proxy.close()
    assert refused.returncode == 2, refused.stderr
    assert "certificate" in refused.stderr


@pytest.mark.parametrize("trust", ["by its authority", "without checking"])
def test_broker_results_and_schedule_work_over_tls(fresh: Project, url: str, ca_file: Path, trust: str) -> None:
    """A certificate is trusted by its authority, or by a setting that says by name that none is checked."""
    if trust == "by its authority":
        environment = {"REDIS_URL": f"{url}?ssl_ca_certs={ca_file}"}
    else:
        environment = {"REDIS_URL": url, "REDIS_VERIFY_CERTIFICATES": "false"}
    worker = fresh.worker("--pool", "threads", **environment)
    scheduler = fresh.start("core", "scheduler", "start", **environment)

    called = fresh.python(CALL, **environment)
    worker.wait_for("sync_external_data[")
    listed = fresh.run("core", "scheduler", "list", **environment)

    assert called.stdout.strip() == "23", called.stderr
    assert "next 20" in listed.stdout
    assert scheduler.stop() == 0  # it gives its lock up, which the next one in this Redis needs
    assert "Traceback" not in worker.text() + scheduler.text()


def test_a_url_cannot_switch_the_check_off(shared: Project, url: str) -> None:
    """A query string is easily copied; the setting says what it does by its name."""
    refused = shared.run("core", "scheduler", "list", REDIS_URL=f"{url}?ssl_cert_reqs=none")

    assert refused.returncode == 2
    assert "redis_verify_certificates" in refused.stderr


def test_a_missing_authority_file_is_named(shared: Project, url: str) -> None:
    refused = shared.run("core", "scheduler", "list", REDIS_URL=f"{url}?ssl_ca_certs=/nonexistent/ca.pem")

    assert refused.returncode == 2, refused.stderr
    assert "/nonexistent/ca.pem" in refused.stderr
    assert "Traceback" not in refused.stderr
