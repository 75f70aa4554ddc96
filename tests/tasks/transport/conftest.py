"""What the tests of the transport talk to: a Redis of their own, into which a real Celery application sends calls.

Every test runs twice: without a global key prefix, and with one, as a user whom Redis refuses every other key.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from celery import Celery
from redis import Redis
from support import redis_server

from core.tasks.transport.scripts import script

SEPARATOR = "\x06\x16"  # kombu's, between a queue and its priority
Send = Callable[..., bytes]


class Call(NamedTuple):
    """One call that was taken."""

    list: str
    message: bytes
    record: str
    cancelled: bool

    @property
    def id(self) -> str:
        return str(json.loads(self.message)["headers"]["id"])


class Taken(NamedTuple):
    """What one take has answered."""

    more: bool
    seconds: float | None
    calls: list[Call]

    @property
    def ids(self) -> list[str]:
        return [call.id for call in self.calls]


class Worker:
    """A worker as Redis knows it: the scripts that it runs."""

    def __init__(self, client: Any, prefix: str, name: str) -> None:
        self.client, self.prefix = client, prefix
        self.name = f"host-1-{name}"
        self.key = f"{prefix}core-held-{self.name}"
        self.connection, self._takes = 0, 0
        self.adopt()

    def run(self, name: str, keys: list[str], words: list[Any]) -> Any:
        """Run a script."""
        return script(self.client, name)(keys=keys, args=words)

    def take(self, room: int = 10, lists: tuple[str, ...] = ("default",), *, queues: int = 0, look: bool = True,
             connection: int = 0, cancellations: bool = True) -> Taken:  # fmt: skip
        """Take calls; without *queues* all the lists are of one priority."""
        connection = connection or self.connection
        self._takes += 1
        keys = [self.key, *(self.prefix + name for name in ("core-delayed", "core-delayed-calls", *lists))]
        marks = f"{self.prefix}core-cancelled-" if cancellations else ""
        found = self.run("take", keys, [room, queues or len(lists), connection, f"{connection}.{self._takes}",
                                        int(look), marks, self.prefix])  # fmt: skip
        rows = [found[at : at + 4] for at in range(2, len(found), 4)]
        calls = [Call(lists[number - 1], raw, record.decode(), bool(mark)) for number, raw, record, mark in rows]
        return Taken(found[0] == 1, float(found[1]) if found[1] else None, calls)

    def take_all(self, **options: Any) -> list[Call]:
        """Take whatever there is: where several workers could take, each take is a part of it."""
        found = self.take(1000, **options)
        return found.calls + (self.take_all(**options) if found.more else [])

    def end(self, call: Call, verdict: str, result: tuple[str, int, str] = ("", 0, ""), **details: Any) -> list[Any]:
        """How a call ends, in the words of the script; *details* go over what a worker says."""
        said = ""
        if verdict not in ("done", "back"):
            usual = {"task": "t.work", "queue": call.list.partition(SEPARATOR)[0], "reason": f"it was {verdict}",
                     "keep": True, "record": f"{self.name}/{call.record}", "hold": 3600.0, "pause": 5.0}  # fmt: skip
            said = json.dumps({**usual, **({} if "id" in details else {"id": call.id}), **details})
        return [call.record, verdict, *result, said]

    def finish(self, *ends: list[Any]) -> list[str]:
        """End calls in one step; the answer to each."""
        words = [word for end in ends for word in end]
        return [word.decode() for word in self.run("finish", [self.key], [self.prefix, *words])]

    def store(self, result: tuple[str, int, str], record: str = "") -> bool:
        """Store one result as a pool process does."""
        key, ttl, text = result
        return bool(self.run("result", [key, self.key], [ttl, text, record]))

    def lease(
        self, seconds: float = 60, waiting: tuple[str, ...] = (), looks: bool = True
    ) -> list[tuple[str, int, list[bytes]]]:
        """Renew the lease: who was lost, with how many calls that went back, and those that were set aside."""
        records = f" {' '.join(waiting)} " if waiting else ""
        words = [self.name, seconds, self.prefix, records, int(looks)]
        found = self.run("lease", [f"{self.prefix}core-workers", self.key], words)
        return [(name.decode(), back, aside) for name, back, aside in found[1:]]

    def adopt(self, *kept: str, seconds: float = 60) -> int:
        """Say over a new connection what is still held; how many calls went back."""
        if seconds:  # else it ends, and has no connection any more
            self.connection, self._takes = self.connection + 1, 0
        words = [self.name, seconds, self.connection if seconds else 0, self.prefix, *kept]
        return int(self.run("adopt", [f"{self.prefix}core-workers", self.key], words))

    def dies(self, ago: float = 1) -> None:
        """Its lease has ended so many seconds ago."""
        self.client.zadd(f"{self.prefix}core-workers", {self.name: self.client.time()[0] - ago})

    def holds(self) -> dict[str, bytes]:
        """The calls that Redis has recorded as its own."""
        found = self.client.hgetall(self.key).items()
        return {record.decode(): call for record, call in found if record not in (b"connection", b"waiting")}


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with redis_server() as (url, _), Redis.from_url(url) as admin:
        admin.execute_command("ACL", "SETUSER", "prefixed", "on", "nopass", "~app:*", "&app:*", "+@all")
        yield url


@pytest.fixture(scope="session")
def admin(server: str) -> Iterator["Redis[bytes]"]:
    with Redis.from_url(server) as client:
        yield client


@pytest.fixture(scope="session", params=["", "app:"], ids=["bare", "prefixed"])
def prefix(request: pytest.FixtureRequest) -> str:
    """kombu's `global_keyprefix`."""
    return str(request.param)


@pytest.fixture(scope="session")
def _user(server: str, prefix: str) -> Iterator["Redis[bytes]"]:
    with Redis.from_url(server, **({"username": "prefixed", "password": "any"} if prefix else {})) as client:
        yield client


@pytest.fixture
def redis(admin: "Redis[bytes]", _user: "Redis[bytes]") -> "Redis[bytes]":
    """A client on an empty server, which sees nothing without the prefix."""
    admin.flushall()
    return _user


@pytest.fixture(scope="session")
def app(server: str, prefix: str) -> Iterator[Celery]:
    """A stock Celery application with this server for calls and results."""
    with Celery("callers", broker=server, backend=server, set_as_current=False) as made:
        made.conf.broker_transport_options = made.conf.result_backend_transport_options = {"global_keyprefix": prefix}
        yield made


@pytest.fixture(scope="session")
def _producer(app: Celery) -> Iterator[Any]:
    with app.connection_for_write() as connection:
        yield app.amqp.Producer(connection, auto_declare=False)


@pytest.fixture
def send(app: Celery, _producer: Any, redis: "Redis[bytes]", prefix: str) -> Send:
    """Sends a call as Celery does, and returns its message as it is in the list."""

    def sent(
        task_id: str, queue: str = "default", name: str = "t.work", args: tuple[Any, ...] = (), **options: Any
    ) -> bytes:
        channel = _producer.channel
        app.send_task(name, args, task_id=task_id, queue=queue, producer=_producer, ignore_result=True, **options)
        return redis.lindex(prefix + channel._q_for_pri(queue, options.get("priority") or 0), 0) or b""

    return sent


@pytest.fixture
def waiting(redis: "Redis[bytes]", prefix: str) -> Callable[..., list[str]]:
    """The ids in a list, in the order in which they leave it."""
    return lambda name="default": [json.loads(raw)["headers"]["id"] for raw in redis.lrange(prefix + name, 0, -1)[::-1]]


@pytest.fixture
def make_worker(redis: "Redis[bytes]", prefix: str) -> Callable[[str], Worker]:
    return lambda name: Worker(redis, prefix, name)


@pytest.fixture
def again() -> Callable[[bytes], bytes]:
    """A message that is given out again: it says so, and nothing else of it has changed."""
    return lambda message: message.replace(b'"delivery_info": {', b'"delivery_info": {"redelivered": true, ')


@pytest.fixture
def one(make_worker: Callable[[str], Worker]) -> Worker:
    return make_worker("00000001")


@pytest.fixture
def other(make_worker: Callable[[str], Worker]) -> Worker:
    return make_worker("00000002")


@pytest.fixture
def commands(admin: "Redis[bytes]") -> Callable[[Callable[[], Any]], int]:
    """How many commands the server runs for something, those inside scripts included."""

    def count(work: Callable[[], Any]) -> int:
        admin.config_resetstat()
        work()
        stats = admin.info("commandstats")
        return sum(
            stat["calls"] for name, stat in stats.items() if name not in ("cmdstat_info", "cmdstat_config|resetstat")
        )

    return count
