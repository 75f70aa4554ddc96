"""The caller's side, as far as no broker is needed: what is refused before a call leaves the process."""

import json

from support import Project

SETTINGS = """
from pydantic import SecretStr
from core.config import Settings

class AppSettings(Settings):
    redis_url: SecretStr | None = SecretStr("redis://:Kq7xSecret@127.0.0.1:1/0")
    task_queues: tuple[str, ...] = ("extra",)
"""
TASKS = """
from core.tasks import task

@task
async def send(to: str): ...
"""
CALL = """
import asyncio, json
from src.apps.emails.tasks import send

async def main():
    said = []
    for queue in {queues}:
        try:
            await send.options(queue=queue).delay("a@b")
        except Exception as error:
            said.append([type(error).__name__, str(error), getattr(error, "maybe_sent", None)])
    print(json.dumps(said))

asyncio.run(main())
"""


def outcomes(of: Project, *queues: str) -> list[list[str]]:
    """What calls to these queues are refused with, from a process that has imported one task module alone."""
    of.write("src/settings.py", SETTINGS)
    of.write("src/apps/emails/tasks.py", TASKS)
    of.write("src/apps/other/tasks.py", TASKS.replace("@task", "@task(queue='unseen')"))
    done = of.python(CALL.format(queues=queues))
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_a_queue_that_nothing_names_is_refused_with_those_there_are(empty: Project) -> None:
    kind, said, _ = outcomes(empty, "exrta")[0]

    assert kind == "UnknownQueue"
    assert "'exrta'" in said
    assert "Did you mean 'extra'?" in said
    assert "Known queues: default, extra, unseen." in said


def test_a_queue_of_the_settings_or_of_a_module_that_was_not_imported_yet_is_known(empty: Project) -> None:
    """The broker refuses connections here, so getting as far as that is enough."""
    assert [kind for kind, _, _ in outcomes(empty, "default", "extra", "unseen")] == ["PublishError"] * 3


def test_a_broker_that_refuses_is_named_without_its_password(empty: Project) -> None:
    kind, said, maybe_sent = outcomes(empty, "default")[0]

    assert kind == "PublishError"
    assert said.startswith("src.apps.emails.tasks.send was not queued: ")
    assert "127.0.0.1:1/0" in said
    assert "REDIS_URL" in said
    assert "Kq7xSecret" not in said
    assert maybe_sent is False
