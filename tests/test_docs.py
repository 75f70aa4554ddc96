"""README and docs say what is so: their code runs, their output comes out, their commands and links exist."""

import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import click
import docs_reference
import pytest
from blocks import Block, Console, blocks, page_project
from redis import Redis
from support import EXAMPLE, Process, Project, free_port, redis_server, wait_until

import core.tasks
from core import errors
from core.config import Settings
from core.tasks.options import CALL_OPTIONS, TaskOptions
from core.tasks.retry import RetryPolicy

ROOT = Path(__file__).parent.parent
GENERATED = [ROOT / "docs" / name for name in docs_reference.PAGES]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page not in GENERATED]
RUNNABLE = [page for page in WRITTEN if page.name != "design.md"]
PROSE = [*WRITTEN, ROOT / "CHANGELOG.md"]

LONG_RUNNING = {"core runworker": "serving ", "core scheduler start": "scheduling ", "core flower": "Visit me at"}
#: The port that the pages serve metrics on.
PORT = "9808"
#: Commands that are only checked here: they install, or run everything again, or stay for ever.
CHECKED_ONLY = ("make", "pip", "uvicorn", "curl")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Reader:
    """Somebody who follows a page from its top: writes its files, runs its commands, types its code."""

    def __init__(self, made: Project) -> None:
        self.project = made
        self.console = Console(made)
        self._printed: list[str] = []
        self._running: dict[str, Process] = {}
        self._stale = False
        self._port = free_port()

    def follow(self, block: Block) -> None:
        """Do what one block says."""
        kinds: dict[str, Callable[[Block], None]] = {
            "python": self._python, "bash": self._bash, "text": self._text, "toml": self._config, "ini": self._config,
            "acl": self._rights,
        }  # fmt: skip
        block = replace(block, text=block.text.replace(PORT, str(self._port)))
        assert block.language in kinds, f"{block}: nobody knows how to check {block.language!r}"
        kinds[block.language](block)

    def _python(self, block: Block) -> None:
        if block.extra == "excerpt":
            assert is_in_the_repository(block.text), f"{block}: this is not in core/ or tests/ any more"
        elif block.file:
            self.project.write(block.file, block.text)
            self._stale = True  # a worker that runs has imported the tasks as they were
        else:
            if re.search(r"delay\(|apply_async", block.text):
                self._have_a_worker()
            self._printed.append(self.console.run(block.text))

    def _have_a_worker(self) -> None:
        """The page's own worker if it has started one, else one of the reader's."""
        worker = self._running.get("core runworker")
        if worker is None or self._stale:
            if worker:
                worker.stop()
            self._start("core runworker --concurrency 2")
            self._stale = False

    def _start(self, command: str) -> None:
        kind = next(kind for kind in LONG_RUNNING if command.startswith(kind))
        process = self.project.start(*shlex.split(command), CORE_FLOWER_PORT=str(free_port()))
        process.wait_for(LONG_RUNNING[kind])
        if (before := self._running.get(kind)) and kind == "core runworker":
            before.stop()
        self._running[command if kind in self._running and kind != "core runworker" else kind] = process

    def _bash(self, block: Block) -> None:
        for line in block.text.splitlines():
            command = line.partition("#")[0].strip()
            words = shlex.split(command)
            if not words:
                continue
            if words[0] in ("core", "celery"):
                check_command(words)
            if words[0] in CHECKED_ONLY:
                check_tool(words)
            elif any(command.startswith(kind) for kind in LONG_RUNNING) and "--burst" not in words:
                self._start(command)
                self._stale = False
            elif words[:4] == ["celery", "-A", "core", "flower"]:
                self._run("celery -A core flower --help")
            else:
                if words[:2] == ["python", "call.py"] or words[0] == "celery":
                    self._have_a_worker()
                self._run(command)

    def _run(self, command: str) -> None:
        done = self.project.run("bash", "-c", command)
        self._printed.append(done.stdout + done.stderr)
        assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout}{done.stderr}"

    def _text(self, block: Block) -> None:
        if "└── " in block.text:
            return  # a drawing; the errors' tree has a test of its own
        expected = [loosely(line) for line in block.text.splitlines() if line.strip()]

        def missing() -> list[str]:
            came = "\n".join([*self._printed, *(p.text() for p in self._running.values())])
            lines = {loosely(line) for line in came.splitlines()}
            return [line for line in expected if line not in lines]

        try:
            wait_until(lambda: not missing(), 20, "the page's output")
        except AssertionError:
            came = "\n".join([*self._printed, *(p.text() for p in self._running.values())])
            raise AssertionError(
                f"{block}: never came out:\n" + "\n".join(missing()) + f"\n\nwhat did:\n{came}"
            ) from None

    def _config(self, block: Block) -> None:
        if block.language == "toml":
            tomllib.loads(block.text)
            assert block.file
            self.project.write(block.file, block.text)
            return
        for line in block.text.splitlines():
            if line and not line.startswith("#"):
                assert line.partition("=")[0].lower() in Settings.model_fields, f"{block}: no setting {line}"

    def _rights(self, block: Block) -> None:
        with redis_server() as (url, _), Redis.from_url(url) as client:
            for line in block.text.splitlines():
                assert client.execute_command("ACL", "SETUSER", *line.split()[1:])

    def close(self) -> None:
        self.console.close()


#: What differs from run to run, and what stands in its place when lines of output are compared.
VARIES = {
    r"[0-9a-f]{8}-[0-9a-f-]{27}": "ID",
    r"(?<![\w.])/[\w./-]+": "PATH",
    r"\d{4}-\d\d-\d\d[ T][\d:,.]+(\+00:00)?": "TIME",
    r"(· |on )[\w.-]+ \(pid": "HOST (pid",
    r"\bpid \d+": "PID",
    r"\bworker-\d+@[\w.-]+": "WORKER",
    r"\bturn \d+ s ago": "AGO",
    r"\boldest \d+ s": "OLDEST",
    r"\b\d+\.\d{3} s\b": "SECONDS",
    r"\bin [\d.]+s$": "SECONDS",
    r"ends in \d+ s": "SECONDS",
    r"next: src\.apps\.tokens\.tasks\.\w+": "next: ENTRY",  # before a full hour it is another one
    r"\b(valkey|redis) [\d.]+": "SERVER",
}


def loosely(line: str) -> str:
    """A line of output without what differs from run to run."""
    line = line.rstrip()
    for pattern, word in VARIES.items():
        line = re.sub(pattern, word, line)
    return line


def is_in_the_repository(text: str) -> bool:
    """Whether a source file of ours has exactly this text."""
    sources = [*(ROOT / "core").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    return any(text in source.read_text() for source in sources)


def check_tool(words: list[str]) -> None:
    """That a make target, or an extra that pip is told to install, exists."""
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        asked = {word for word in words[1:] if "=" not in word}
        assert asked <= set(targets), f"{words}: the Makefile has {targets}"
    for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(extra.split(",")) <= set(known)


def check_command(words: list[str]) -> None:
    """That a `core` command exists and has the options it is given."""
    if words[0] != "core":
        return
    command: click.Command = docs_reference.command_line()
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words[1:]:
        if word == "--":
            return
        if word.startswith("-"):
            assert word in options, f"{shlex.join(words)}: there is no {word}"
        elif isinstance(command, click.Group):
            for alternative in word.split("|"):
                assert alternative in command.commands, f"{shlex.join(words)}: there is no {alternative}"
            command = command.commands[word.split("|")[0]]
            options = {option for parameter in command.params for option in parameter.opts} | {"--help"}


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_a_reader_who_follows_the_page_gets_what_it_says(page: Path) -> None:
    found = blocks(page)
    if page.name == "contributing.md":
        found = [b for b in found if b.language == "bash" or b.extra == "excerpt"]
    with page_project() as made:
        if page.name == "quickstart.md":
            (made.root / "src/settings.py").unlink()
            (made.root / "src/services.py").unlink()
        if page.name in ("errors.md", "monitoring.md"):  # they do not show how to declare a task
            made.write(
                "src/apps/emails/tasks.py", next(b for b in blocks(ROOT / "README.md") if "send_email" in b.text).text
            )
        if page.name in ("observability.md", "web.md"):  # OpenTelemetry is hidden from the others; FastAPI imports it
            made.environment["PYTHONPATH"] = str(made.root)
        reader = Reader(made)
        try:
            for block in found:
                reader.follow(block)
        finally:
            reader.close()


def test_the_web_application_on_its_page_is_the_one_that_is_tested() -> None:
    shown = {block.file: block.text.partition("\n")[2] for block in blocks(ROOT / "docs/howto/web.md") if block.file}

    for file in ("src/apps/imports/tasks.py", "src/web.py"):
        assert shown[file] == (EXAMPLE / file).read_text()


@pytest.mark.parametrize("page", PROSE, ids=name)
def test_commands_in_the_text_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)

    for code in re.findall(r"`([^`\n]+)`", text):
        words = shlex.split(code) if code.startswith(("core ", "make ")) else []
        if words and words[0] == "core":
            check_command(words)
        elif words:
            check_tool(words)


def anchors(page: Path) -> set[str]:
    """What a link to a place in this page may name, as forges make it from the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.is_file(), f"{name(page)} links to {target}"
        assert not anchor or anchor in anchors(there), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PROSE, ids=name)
def test_tests_that_are_named_exist(page: Path) -> None:
    for path in re.findall(r"`(tests/[\w/.]+)`", page.read_text()):
        assert (ROOT / path).exists(), f"{name(page)} names {path}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, new = set[Path](), [ROOT / "README.md"]
    while new:
        page = new.pop()
        seen.add(page)
        targets = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text())
        new += [
            there for there in ((page.parent / t).resolve() for t in targets) if there not in seen and there.exists()
        ]

    assert set(PAGES) <= seen


@pytest.mark.parametrize("page", sorted(docs_reference.PAGES))
def test_a_generated_page_is_current(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == docs_reference.PAGES[page](), "run `make docs`"


def own_errors() -> list[type[Exception]]:
    """The error classes that core.errors defines."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return [kind for kind in found if kind.__module__ == errors.__name__]


def test_every_error_is_imported_from_core_tasks() -> None:
    assert [kind.__name__ for kind in own_errors() if getattr(core.tasks, kind.__name__, None) is not kind] == []


@pytest.mark.parametrize("kind", own_errors(), ids=lambda kind: kind.__name__)
def test_every_error_is_explained_and_drawn_where_it_hangs(kind: type[Exception]) -> None:
    text = (ROOT / "docs/errors.md").read_text()

    explained = rf"^\| `{kind.__name__}` \| ." if kind is not errors.CoreError else "^`CoreError` is the base"
    assert re.search(explained, text, re.MULTILINE), f"{kind.__name__} is missing in docs/errors.md"
    assert drawn_parents(text)[kind.__name__] == kind.__bases__[0].__name__


def drawn_parents(text: str) -> dict[str, str]:
    """Who hangs under whom in the drawing of errors.md."""
    drawing = re.search(r"```text\n(Exception\n.*?)```", text, re.DOTALL)
    assert drawing
    parents: dict[str, str] = {}
    path = list[str]()
    for line in drawing[1].splitlines():
        depth, kind = len(re.match(r"[│├└─ ]*", line)[0]) // 4, re.search(r"\w+", line)[0]  # type: ignore[index]
        path[depth:] = [kind]
        parents[kind] = path[depth - 1] if depth else ""
    return parents


def test_the_drawing_says_which_builtin_errors_ours_are() -> None:
    drawn = dict(re.findall(r"── (\w+) +\((\w+)\)", (ROOT / "docs/errors.md").read_text()))

    assert drawn == {kind.__name__: kind.__bases__[1].__name__ for kind in own_errors() if len(kind.__bases__) > 1}


def test_the_tables_of_options_are_complete() -> None:
    text = (ROOT / "docs/quickstart.md").read_text().partition("## Options at a glance")[2]
    of_tasks, _, of_calls = text.partition("Of a call")

    assert re.findall(r"^\| `(\w+)` \|", of_tasks, re.MULTILINE) == [field.name for field in fields(TaskOptions)]
    assert re.findall(r"^\| `(\w+)` \|", of_calls, re.MULTILINE) == list(CALL_OPTIONS)
    for setting, default in re.findall(r"`(task_default_\w+)`, (\d+)", of_tasks):
        assert float(default) == Settings.model_fields[setting].default


@pytest.mark.parametrize(
    ("options", "waits"),
    [({"delay": 60}, "60, 60, 60 s"), ({"delay": 60, "backoff": True}, "60, 120, 240 s")],
    ids=["fixed", "backoff"],
)
def test_the_table_of_waits_is_what_the_policy_does(options: dict[str, float], waits: str) -> None:
    policy = RetryPolicy(max_retries=3, **options)  # type: ignore[arg-type]

    seconds = [policy.next_delay(errors.TaskError(), attempt) for attempt in (1, 2, 3)]

    assert ", ".join(f"{s:g}" for s in seconds if s) + " s" == waits
    assert f"| {waits}" in (ROOT / "docs/howto/retries.md").read_text()


def test_figures_of_the_guarantees_are_those_of_the_code() -> None:
    from core.tasks.celery_config import VISIBILITY_TIMEOUT

    text = (ROOT / "docs/guarantees.md").read_text()
    fields = Settings.model_fields

    assert set(re.findall(r"\b(\d,\d{3}) s", text)) == {f"{VISIBILITY_TIMEOUT:,}"}
    assert f"`task_shutdown_timeout` ({fields['task_shutdown_timeout'].default:g} s)" in text
    assert f"`task_publish_timeout` ({fields['task_publish_timeout'].default:g} s)" in text
    assert f"`task_result_expires` ({fields['task_result_expires'].default:,} s)" in text


def test_what_has_no_block_of_its_own_is_not_left_behind() -> None:
    """Only design.md has no block to run; a new page is followed like the others."""
    assert [name(page) for page in WRITTEN if page not in RUNNABLE] == ["docs/design.md"]
    assert blocks(ROOT / "docs/design.md") == []
