"""`core config`: what these settings make of Celery, without starting anything."""

import json
from typing import Any

import pytest
from support import Project


def shown(project: Project, **environment: str) -> dict[str, Any]:
    ended = project.run("core", "config", "--json", **environment)
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout))


def test_it_prints_a_line_a_key_and_starts_nothing(fresh: Project) -> None:
    ended = fresh.run("core", "config")

    lines = ended.stdout.splitlines()
    assert ended.returncode == 0
    assert lines == sorted(lines)
    assert "task_serializer = 'json'" in lines
    assert not (fresh.root / ".core").exists()


def test_json_says_the_same_as_the_lines(fresh: Project) -> None:
    lines = fresh.run("core", "config").stdout.splitlines()

    assert sorted(shown(fresh)) == [line.partition(" = ")[0] for line in lines]


def test_a_killed_scheduler_is_replaced_after_its_lock_of_30_seconds(fresh: Project) -> None:
    """The lock ends 30 s after its holder, and a standby looks every 5 s: within 40 s someone leads."""
    config = shown(fresh)

    assert (config["redbeat_lock_timeout"], config["beat_max_loop_interval"]) == (30, 5)


def test_nothing_but_json_is_accepted(fresh: Project) -> None:
    config = shown(fresh)

    assert config["accept_content"] == config["result_accept_content"] == ["json"]


@pytest.mark.parametrize(
    "given",
    ["{'accept_content': ['json', 'pickle']}", "{'task_serializer': 'pickle'}", "{'result_serializer': 'yaml'}"],
)
def test_the_escape_hatch_admits_no_pickle(fresh: Project, given: str) -> None:
    fresh.write(
        "src/settings.py",
        f"from core.config import Settings\n\n\nclass AppSettings(Settings):\n    celery: dict = {given}\n",
    )

    ended = fresh.run("core", "config")

    assert ended.returncode == 2
    assert "AppSettings.celery: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_celerys_own_settings_are_merged_last(fresh: Project) -> None:
    fresh.write(
        "src/settings.py",
        "from core.config import Settings\n\n\nclass AppSettings(Settings):\n"
        "    celery: dict = {'worker_prefetch_multiplier': 7,\n"
        "                    'broker_transport_options': {'visibility_timeout': 60}}\n",
    )

    config = shown(fresh)

    assert config["worker_prefetch_multiplier"] == 7
    assert config["broker_transport_options"]["visibility_timeout"] == 60
    assert config["broker_transport_options"]["unacked_restore_interval"] == 10


@pytest.mark.parametrize(
    ("url", "broker", "schedule"),
    [
        ("redis://h:1234/3", "redis://h:1234/3", "redis://h:1234/3"),
        ("unix:///run/r.sock?db=2", "redis+socket:///run/r.sock?virtual_host=2", "unix:///run/r.sock?db=2"),
        ("redis+socket:///run/r.sock", "redis+socket:///run/r.sock?virtual_host=0", "unix:///run/r.sock?db=0"),
    ],
    ids=["tcp", "unix", "redis+socket"],
)
def test_one_url_is_said_to_each_reader_in_its_own_spelling(
    fresh: Project, url: str, broker: str, schedule: str
) -> None:
    config = shown(fresh, REDIS_URL=url)

    assert (config["broker_url"], config["result_backend"]) == (broker, broker)
    assert config["redbeat_redis_url"] == schedule


def test_broker_and_results_can_be_at_two_places(fresh: Project) -> None:
    config = shown(fresh, TASK_BROKER_URL="redis://one/1", TASK_RESULT_BACKEND_URL="redis://two/2")

    assert config["broker_url"] == "redis://one:6379/1"
    assert config["result_backend"] == "redis://two:6379/2"
