"""`make docs`: write docs/settings.md and docs/cli.md from the code that they describe."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any, get_args

import click

DOCS = Path(__file__).parent.parent / "docs"
NOTE = "<!-- Written by `make docs`. Change the code that it describes, not this page. -->"
MEANINGS = {
    0: "it did what was asked; also a worker or scheduler that was stopped",
    1: "it failed",
    2: "the command, the settings or the project cannot be used as they are",
    3: "there is nothing that runs",
    69: "Redis does not answer",
    70: "a worker that did not react any more gave up; start it again",
    73: "it runs already",
    130: "interrupted: Ctrl-C, or a second signal to a worker",
}


def settings_page() -> str:
    """docs/settings.md: every field of Settings."""
    from core.config import Settings

    lines = [
        "# Settings",
        NOTE,
        "Subclass `core.config.Settings` in `src/settings.py` and give a field its value there, or set the variable\n"
        "of the same name in capitals. A variable wins over `.env.{ENVIRONMENT}`, that over `.env` (both in the\n"
        "project's root), and that over the class. Durations are seconds.",
        "`core config` prints the Celery configuration that the settings make, without its passwords.",
    ]
    fields = Settings.model_json_schema()["properties"]
    for name, field in fields.items():
        lines += [
            f"## `{name}`",
            field["description"],
            f"Variable `{name.upper()}` · {_kind(Settings, name, field)} · default {_default(Settings, name)}",
        ]
    return "\n\n".join(lines) + "\n"


def _kind(settings: Any, name: str, schema: dict[str, Any]) -> str:
    if name.endswith("_url"):
        return "a URL, kept secret"
    if name.endswith("_keys"):
        return "a list of text, kept secret"
    kind, *unset = [_words(option) for option in schema.get("anyOf", [schema])]
    return " or ".join([kind + _bound(settings.model_fields[name]), *unset])


def _bound(field: Any) -> str:
    """The least value; it is in the annotation, or in one half of `Annotated[...] | None`."""
    for part in (field, *get_args(field.annotation)):
        for constraint in getattr(part, "metadata", None) or getattr(part, "__metadata__", ()):
            for limit in (constraint, *getattr(constraint, "metadata", ())):
                if (above := getattr(limit, "gt", None)) is not None:
                    return f" above {above}"
                if (least := getattr(limit, "ge", None)) is not None:
                    return f" from {least} on"
    return ""


def _words(option: dict[str, Any]) -> str:
    if "enum" in option:
        return " or ".join(f"`{value}`" for value in option["enum"])
    kinds = {
        "boolean": "`true` or `false`",
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "array": "a list: JSON, or values with commas between them",
        "object": "JSON",
        "null": "unset",
    }
    return kinds[option["type"]]


def _default(settings: Any, name: str) -> str:
    value = settings.model_fields[name].get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return "unset" if value is None else "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def command_line() -> click.Group:
    """The `core` command with everything that its package holds."""
    import core.cli
    from core.cli.main import cli

    for found in pkgutil.iter_modules(core.cli.__path__):
        command = getattr(import_module(f"core.cli.{found.name}"), "command", None)
        if isinstance(command, click.Command):
            cli.add_command(command)
    return cli


def commands(command: click.Command, path: str = "core") -> Iterator[tuple[str, click.Command]]:
    """Every command below this one, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        for name, below in sorted(command.commands.items()):
            yield from commands(below, f"{path} {name}")


def cli_page() -> str:
    """docs/cli.md: every command with its options, and the exit codes."""
    lines = [
        "# Commands",
        NOTE,
        "Run them anywhere inside a project. What a command prints goes to stdout, log lines and errors to stderr.",
    ]
    for path, command in commands(command_line()):
        lines += [f"## `{path}`", cleandoc(command.help or "")]
        options = [option for option in command.params if isinstance(option, click.Option)]
        if options:
            rows = ["| option | variable | meaning |", "|---|---|---|", *(_row(path, option) for option in options)]
            lines.append("\n".join(rows))
    lines += ["## Exit codes", "\n".join(_exit_codes())]
    return "\n\n".join(lines) + "\n"


def _row(path: str, option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    if not option.is_flag:
        kind = option.type
        what = (
            " ".join(f"`{choice}`" for choice in kind.choices)
            if isinstance(kind, click.Choice)
            else f"`{option.metavar or 'FILE'}`"
        )
        names += f" {what}"
    prefix = "_".join(path.split()).upper()
    variable = f"`{prefix}_{(option.name or '').upper()}`" if option.show_envvar else ""
    default = f" Default: `{option.default}`." if isinstance(option.default, str) else ""
    return f"| {names} | {variable} | {(option.help or '').strip()}{default} |"


def _exit_codes() -> Iterator[str]:
    from core import errors

    yield "| code | meaning | errors |"
    yield "|---|---|---|"
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CoreError)]
    unnamed = {kind.exit_code for kind in own} - set(MEANINGS)
    assert not unnamed, f"give the exit codes {unnamed} a meaning in {__file__}"
    for code, meaning in MEANINGS.items():
        # Code 1 is what every other error ends with.
        names = sorted(kind.__name__ for kind in own if kind.exit_code == code and code != 1)
        yield f"| {code} | {meaning} | {', '.join(f'`{name}`' for name in names)} |"


PAGES = {"settings.md": settings_page, "cli.md": cli_page}


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
