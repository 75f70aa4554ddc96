"""`core init`: the files that a new project begins with."""

from pathlib import Path

import click

FILES = {
    "src/settings.py": """from core.config import Settings


class AppSettings(Settings):
    task_enabled: bool = True
    task_default_queue: str = "default"
""",
    "src/apps/emails/tasks.py": '''import asyncio

from core.tasks import periodic_task, task


@task
async def send_email(to: str, subject: str, body: str) -> dict[str, bool]:
    """Send email asynchronously."""
    await asyncio.sleep(0.1)  # your email service
    return {"sent": True}


@periodic_task(interval=300)  # every 5 minutes
async def sync_external_data() -> None:
    """Run every 5 minutes."""
''',
    "call.py": """import asyncio

from src.apps.emails.tasks import send_email


async def main() -> None:
    result = await send_email.delay("user@example.com", "Hello", "Welcome!")
    print("queued", result.id)
    print(await result.get(timeout=10))


asyncio.run(main())
""",
}


@click.command("init")
@click.argument("directory", default=".", type=click.Path(file_okay=False, path_type=Path))
def command(directory: Path) -> None:
    """Write settings, a task and a call of it into DIRECTORY. What is there already stays as it is."""
    for name, text in FILES.items():
        path = directory / name
        if path.exists():
            click.echo(f"kept    {path}")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        click.echo(f"written {path}")
    there = "" if directory == Path() else f"cd {directory} && "
    click.echo(f"\nRun `{there}core dev`, and in a second terminal `{there}python call.py`.")
