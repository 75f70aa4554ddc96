"""A RabbitMQ of the tests' own: on loopback, without the system's service, and gone at the end."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import temporary_directory, wait_until

PASSWORD = "s3cr3t"
CONFIGURATION = """
listeners.tcp.1 = 127.0.0.1:{port}
default_user = shop
default_pass = {password}
default_vhost = shop
log.console = false
"""


@dataclass
class RabbitMQ:
    """A broker that answers."""

    url: str
    port: int
    environment: dict[str, str]

    def control(self, *command: str) -> None:
        """Run rabbitmqctl."""
        subprocess.run([program("rabbitmqctl"), *command], env=self.environment, check=True, capture_output=True)


def program(name: str) -> str:
    """A program of RabbitMQ. Debian's own on the PATH changes the user, and wants to be root for that."""
    behind = Path("/usr/lib/rabbitmq/bin") / name
    found = str(behind) if behind.exists() else shutil.which(name)
    assert found
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def server() -> Iterator[RabbitMQ]:
    """A broker with the virtual host `shop` and a user of that name."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(temporary_directory("core-rabbitmq-")))
        port, names, distribution = free_port(), free_port(), free_port()
        (home / "rabbitmq.conf").write_text(CONFIGURATION.format(port=port, password=PASSWORD))
        for empty in ("environment.conf", "advanced.config"):
            (home / empty).write_text("" if empty.endswith(".conf") else "[].")
        (home / "plugins").write_text("[].")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(names),
            "RABBITMQ_NODENAME": f"core-test-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution),
            # Without it the nodes' own port, by which rabbitmqctl comes, listens on every address.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "environment.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(home),
        }
        epmd = shutil.which("epmd") or "epmd"
        _start(stack, [epmd, "-address", "127.0.0.1", "-port", str(names)], environment, home)
        wait_until(lambda: listens(names), 10, "the name server of Erlang listens")
        process = _start(stack, [program("rabbitmq-server")], environment, home)

        def answers() -> bool:
            assert process.poll() is None, (home / "output").read_text()
            return listens(port)

        wait_until(answers, 60, "RabbitMQ listens")
        made = RabbitMQ(f"amqp://shop:{PASSWORD}@127.0.0.1:{port}/shop", port, environment)
        made.control("await_startup")
        yield made


def _start(stack: ExitStack, command: list[str], environment: dict[str, str], home: Path) -> "subprocess.Popen[bytes]":
    with open(home / "output", "ab") as sink:
        process = subprocess.Popen(command, env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=sink,
                                   stderr=sink)  # fmt: skip

    def stop() -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)
    return process
