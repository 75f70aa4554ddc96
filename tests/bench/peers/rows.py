"""Who is measured: each row's worker as it is started, and what it needs installed.

A word in braces is filled in by the harness. The reasons for the settings are in the adapters.
"""

from dataclasses import dataclass
from pathlib import Path

#: Where this project is.
PROJECT = str(Path(__file__).parents[3])
HERE = "bench.peers.adapters"


@dataclass(frozen=True)
class Peer:
    """A library, with what it needs and what it does for its rows."""

    title: str
    #: What pip installs.
    requires: tuple[str, ...]
    #: Whose versions the page names.
    versions: tuple[str, ...]
    #: What becomes of a call whose worker is killed.
    crash: str
    #: How an idle worker and whoever waits for a result hear of it.
    waits: str
    #: What it does not do for a call that others do.
    lacks: str


@dataclass(frozen=True)
class Row:
    """One way to run a peer.

    A worker is a command, or several with ` + ` between them. It may be started anew for some workloads: for calls that
    wait (`io`), to measure latency (`latency`), for delayed calls (`later`). Each is a command and a variant that the
    adapter reads; without a command it is the same as for the rest.
    """

    name: str
    peer: str
    worker: str
    settings: str
    #: Calls that wait at once in all its processes, for the size of that workload.
    at_once: int
    variant: str = ""
    io: tuple[str, str] = ("", "")
    latency: tuple[str, str] = ("", "")
    later: tuple[str, str] = ("", "")
    #: Whether it takes part in the workloads that are measured once: 100,000 calls, 10,000 delayed ones.
    backlog: bool = True
    delayed: bool = True


PEERS = {
    "ours": Peer(
        "core.tasks", ("--editable", PROJECT, "uvloop"), ("core-tasks", "celery", "kombu", "redis", "uvloop"),
        "runs again, when its lease of 60 s has ended", "worker blocks in BLMOVE; caller is told by PUBLISH",
        "–",
    ),
    "celery": Peer(
        "Celery", ("celery[redis]", "hiredis"), ("celery", "kombu", "redis"),
        "runs again after the visibility timeout, an hour; with *fast* it is lost",
        "worker blocks in BRPOP; caller is told by PUBLISH",
        "arguments checked by number only; time limits with prefork only",
    ),
    "taskiq": Peer(
        "taskiq", ("taskiq", "taskiq-redis", "uvloop", "hiredis"), ("taskiq", "taskiq-redis", "redis", "uvloop"),
        "*list*: lost; *stream*: runs again after 10 minutes",
        "worker blocks in BRPOP or XREADGROUP; caller polls, each 5 ms here (0.2 s by default)",
        "no states, no cancelling; arguments checked in the worker; *stream* keeps every message for ever",
    ),
    "dramatiq": Peer(
        "dramatiq", ("dramatiq[redis]", "hiredis"), ("dramatiq", "redis"),
        "runs again after a minute without heartbeats",
        "worker polls, each 10 ms here (up to 1 s by default); caller blocks in BRPOPLPUSH",
        "no states, no cancelling, no argument checks",
    ),
    "huey": Peer(
        "huey", ("huey", "redis", "hiredis"), ("huey", "redis"),
        "**lost**", "worker blocks in BRPOP; caller blocks in BLPOP (polls by default)",
        "no acknowledgement, no states, no argument checks",
    ),
    "saq": Peer(
        "saq", ("saq[hiredis]", "typing_extensions", "uvloop"), ("saq", "redis", "uvloop"),
        "counts as aborted, unless `retries` says otherwise", "worker blocks in BLMOVE; caller is told by PUBLISH",
        "no argument checks",
    ),
    "streaq": Peer(
        "streaq", ("streaq", "uvloop"), ("streaq", "coredis", "uvloop"),
        "runs again after a minute", "worker blocks in XREADGROUP; caller is told by PUBLISH",
        "no argument checks",
    ),
    "arq": Peer(
        "arq", ("arq", "hiredis", "uvloop"), ("arq", "redis", "uvloop"),
        "runs again when its key expires, after 310 s",
        "worker polls, each 10 ms here (0.5 s by default); caller polls, each 5 ms here (0.5 s by default)",
        "no argument checks",
    ),
    "rq": Peer(
        "rq", ("rq", "hiredis"), ("rq", "redis"),
        "counts as failed, unless `retry` says otherwise", "worker blocks in BLMOVE; caller blocks in XREAD",
        "no argument checks",
    ),
    "limit": Peer(
        "the limit", ("redis[hiredis]", "uvloop"), ("redis", "hiredis", "uvloop"),
        "is recorded, but nobody takes it over", "worker blocks in XREADGROUP; caller is told by PUBLISH",
        "no retries, states, time limits, argument checks, delayed calls: it is no library",
    ),
}  # fmt: skip

CELERY = f"celery -A {HERE}.celery worker -l warning"
LEAN = "--without-gossip --without-mingle --without-heartbeat"
HUEY = f"huey_consumer {HERE}.huey.huey -q"
TASKIQ = f"taskiq worker --log-level WARNING -w 2 {HERE}.taskiq:broker"
TASKIQ_SCHEDULER = f"taskiq scheduler --log-level WARNING --update-interval 1 {HERE}.taskiq:scheduler"
SAQ = f"saq {HERE}.saq.settings --workers 2"
STREAQ = f"streaq run {HERE}.streaq:worker --workers 2"
ARQ = f"arq {HERE}.arq.Worker --custom-log-dict {HERE}.arq.quiet"
DRAMATIQ = f"dramatiq {HERE}.dramatiq -p 2"
RQ = "rq worker-pool -q -n 2 -u {url}"

ROWS = [
    Row(
        "core.tasks", "ours", "core runworker --loglevel warning",
        "as it comes, two processes, 100 calls at once; for calls that wait `--concurrency 1000`; log lines off",
        1000, io=("core runworker --loglevel warning --concurrency 1000", ""),
    ),
    Row(
        "core.tasks with log lines", "ours", "core runworker",
        "the same with a log line for each call, as it comes",
        1000, io=("core runworker --concurrency 1000", ""), backlog=False, delayed=False,
    ),
    Row(
        "Celery prefork", "celery", f"{CELERY} -P prefork -c 2",
        "`-c 2`, `task_acks_late`, prefetch multiplier 1", 2, backlog=False,
    ),
    Row(
        "Celery prefork fast", "celery", f"{CELERY} -P prefork -c 2 {LEAN}",
        "`-c 2`, acknowledged early, prefetch multiplier 64, without gossip, mingle and heartbeat",
        2, variant="fast", delayed=False,
    ),
    Row(
        "Celery threads", "celery", f"{CELERY} -P threads -c 100 {LEAN}",
        "`-c 100`, `task_acks_late`, prefetch multiplier 1, without gossip, mingle and heartbeat",
        100, backlog=False, delayed=False,
    ),
    Row(
        "Celery threads × 2", "celery",
        " + ".join(f"{CELERY} -P threads -c 100 {LEAN} -n {number}@here" for number in (1, 2)),
        "two of those", 200,
    ),
    Row(
        "taskiq list", "taskiq", TASKIQ, "two processes, 100 calls each; for calls that wait 500 each",
        1000, variant="list", io=(f"{TASKIQ} --max-async-tasks 500", "list"), backlog=False, delayed=False,
    ),
    Row(
        "taskiq stream", "taskiq", TASKIQ, "two processes, 100 calls each; for calls that wait 500 each",
        1000, variant="stream", io=(f"{TASKIQ} --max-async-tasks 500", "stream"),
        later=(f"{TASKIQ} + {TASKIQ_SCHEDULER}", "stream"),
    ),
    Row(
        "dramatiq", "dramatiq", f"{DRAMATIQ} -t 8", "two processes, 8 threads each; for calls that wait 100 each",
        200, io=(f"{DRAMATIQ} -t 100", ""),
    ),
    Row(
        "huey processes", "huey", f"{HUEY} -k process -w 2", "`-k process -w 2`; `notify_result` for latency",
        2, latency=(f"{HUEY} -k process -w 2", "notify"),
    ),
    Row(
        "huey threads", "huey", f"{HUEY} -k thread -w 100", "`-k thread -w 100`; `notify_result` for latency",
        100, latency=(f"{HUEY} -k thread -w 100", "notify"), backlog=False, delayed=False,
    ),
    Row(
        "saq", "saq", SAQ, "two processes, concurrency 20 each; for calls that wait 200 each",
        400, io=(SAQ, "io"),
    ),
    Row(
        "streaq", "streaq", STREAQ, "two processes, concurrency 32 each; for calls that wait 300 each",
        600, io=(STREAQ, "io"),
    ),
    Row(
        "arq", "arq", f"{ARQ} + {ARQ}", "two workers, `max_jobs` 100 each; for calls that wait 300 each",
        600, io=(f"{ARQ} + {ARQ}", "io"),
    ),
    Row(
        "rq", "rq", RQ, "`worker-pool -n 2`, a fork for each job", 2, backlog=False, delayed=False,
    ),
    Row(
        "rq SimpleWorker", "rq", f"{RQ} -w rq.worker.SimpleWorker", "the same without forks",
        2,
    ),
    Row(
        "limit", "limit", f"python -m {HERE}.limit", "two processes, up to 100 calls a read, everything batched",
        2000, delayed=False,
    ),
]  # fmt: skip
