"""A project with Celery's own tasks, a worker for it, and a program of plain Celery that calls and controls it."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery, states
from celery.backends.redis import RedisBackend
from redis import Redis
from support import Process, Project, held, project, wait_until

SETTINGS = "from core.config import Settings\n\n\nclass AppSettings(Settings): ...\n"
HERE = Path(__file__).parent


class Backend(RedisBackend):
    """Celery's, whose handles of calls do not speak with a server that is gone when they are forgotten."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Subscribe to nothing."""

    def remove_pending_result(self, result: Any) -> None:
        """There is nothing to forget."""


class Call:
    """A call, and what stands of it in Redis."""

    def __init__(self, redis: Any, id: str) -> None:
        self._redis, self.id = redis, id

    def meta(self) -> dict[str, Any]:
        """What is stored of it."""
        return dict(json.loads(self._redis.get(f"celery-task-meta-{self.id}") or '{"status": "PENDING"}'))

    @property
    def state(self) -> str:
        """Celery's word for how it stands."""
        return str(self.meta()["status"])

    def ended(self, timeout: float = 20) -> tuple[str, Any]:
        """Wait for its end: the state, and the result or the name of the error."""
        wait_until(lambda: self.state in states.READY_STATES, timeout, f"{self.id} has ended")
        meta = self.meta()
        return meta["status"], meta["result"] if meta["status"] == states.SUCCESS else meta["result"]["exc_type"]

    def get(self, timeout: float = 20) -> Any:
        """Wait for its result, which has to be there."""
        state, result = self.ended(timeout)
        assert state == states.SUCCESS, f"{self.id}: {state}: {self.meta()['result']}"
        return result


class World:
    """What a test needs: the worker on one side, stock Celery on the other."""

    def __init__(self, made: Project, tasks: str) -> None:
        made.write("src/settings.py", SETTINGS)
        made.write("src/tasks.py", (HERE / tasks).read_text())
        self.project = made
        self.file = made.root / "marks"
        made.environment["MARKS"] = str(self.file)
        self.socket = made.root / ".core" / "broker.sock"
        self.app = Celery(
            "stock", broker=f"redis+socket://{self.socket}", set_as_current=False,
            backend=f"stock.world:Backend+socket://{self.socket}",
        )  # fmt: skip
        self.app.conf.task_default_queue = "default"
        self.redis = Redis(unix_socket_path=str(self.socket))
        self.workers: list[Process] = []
        self._listening: set[str] = set()

    def start(self, *options: str, **environment: str) -> Process:
        """Start a worker that sends events, as Flower wants it."""
        worker = self.project.worker(*options, **environment)
        self.workers.append(worker)
        return worker

    @property
    def worker(self) -> Process:
        """The one that was started last."""
        return self.workers[-1]

    @property
    def node(self) -> str:
        """What Celery calls it."""
        return f"worker-{self.worker.pid}@{socket.gethostname()}"

    # Calls

    def call(self, name: str, *args: Any, **options: Any) -> Call:
        """Call a task as another program with stock Celery does, which has nothing of ours."""
        return Call(self.redis, self.app.send_task(f"src.tasks.{name}", args=args, **options).id)

    def sign(self, name: str, *args: Any, **options: Any) -> Any:
        """A signature of a task."""
        return self.app.signature(f"src.tasks.{name}", args=args, **options)

    def running(self, name: str, *args: Any, **options: Any) -> Call:
        """Call a task that marks its beginning, and wait until it has begun."""
        result = self.call(name, *args, **options)
        wait_until(lambda: self.marks(result, "begun"), 20, f"{name} has begun")
        return result

    def works(self) -> None:
        """The worker runs calls of every kind."""
        calls = [self.call(name, i, 1) for i in range(4) for name in ("add", "plain_add")]
        assert [call.get(timeout=20) for call in calls] == [i + 1 for i in range(4) for _ in range(2)]

    # What became of them

    def all_marks(self) -> list[dict[str, Any]]:
        """Everything that was written down in the worker."""
        lines = self.file.read_text().split("\n")[:-1] if self.file.exists() else []
        return [json.loads(line) for line in lines]

    def marks(self, call: Call | str, *only: str) -> list[dict[str, Any]]:
        """What was written down of one call."""
        id = call if isinstance(call, str) else call.id
        return [mark for mark in self.all_marks() if mark["id"] == id and (not only or mark["what"] in only)]

    def names(self, call: Call | str, *only: str) -> list[str]:
        """The same without its details."""
        return [mark["what"] for mark in self.marks(call, *only)]

    def gone(self, *calls: Call) -> None:
        """Wait until no message of these calls waits, and none is held."""
        ids = [call.id.encode() for call in calls]

        def left() -> bool:
            messages = [*self.redis.lrange("default", 0, -1), *held(self.redis), *self.redis.hvals("unacked")]
            return any(id in message for id in ids for message in messages)

        wait_until(lambda: not left(), 10, "nothing waits and nothing is held")

    # Control

    def ask(self, command: str, **arguments: Any) -> Any:
        """What the worker answers to a command of Celery's control."""
        if self.node not in self._listening:  # Celery begins to listen a moment after its worker is ready
            wait_until(lambda: self.app.control.ping([self.node], timeout=1, limit=1), 20, "it listens to commands")
            self._listening.add(self.node)
        answers = self.app.control.broadcast(
            command, arguments=arguments, destination=[self.node], reply=True, timeout=20, limit=1
        )
        assert answers, f"no answer to {command}:\n{self.worker.text()[-2000:]}"
        return answers[0][self.node]

    def close(self) -> None:
        """Hang up."""
        self.app.close()
        self.redis.close()


@contextmanager
def world(tasks: str = "tasks.py") -> Iterator[World]:
    """A project of its own, gone at the end with its workers."""
    with project(None) as made:
        world = World(made, tasks)
        try:
            yield world
        finally:
            world.close()
