"""A broker that is no Redis, and a Redis that cannot be one: what is said where it cannot be used."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import Project, redis_server, temporary_directory, valkey_binary, wait_until

CALL = "import asyncio\nfrom src.apps.probe.tasks import add\nasyncio.run(add.delay(1))"
AWAY = "amqp://shop:s3cr3t@127.0.0.1:1/shop"


def test_a_broker_that_is_away_is_named_by_its_kind_and_place(fresh: Project) -> None:
    fresh.environment["TASK_BROKER_URL"] = AWAY
    worker = fresh.start("core", "runworker")

    called = fresh.caller(CALL)

    said = "The broker at amqp://127.0.0.1:1/shop does not answer: Connection refused."
    assert f"PublishError: src.apps.probe.tasks.add was not queued: {said}" in called.stderr
    worker.wait_for(f"{said} Start it, or set TASK_BROKER_URL to one that is running. Waiting for it")
    assert worker.stop() == 0
    assert "s3cr3t" not in called.stderr + worker.text()


def test_the_schedule_is_in_redis_whatever_the_broker(fresh: Project) -> None:
    listed = fresh.run("core", "scheduler", "list", TASK_BROKER_URL=AWAY)

    assert listed.returncode == 0, listed.stderr
    assert "sync_external_data" in listed.stdout


def test_production_needs_a_redis_for_results_beside_another_broker(fresh: Project) -> None:
    done = fresh.run("core", "runworker", ENVIRONMENT="production", TASK_BROKER_URL=AWAY)

    assert done.returncode == 2
    assert "Results and the schedule need a Redis. Set REDIS_URL" in done.stderr
    assert "s3cr3t" not in done.stderr


def test_the_configuration_for_people_masks_another_brokers_password(fresh: Project) -> None:
    shown = fresh.run("core", "config", TASK_BROKER_URL=AWAY).stdout

    assert "broker_url = 'amqp://shop:********@127.0.0.1:1/shop'" in shown
    assert "s3cr3t" not in shown


@pytest.mark.parametrize("command", [("core", "runworker"), (sys.executable, "-c", CALL)], ids=["worker", "call"])
def test_a_part_of_a_cluster_is_refused(fresh: Project, command: tuple[str, ...]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        bus = probe.getsockname()[1]  # its own choice is the port and 10,000, which may be none
    with redis_server("--cluster-enabled", "yes", "--cluster-port", str(bus)) as (url, _):
        done = fresh.run(*command, REDIS_URL=url)

    assert done.returncode == (2 if command[0] == "core" else 1)
    assert "is part of a Redis Cluster" in done.stderr


def test_a_sentinel_that_is_taken_for_a_server_is_refused_with_the_url_to_write(fresh: Project) -> None:
    with temporary_directory("core-sentinel-") as directory:
        place = Path(directory) / "sentinel.sock"
        (Path(directory) / "sentinel.conf").write_text(f"port 0\nunixsocket {place}\n")
        sentinel = subprocess.Popen(
            [valkey_binary(), f"{directory}/sentinel.conf", "--sentinel"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until(place.exists, 10, "the sentinel listens")
            done = fresh.run("core", "runworker", REDIS_URL=f"unix://{place}")
        finally:
            sentinel.kill()
            sentinel.wait()

    assert done.returncode == 2
    assert "A sentinel answers at" in done.stderr
    assert "Write sentinel://host:26379/0?master_name=mymaster." in done.stderr
