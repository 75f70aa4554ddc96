"""`core tasks`, `core info` and `core completion`: what needs no broker, and what all commands have in common."""

import json
import os
import re
import subprocess
from collections.abc import Iterator

import click
import docs_reference
import pytest
from support import CORE, Project, clean_environment, project

#: No server answers there, and none is needed.
AWAY = "redis://:very-secret@127.0.0.1:1/0"


@pytest.fixture(scope="module")
def made() -> Iterator[Project]:
    with project() as made:
        made.environment["REDIS_URL"] = AWAY
        made.write(
            "src/apps/other/tasks.py",
            "from core.tasks import task\n\n\n@task(max_retries=0, timeout=None)\ndef add() -> None:\n    'Twice.'\n",
        )
        yield made


def test_list_names_every_task_with_its_place(made: Project) -> None:
    told, document = made.run("core", "tasks", "list"), made.run("core", "tasks", "list", CORE_TASKS_LIST_JSON="1")

    assert "src.apps.other.tasks.add  queue default  0 retries  no timeout  src/apps/other/tasks.py:" in told.stdout
    assert "src.apps.tokens.tasks.sync_external_data  queue default" in told.stdout
    entries = {entry["name"]: entry for entry in json.loads(document.stdout)}
    assert entries["src.apps.emails.tasks.send_urgent_notification"]["queue"] == "high-priority"
    assert entries["src.apps.tokens.tasks.sync_external_data"]["schedule"] == "every 1 s"
    assert len(told.stdout.splitlines()) == len(entries)


def test_show_takes_the_last_word_of_a_name(made: Project) -> None:
    details = json.loads(made.run("core", "tasks", "show", "send_urgent_notification", "--json").stdout)
    told = made.run("core", "tasks", "show", "src.apps.other.tasks.add").stdout

    assert details["name"] == "src.apps.emails.tasks.send_urgent_notification"
    assert details["signature"] == "send_urgent_notification(user_id: int, message: str)"
    assert "doc           Twice.\n" in told
    assert "kind          plain function\n" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "add"), "'add' is the last word of 2 names: src.apps.other.tasks.add, src.apps.probe.tasks.add"),
        (("show", "send_emial"), "The project has no task 'send_emial'. Did you mean 'send_email'?"),
        (("run", "send_email", "--args", "[1"), "it is no JSON: "),
        (("run", "send_email", "--kwargs", "[]"), "it is JSON, and not an object."),
        (("run", "nap", "--args", "[1]", "--queue", "defautl"), "Did you mean 'default'?"),
        (("run", "nap", "--timeout", "1"), "--timeout is how long to --wait."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_means_nothing_is_refused_by_name(made: Project, words: tuple[str, ...], said: str) -> None:
    done = made.run("core", "tasks", *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nap", "--args", '["long"]'), "was called wrongly: seconds: "),
        (("ignored", "--args", '["f"]', "--wait"), "ignore_result=True, so nothing is kept"),
        (("nap", "--args", "[1]"), "was not queued"),
    ],
    ids=["arguments", "ignored", "away"],
)
def test_a_call_that_is_not_queued_exits_1_and_says_why(made: Project, words: tuple[str, ...], said: str) -> None:
    done = made.run("core", "tasks", "run", *words)

    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


def test_info_says_what_there_is_without_passwords_or_a_broker(made: Project) -> None:
    done = made.run("core", "info", "--json")

    said = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert said["celery"].startswith("5.7.")
    assert said["project"] == str(made.root)
    assert said["settings"] == f"src.settings from {made.root}/src/settings.py"
    assert "127.0.0.1:1" in said["broker"]
    assert "secret" not in done.stdout
    assert (said["pool"], said["schedule"] > 0, said["tasks"] > 50) == ("asyncio", True, True)
    assert {"default", "high-priority", "other"} <= set(said["queues"])


@pytest.mark.parametrize(
    ("columns", "first"), [("200", "name queue max retries timeout schedule location"), ("40", "src.")]
)
def test_on_a_terminal_lists_are_tables_where_they_fit(made: Project, columns: str, first: str) -> None:
    """What is no terminal gets lines, as the other tests see."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [CORE, "tasks", "list"], cwd=made.root, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.DEVNULL,
        env=clean_environment(**made.environment, COLUMNS=columns, TERM="xterm"),
    )  # fmt: skip
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 4096):
            text += part
    except OSError:  # the end of a terminal
        pass
    os.close(ours)

    assert process.wait(30) == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.decode())
    head, rule, *_ = plain.splitlines()
    assert " ".join(head.split()).startswith(first)
    assert (set(rule) <= {"─", " "}) == (columns == "200")
    assert b"\x1b[3" not in text, "NO_COLOR is set"


@pytest.mark.parametrize(
    ("words", "finds"), [("core sta", "status"), ("core tasks ru", "run"), ("core tasks run --wa", "--wait")]
)
def test_the_shell_completes(made: Project, words: str, finds: str) -> None:
    done = made.run("core", _CORE_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))

    assert done.stdout.strip() == f"plain,{finds}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(made: Project, shell: str) -> None:
    script = made.run("core", "completion", shell).stdout

    assert f"_CORE_COMPLETE={shell}_complete" in script


def test_every_option_says_which_variable_it_is_read_from() -> None:
    silent = [
        f"{path} {option.opts[-1]}"
        for path, command in docs_reference.commands(docs_reference.command_line())
        for option in command.params
        if isinstance(option, click.Option) and not option.show_envvar and option.name != "version"
    ]

    assert silent == []
