"""Rows 44 to 46: a password that is not to be seen, a certificate that nobody vouches for, rights that are few."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import click
import redis
import trustme
from docs_reference import command_line, commands
from faults.messages import Template
from faults.rows import ONCE, Finding, row
from faults.schedulers import LEADS, TICKS, of_plan, scheduler
from faults.world import World, until
from tls_proxy import TLSProxy

#: Characters that have to be written in another way inside a URL, JSON or a repr.
PASSWORD = "s3cr3t/+@:#%'\"x"
SIGNING_KEY = "s1gning-k3y-of-at-least-32-letters"
SPELLINGS = (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), "s3cr3t", "S3CR3T", "s1gning")
#: Every command of ours with its options. {dead} is a call on the dead list.
OURS = (
    "core -v config", "core -v config --json", "core -v check", "core -v check --deploy", "core -v check --json",
    "core -v broker start", "core -v broker status", "core -v broker stop",
    "core -v scheduler status", "core -v scheduler status --json", "core -v scheduler list",
    "core -v scheduler list --json", "core -v scheduler pause ticks", "core -v scheduler resume ticks",
    "core -v scheduler run ticks", "core -v scheduler stop --pidfile none.pid",
    "core -v dead list", "core -v dead list --json", "core -v dead show {dead}", "core -v dead retry {dead}",
    "core -v dead purge --all --yes",
    "core -v info", "core -v info --json", "core -v status", "core -v status --json", "core -v queues",
    "core -v queues --json", "core -v tasks list", "core -v tasks list --json", "core -v tasks show mark",
    "core -v tasks run mark --args [\"x\"]", "core -v cancel {dead}", "core -v result {dead}",
    "core -v result {dead} --json", "core -v purge --yes", "core -v completion bash", "core -v init other",
    "core -v health worker", "core -v health scheduler", "core -v health broker",
)  # fmt: skip
#: Those that run on, and whose logs are looked at: `core dev` runs the first two,
#: and of Flower tests/acceptance/test_secrets.py sees the pages.
SERVICES = {"core runworker", "core scheduler start", "core dev", "core flower"}
CELERYS = ("report", "inspect conf", "inspect report", "inspect stats", "status")


@row(44, "a password and a signing key: every command, worker and scheduler at debug level, `ps`, failures", pools=ONCE)
def password_shown(world: World) -> str:
    url = world.server.ask_for(PASSWORD)
    world.project.environment |= {"REDIS_URL": url, "TASK_SIGNING_KEYS": SIGNING_KEY, **of_plan(TICKS)}
    template = Template.of(world)
    worker = world.worker(loglevel="debug")
    beat = scheduler(world, TICKS, ready=LEADS, loglevel="debug")
    dead = template.push(world, headers={"timelimit": "ab"}).id if world.ours else ""
    world.fine()
    until(lambda: beat.sends() > 1, 10, "nothing is due")

    def run(command: str) -> tuple[str, str]:
        ended = world.project.run(*command.format(dead=dead).split())
        return f"`{command}`", ended.stdout + ended.stderr

    with ThreadPoolExecutor(3) as threads:
        texts = dict(threads.map(run, every_command(world)))
    listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for what, wrong in wrong_urls(url).items():
        caller = world.caller(REDIS_URL=wrong)
        answer = caller.ask(task="mark", args=["wrong"])(30)
        texts[what] = f"{answer.error}\n{caller.errors()}"
    world.server.cut()
    world.fine(within=10)
    texts |= {"the worker's log": worker.text(), "the scheduler's log": beat.text(), "`ps`": listed}
    if empty := [what for what, text in texts.items() if not text.strip()]:
        raise AssertionError(f"nothing is said by {', '.join(empty)}")
    hits = [what for what, text in texts.items() if any(spelling in text for spelling in SPELLINGS)]
    if hits:
        raise Finding(f"shown by {', '.join(hits)}")
    return f"shown by none of {len(texts)} commands, logs and errors"


def wrong_urls(url: str) -> dict[str, str]:
    """URLs with the password that let nobody in, by what is wrong with them."""
    rest, _, port = url.removesuffix("/0").rpartition(":")
    return {
        "the error of a wrong password": f"{rest.replace('@', 'x@')}:{port}/0",
        "the error of a port where nobody is": f"{rest}:1/0",
        "the error of a database that is not there": f"{rest}:{port}/99",
    }


def every_command(world: World) -> list[str]:
    """The commands that this kind has."""
    if not world.ours:
        return [f"celery -A stock {command}" for command in CELERYS]
    played = {command.replace(" -v", "") for command in OURS}
    known = {path for path, command in commands(command_line()) if not isinstance(command, click.Group)}
    missing = [path for path in known - SERVICES if not any(each.startswith(path) for each in played)]
    assert not missing, f"commands that are not played: {missing}"
    return [*OURS, *(f"celery -A core {command}" for command in CELERYS)]


@row(45, "the URL says `rediss://` and no more; the server's certificate is of its own making", pools=ONCE)
def certificate_unknown(world: World) -> str:
    proxy = TLSProxy(trustme.CA().issue_cert("127.0.0.1"), world.server.port)
    world.project.environment["REDIS_URL"] = f"rediss://127.0.0.1:{proxy.port}/0"
    # Celery's results ask for an option in the URL; what its broker and RedBeat do without is the question.
    results = {} if world.ours else {"TASK_RESULT_BACKEND_URL": world.server.url}
    try:
        processes = {
            "a worker": (world.worker(ready=False, **results), "serving " if world.ours else " ready."),
            "a scheduler": (scheduler(world, TICKS, ready="", **results), LEADS),
        }
        accepted = []
        if world.caller(**results).ask(task="mark", args=["tls"])(30).error is None:
            accepted.append("a call")
        for what, (process, ready) in processes.items():
            said = (ready, *REFUSED)
            until(lambda said=said, process=process: any(each in process.text() for each in said), 30, "says nothing")
            if ready in process.text():
                accepted.append(what)
            elif world.ours and not process.wait(10):
                raise Finding(f"{what} says so, with exit code 0")
            process.dismissed = True
    finally:
        proxy.close()
    if accepted:
        raise Finding(f"accepted by {' and '.join(accepted)}")
    return "refused by calls, worker and scheduler, with the reason"


#: What is said where a certificate is refused; RedBeat tries again for 30 s before it gives the reason.
REFUSED = ("certificate verify failed", "Retrying Redis connection")
#: The page that says which rights a user of Redis needs, and the project's name in it.
SECURITY, PROJECT = Path(__file__).parents[2] / "docs" / "security.md", "shop"
USER = "app"


def rights(project: str) -> list[str]:
    """The rules that the page on security gives, for the keys of this project."""
    (line,) = re.findall(r"^user \w+ on >\S+ (.*)$", SECURITY.read_text(), re.MULTILINE)
    return line.replace(f"~{PROJECT}:", f"~{project}:").split()


@row(46, "a user of Redis who has the rights in [security](security.md), and no others")
def few_rights(world: World) -> str:
    client = world.server.client
    client.execute_command("ACL", "SETUSER", USER, "on", f">{USER}-word", *rights("core" if world.ours else "stock"))
    url = f"redis://{USER}:{USER}-word@{world.server.where}/0"
    world.project.environment |= {"REDIS_URL": url, **of_plan(TICKS)}
    world.worker()
    beat = scheduler(world, TICKS, ready=LEADS)
    calls = [world.call("mark"), world.call("nap", 0.1, countdown=1), world.call("mark", priority=3)]
    world.cancel(world.call("mark", countdown=60))
    until(lambda: beat.sends() > 1, 10, "nothing is due")
    world.settle(calls)
    world.fine()
    asked = world.project.run("celery", "-A", "core" if world.ours else "stock", "inspect", "ping")
    if asked.returncode:
        raise Finding("`celery inspect ping` gets no answer")
    if world.ours:
        for command in ("check", "dead list", "scheduler list", "scheduler status --pidfile scheduler-1.pid"):
            ended = world.project.run("core", *command.split())
            if ended.returncode:
                raise Finding(f"`core {command}` exits {ended.returncode}")
    world.alive()
    denied = [entry[b"object"].decode() for entry in client.execute_command("ACL", "LOG")]
    with redis.Redis(port=world.server.port, username=USER, password=f"{USER}-word") as own:
        for command in (["FLUSHALL"], ["CONFIG", "GET", "*"], ["GET", "of-somebody-else"]):
            try:
                own.execute_command(*command)
            except redis.exceptions.NoPermissionError:
                continue
            raise Finding(f"{command[0]} is not refused")
    if denied:
        raise Finding(f"works, after it was refused {', '.join(sorted(set(denied)))}")
    return "works; `FLUSHALL`, `CONFIG` and other keys are refused"
