"""Workers that stand still while calls are queued for them, and how long they take when they go on."""

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from support import Process, wait_until

#: What a worker's hash of held calls names beside calls.
NO_CALLS = {b"connection", b"waiting"}
RESULTS = "celery-task-meta-*"


class Proxy:
    """Passes bytes between a port of its own and the server, each way half of a round trip late."""

    def __init__(self, port: int, delay: float) -> None:
        self._target, self._delay = port, delay / 2
        self._loop = asyncio.new_event_loop()
        self.port = 0
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        self._loop.run_until_complete(serve())
        self._loop.run_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        with suppress(ConnectionError):  # somebody was killed
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self._loop.call_later(self._delay, writer.write, data)
        self._loop.call_later(self._delay, writer.close)


class Crew:
    """Workers that share their lists."""

    def __init__(self, client: Any, queue: str, *workers: Process, more_queues: tuple[str, ...] = ()) -> None:
        """Args:
        client: Of their database, which nobody else uses meanwhile.
        queue: The only one that they serve, or the first.
        """
        self.client, self.queue, self.workers = client, queue, workers
        self.queues = (queue, *more_queues)

    def stand_still(self) -> None:
        """Stop all their processes, where they are."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let them run here alone."""
        self.go_on()
        try:
            yield
        finally:
            self.stand_still()

    def memory(self) -> float:
        """MiB of all their processes; what they share with each other counts once."""
        return sum(_kib(pid) for pid in self.pids()) / 1024

    def seconds(self) -> float:
        """Processor time that their processes have taken, to a hundredth."""
        return processor(self.pids())

    def kill(self) -> None:
        """Kill them all, and wait for their end: a connection that is still open may take calls."""
        for worker in self.workers:
            worker.kill()
        self._signal(signal.SIGKILL)
        wait_until(lambda: not [*self.pids()], 10, "they are gone")

    def pids(self) -> Iterator[int]:
        """Their processes, in whichever groups they have put themselves."""
        return of_sessions(worker.pid for worker in self.workers)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def of_sessions(leaders: Iterable[int]) -> Iterator[int]:
    """The processes of these sessions."""
    sessions = {str(leader) for leader in leaders}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if session in sessions and state != "Z":
                yield int(stat.parent.name)


def processor(pids: Iterable[int]) -> float:
    """Processor time that processes have taken, with that of their children that have ended, to a hundredth."""
    return sum(_ticks(pid) for pid in pids) / os.sysconf("SC_CLK_TCK")


def _kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _ticks(pid: int) -> int:
    try:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    except OSError:
        return 0  # it has just ended


@dataclass(frozen=True)
class Drained:
    """What one drain took, for each call."""

    #: Seconds, those of the workers' processors, and those of the server's.
    wall: float
    processor: float
    server: float
    #: Commands that the server has run, and round trips.
    commands: float
    trips: float


def drain(crew: Crew, fill: Callable[[], object], calls: int) -> Drained:
    """Queue calls for workers that stand still, and let them go on until all have succeeded.

    Args:
        fill: Queues that many calls.
    """
    client = crew.client
    held = [f"core-held-{worker.decode()}" for worker in client.zrange("core-workers", 0, -1)]
    looks, ended, busy, after = 0, 0.0, 0.0, counted(client)

    def over() -> bool:
        nonlocal looks, ended, after, busy
        looks, ended = looks + 1, time.perf_counter()
        with client.pipeline(transaction=False) as asked:
            asked.hlen("unacked")
            for queue in crew.queues:
                asked.llen(queue)
            for key in held:
                asked.hkeys(key)
            found = asked.execute()
        lists = 1 + len(crew.queues)
        if any(found[:lists]) or set().union(*found[lists:]) - NO_CALLS:
            return False
        after, busy = counted(client), crew.seconds()
        return succeeded(client) >= calls

    fill()
    before, idle, began = counted(client), crew.seconds(), time.perf_counter()
    with crew.awake():
        try:
            wait_until(over, 60 + calls / 1000, "all calls have succeeded")
        except AssertionError as error:
            left = {key.decode(): client.hlen(key) for key in client.keys("core-held-*")}
            said = "".join(worker.text()[-3000:] for worker in crew.workers)
            waiting = [client.llen(queue) for queue in crew.queues]
            raise AssertionError(f"{error}: {waiting} wait, {Counter(states(client))}, held {left}\n{said}") from None
    forget(client)
    # What was asked here is not the workers' doing.
    commands = after.commands - before.commands - looks * (1 + len(crew.queues) + len(held))
    trips = after.reads - before.reads - looks - READS
    server = after.seconds - before.seconds
    return Drained(*(figure / calls for figure in (ended - began, busy - idle, server, commands, trips)))


def states(client: Any) -> list[str]:
    """The states that are stored of calls."""
    keys = client.keys(RESULTS)
    stored = client.mget(keys) if keys else []
    return [meta.partition(b'"status": "')[2].partition(b'"')[0].decode() for meta in stored if meta]


def succeeded(client: Any) -> int:
    """How many calls have their result."""
    return states(client).count("SUCCESS")


def forget(client: Any) -> None:
    """Remove all results."""
    if keys := client.keys(RESULTS):
        client.unlink(*keys)


class Counted(NamedTuple):
    """What a server has done."""

    #: Commands that it has run, those inside scripts included; reads that it has made; its processor's seconds.
    commands: int
    reads: int
    seconds: float


#: Reads that `counted` takes.
READS = 3


def counted(client: Any) -> Counted:
    """What the server has done so far."""
    commands, cpu = client.info("commandstats"), client.info("cpu")
    total = sum(stats["calls"] for name, stats in commands.items() if not name.startswith("cmdstat_info"))
    reads = client.info("stats")["total_reads_processed"]
    return Counted(total, reads, cpu["used_cpu_user"] + cpu["used_cpu_sys"])
