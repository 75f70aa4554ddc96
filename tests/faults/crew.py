"""What keeps a world busy while faults are played: workers that are started again, and calls at a steady rate."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from faults.callers import Answer
from faults.rows import Finding
from faults.world import Call, Worker, World
from support import wait_until


class Keeper:
    """What starts workers again when they end, as a process supervisor does."""

    def __init__(self, world: World, count: int, *, concurrency: int = 2) -> None:
        self.world, self.count, self.concurrency = world, count, concurrency
        self.lock = threading.Lock()
        self.kept: list[Worker] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "Keeper":
        self.world.supervised = True
        self._fill(ready=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.world.supervised = False

    def _fill(self, ready: bool) -> None:
        with self.lock:
            self.kept = [worker for worker in self.kept if worker.ended() is None]
            while len(self.kept) < self.count:
                self.kept.append(self.world.worker(concurrency=self.concurrency, ready=ready))

    def _keep(self) -> None:
        while not self._over.wait(0.1):
            self._fill(ready=False)

    def ready(self) -> list[Worker]:
        """The workers that take calls at this moment, and were not told to stop."""
        said = "serving " if self.world.ours else " ready."
        with self.lock:
            alive = [worker for worker in self.kept if worker.ended() is None and not worker.dismissed]
        return [worker for worker in alive if said in worker.text()]

    def one(self, choose: Callable[[list[Worker]], Worker] = lambda found: found[0]) -> Worker:
        """A worker that takes calls, when there is one."""
        return choose(wait_until(self.ready, 60, "a worker is ready"))


class Load:
    """Calls at a steady rate, made from a thread while faults are played."""

    def __init__(self, world: World, count: int, rate: float, task: str, *args: Any) -> None:
        self.world = world
        self._pending: list[tuple[str, Callable[[float], Answer]]] = []
        self._thread = threading.Thread(target=self._send, args=(count, rate, task, args), daemon=True)
        self._thread.start()

    def _send(self, count: int, rate: float, task: str, args: tuple[Any, ...]) -> None:
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            self._pending.append(self.world.begin(task, *args))

    @property
    def sending(self) -> bool:
        return self._thread.is_alive()

    def sent(self) -> int:
        return len(self._pending)

    def answers(self, within: float = 60) -> Iterator[tuple[str, Answer]]:
        """What became of every call, when all are made."""
        self._thread.join(within)
        if self._thread.is_alive():
            raise Finding("calls cannot be made")
        for key, answer in self._pending:
            yield key, answer(within)

    def accepted(self) -> list[Call]:
        """The calls whose `delay()` returned."""
        return [Call(answer.id, key) for key, answer in self.answers() if answer.error is None]
