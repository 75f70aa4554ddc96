"""A Redis of the suite's own that can be killed, frozen, filled, demoted and started again on its data."""

import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import redis
from support import valkey_binary, wait_until

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class Server:
    """One Redis on a loopback port. What it acknowledged is on disk, unless its options say otherwise."""

    def __init__(self, directory: Path, *options: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.directory = directory
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.options = options
        self.client = redis.Redis(port=self.port, socket_timeout=10, decode_responses=False)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def where(self) -> str:
        """Host and port, as messages name them."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it on the data that it had, and wait until it has read them."""
        self.process = subprocess.Popen(
            [valkey_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory),
             "--save", "", *DURABLE, *self.options],
            cwd=self.directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, restore_signals=False,  # SIGXFSZ stays ignored: see `limited_disk`
        )  # fmt: skip

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, "the server did not start"
            try:
                return bool(self.client.ping())
            except redis.RedisError:
                return False

        wait_until(ready, 20, "the suite's Redis answers")

    def ask_for(self, password: str) -> str:
        """Ask for a password from now on; the URL that has it."""
        self.client.config_set("requirepass", password)
        self.client.close()
        self.client = redis.Redis(port=self.port, password=password, socket_timeout=10, decode_responses=False)
        self.url = f"redis://:{quote(password, safe='')}@{self.where}/0"
        return self.url

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()
        self.client.close()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It accepts connections and answers nothing."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    @contextmanager
    def demoted(self) -> Iterator[None]:
        """It is the replica of a master that is not there: readable, not writable."""
        self.client.replicaof("127.0.0.1", "1")
        try:
            yield
        finally:
            self.client.replicaof("NO", "ONE")

    @contextmanager
    def full(self) -> Iterator[None]:
        """It has no memory left, and throws nothing away."""
        self.client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self.client.config_set("maxmemory", 0)

    @contextmanager
    def limited_disk(self) -> Iterator[None]:
        """Its append-only file cannot grow. Only with appendfsync everysec; with always, Redis ends itself then."""
        assert self.process is not None
        size = max(file.stat().st_size for file in self.directory.rglob("*.aof"))
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (hard, hard))

    def cut(self) -> None:
        """Cut every connection but the one that asks."""
        for kind in ("pubsub", "normal"):
            self.client.client_kill_filter(_type=kind, skipme=True)
