"""`core scheduler`: the process that calls periodic tasks when they are due."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from core.cli.main import Group, Options
from core.cli.table import Row, document, json_option, show

pidfile_option = click.option(
    "--pidfile", type=click.Path(dir_okay=False, path_type=Path),
    help="The scheduler's pidfile. A standby on the same host needs its own.",
)  # fmt: skip


@click.group("scheduler", cls=Group)
def command() -> None:
    """Run, stop and look at the scheduler of periodic tasks."""


@command.command()
@pidfile_option
@click.option("--loglevel", type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
              default="info", help="The least level that is logged, on stderr.")  # fmt: skip
@click.pass_obj
def start(options: Options, pidfile: Path | None, loglevel: str) -> None:
    """Run the scheduler until it is stopped. Further ones, on other hosts, stand by."""
    options.load()
    from core.tasks import beat

    sys.exit(beat.run(pidfile=pidfile, loglevel=loglevel.upper()))


@command.command()
@pidfile_option
@click.pass_obj
def stop(options: Options, pidfile: Path | None) -> None:
    """Stop the scheduler of this project on this host. Exits 3 when none runs."""
    options.load()
    from core.tasks import beat

    click.echo(f"stopped (pid {beat.stop(pidfile=pidfile)})")


@command.command()
@pidfile_option
@json_option
@click.pass_obj
def status(options: Options, pidfile: Path | None, json: bool) -> None:
    """Say whether it runs here, and which scheduler leads. Exits 3 when none runs here."""
    options.load()
    from core.tasks import timetable

    found = timetable.status(pidfile=pidfile)
    if json:
        document(asdict(found))
    else:
        leader = f" · {found.leader['host']} (pid {found.leader['pid']}) leads" if found.leader else ""
        click.echo((f"running · pid {found.pid} · {found.role}" if found.running else "not running here") + leader)
        for line in found.words():
            click.echo(f"  {line}")
    sys.exit(0 if found.running else 3)


@command.command("list")
@json_option
@click.pass_obj
def list_(options: Options, json: bool) -> None:
    """List the periodic tasks and when each is due next."""
    options.load()
    from core.tasks import timetable

    entries = [asdict(entry) for entry in timetable.lines()]
    if json:
        document(entries)
    else:
        show(entries, line)


def line(entry: Row) -> str:
    """An entry in one line."""
    due = entry["next_run"] or ("no scheduler has run yet" if entry["enabled"] else "disabled")
    paused = "  paused" if entry["paused"] else ""
    return f"{entry['name']}  {entry['schedule']}  queue {entry['queue'] or '-'}  next {due}{paused}"


@command.command()
@click.argument("name")
@click.pass_obj
def pause(options: Options, name: str) -> None:
    """Leave out the runs of the periodic task NAME until it is resumed. A restart changes nothing."""
    options.load()
    from core.tasks import timetable

    click.echo(f"paused {timetable.pause(name)}")


@command.command()
@click.argument("name")
@click.pass_obj
def resume(options: Options, name: str) -> None:
    """Let the periodic task NAME run again, from its next time on."""
    options.load()
    from core.tasks import timetable

    click.echo(f"resumed {timetable.resume(name)}")


@command.command("run")
@click.argument("name")
@click.pass_obj
def run_(options: Options, name: str) -> None:
    """Queue a call of the periodic task NAME now, and print its id. The schedule stays as it is."""
    options.load()
    from core.tasks import timetable

    click.echo(timetable.run_now(name))
