"""`core check`: what it finds, and how it ends."""

import json
from typing import Any

import pytest
from support import Project, redis_server

ONE = """
from core.tasks import periodic_task, task


@task(unique=True)
async def alone(): ...


@periodic_task(interval=60, overlap=False)
async def tick(): ...
"""


def check(project: Project, *options: str, **environment: str) -> tuple[int, dict[str, str]]:
    """The exit code, and the level of each finding by its name."""
    done = project.run("core", "check", "--json", *options, **environment)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, {finding["name"]: finding["level"] for finding in json.loads(done.stdout)}


def test_the_development_server_is_as_it_should_be_and_not_for_production(fresh: Project) -> None:
    done = fresh.run("core", "check")

    assert (done.returncode, done.stdout) == (0, "nothing to change\n")
    assert check(fresh, "--deploy") == (1, {"server": "error"})


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), {"persistence": "warning"}),
        (("--appendonly", "yes"), {}),
        (("--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"), {"eviction": "warning"}),
        (("--appendonly", "yes", "--maxmemory-policy", "volatile-ttl"), {"eviction": "warning"}),
        (("--appendonly", "yes", "--replicaof", "127.0.0.1 1"), {"replica": "error"}),
    ],
)
def test_a_server_that_would_lose_calls_is_named(fresh: Project, options: Any, found: dict[str, str]) -> None:
    with redis_server(*options) as (url, _):
        code, named = check(fresh, REDIS_URL=url)

        assert (code, named) == (int("error" in found.values()), found)
        if "eviction" in found:
            assert check(fresh, REDIS_URL=url, ENVIRONMENT="production") == (1, {"eviction": "error"})
            told = fresh.run("core", "check", "--deploy", REDIS_URL=url).stdout
            assert told.startswith(
                "error: eviction: Redis may throw calls away when its memory is full (maxmemory-policy"
            )


def test_plain_celery_in_the_same_database_is_named(fresh: Project) -> None:
    from redis import Redis

    with redis_server("--appendonly", "yes") as (url, _), Redis.from_url(url) as client:
        client.zadd("unacked_index", {"a": 1})

        assert check(fresh, REDIS_URL=url) == (0, {"shared": "warning"})


def test_with_stock_transport_a_task_without_a_limit_is_named(fresh: Project) -> None:
    fresh.write(
        "src/apps/slow/tasks.py", "from core.tasks import task\n\n\n@task(timeout=None)\nasync def forever(): ...\n"
    )
    with redis_server("--appendonly", "yes") as (url, _):
        done = fresh.run("core", "check", REDIS_URL=url, TASK_BROKER_TRANSPORT="stock")

    assert "warning: limits: " in done.stdout
    assert "src.apps.slow.tasks.forever" in done.stdout


@pytest.mark.parametrize(
    "environment",
    [{"TASK_BROKER_TRANSPORT": "stock"}, {"TASK_BROKER_URL": "amqp://127.0.0.1:1//"}],
    ids=["stock", "amqp"],
)
def test_where_nobody_keeps_locks_unique_tasks_are_refused_and_named(
    fresh: Project, environment: dict[str, str]
) -> None:
    fresh.write("src/apps/one/tasks.py", ONE)
    with redis_server("--appendonly", "yes") as (url, _):
        done = fresh.run("core", "check", REDIS_URL=url, **environment)
        called = fresh.caller("from src.apps.one.tasks import alone\nalone.delay_sync()", REDIS_URL=url, **environment)

    assert done.returncode == 1
    assert "error: unique: Calls of src.apps.one.tasks.alone, src.apps.one.tasks.tick, " in done.stdout
    assert "OptionError: src.apps.one.tasks.alone is unique: that needs Redis as the broker" in called.stderr


def test_where_no_redis_answers_it_exits_69(fresh: Project) -> None:
    assert fresh.run("core", "check", REDIS_URL="redis://127.0.0.1:1").returncode == 69


def test_a_worker_says_at_its_start_what_there_is_to_change(fresh: Project) -> None:
    with redis_server("--appendonly", "yes", "--maxmemory-policy", "allkeys-lru") as (url, _):
        worker = fresh.worker(REDIS_URL=url)

        assert worker.text().count("WARNING Redis may throw calls away") == 1
        assert worker.stop() == 0
