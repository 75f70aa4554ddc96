"""How a worker takes calls out of its lists.

A connection waits for a list to fill without taking anything from it: `BLMOVE` sets a message down where the next
take of any worker begins, so that each message wakes one worker, and none is anybody's yet. Where a worker waits for
one list, the script that takes is written behind it on the same connection, so that waking and taking are one round
trip. Where there are several, each has a connection that waits, and the script goes when one of them answers.
"""

import socket
import time
from contextlib import suppress
from queue import Empty
from typing import Any

from celery.worker import state
from redis.exceptions import ConnectionError, NoScriptError, RedisError

from core.tasks import signing
from core.tasks.envelope import UNIQUE
from core.tasks.transport import message
from core.tasks.transport.held import Held, Holder, Loan
from core.tasks.transport.scripts import script

#: Calls that one script takes at most, however many may run at once.
MOST = 500
#: Seconds that a connection waits for its list. Lists of priorities that nobody has used yet are looked at as often,
#: and what was set down for a worker that is gone.
WAIT = 1.0
#: Seconds between looks for calls whose time has come, while there is plenty to take.
LOOK = 0.2


class _Bell:
    """A connection that waits for one list, where there is more than one."""

    def __init__(self, connection: Any, prefix: str, name: str, hub: Any) -> None:
        self.connection, self._prefix, self.name, self._hub = connection, prefix, name, hub
        #: The socket that an answer will come by, and when it was asked for.
        self._fd: int | None = None
        self._since = 0.0

    def wait(self, rung: Any, patience: float) -> None:
        """Ask to be told when the list has a message; *rung* is called with this bell at the answer."""
        now = time.monotonic()
        if self._fd is not None and now - self._since > WAIT + patience:
            self.close()  # the connection is dead, and nobody has said so
        if self._fd is None:
            self.connection.send_command(*_awaiting(self._prefix, self.name, WAIT))
            self._fd, self._since = self.connection._sock.fileno(), now
            self._hub.add_reader(self._fd, rung, self)

    def answer(self) -> bool:
        """Whether the list has a message, now that the server has answered."""
        self._forget()
        return self.connection.read_response() is not None

    def back(self) -> None:
        """Put the message into its list again, for another worker."""
        key = self._prefix + self.name
        self.connection.send_command("LMOVE", _next(self._prefix, self.name), key, "LEFT", "RIGHT")
        self.connection.read_response()

    def close(self) -> None:
        """Hang up."""
        self._forget()
        self.connection.disconnect()

    def _forget(self) -> None:
        if self._fd is not None:
            self._hub.remove_reader(self._fd)
            self._fd = None


class Taker:
    """Takes calls for a holder by way of one channel, which counts how many may be taken."""

    def __init__(self, channel: Any, holder: Holder, hub: Any) -> None:
        self._channel, self.holder, self._hub = channel, holder, hub
        holder.wake, holder.hang_up = self._wake, self._hang_up
        self._script = script(holder.client, "take")
        self._takes = 0
        #: Whether the lists may hold more than was taken last, and whether one of those waited for has filled.
        self._more, self._rang = True, False
        #: When calls whose time has come were looked for, and when the next one's comes.
        self._looked = self._next = 0.0
        self._looks = False
        #: Of the script that was sent: queue and list by number, how many answers there will be, and what the holder
        #: had to say, to which the first one is.
        self._asked: list[tuple[str, str]] = []
        self._answers = 0
        self._loan: Loan | None = None
        #: Lists that are waited for: each queue's own, and those of priorities that were used.
        self._waited: dict[str, _Bell | None] = {}
        self._closed = False
        #: What its connection is on. Where kombu or the client has made that anew, an answer may be lost with calls in
        #: it, and only a new beginning says whose they are.
        self._socket: Any = None

    def ask(self, connection: Any) -> bool:
        """Send the script by way of *connection*, if it is time; False while others wait for their lists instead."""
        channel, prefix, now = self._channel, self.holder.prefix, time.monotonic()
        speaker = self.holder.speaker
        # The most urgent first; queues take turns.
        queues = channel._queue_cycle.consume(len(channel.active_queues))
        lists = [(queue, channel._q_for_pri(queue, step)) for step in channel.priority_steps for queue in queues]
        if not lists:
            return False
        for name in queues:
            self._wait_for(name)
        commands: list[tuple[Any, ...]] = []
        if not self._more and len(self._waited) == 1:
            wait = min(WAIT, max(self._next - now, 0.01)) if self._next else WAIT
            commands.append(_awaiting(prefix, queues[0], wait))
        elif not (self._more or self._rang or now >= self._looked + WAIT or 0 < self._next <= now):
            self._wait({name for _, name in lists})
            if speaker is None:
                self.holder.tell()
            return False
        elif self._more and speaker is not None and speaker.is_busy():
            return False
        self._looks = bool(commands) or now >= self._looked + LOOK
        if self._looks:
            self._looked = now
        self._takes += 1
        most = MOST if speaker is None else min(speaker.credit, MOST)
        room = channel.qos.can_consume_max_estimate()
        keys = [self.holder.key, f"{prefix}core-delayed", f"{prefix}core-delayed-calls"]
        keys += [prefix + name for _, name in lists]
        words = [most if room is None else min(room, most), len(queues), self.holder.connection,
                 f"{self.holder.connection}.{self._takes}", int(self._looks), self.holder.marks, prefix]  # fmt: skip
        self._loan = None if commands or speaker else self.holder.lend()  # behind BLMOVE it would come late
        if self._loan is not None:
            commands.append(self._loan.command)
        elif speaker is None:
            self.holder.tell()
        commands.append(("EVALSHA", self._script.sha, len(keys), *keys, *words))
        self._asked, self._answers = lists, len(commands)
        try:
            self._socket = self._socket or connection._sock
            if connection._sock is None or connection._sock is not self._socket:
                raise ConnectionError("the connection was lost")
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        except (RedisError, OSError):
            self._keep()
            raise
        return True

    def _wake(self) -> bool:
        """Let the hub turn, and ask for more, if there is more; whether there is. Any thread may call this."""
        if not self._more or self._channel._in_poll or self._closed or state.should_stop is not None:
            return False
        self._hub.call_soon(_nothing)
        return True

    def _wait_for(self, name: str) -> None:
        if name not in self._waited:
            self._waited[name] = None
            self.holder.waited.add(name)

    def _wait(self, names: set[str]) -> None:
        for name, bell in self._waited.items():
            if name not in names:
                continue  # it is consumed no more
            if bell is None:
                connection = self._channel.client.connection_pool.get_connection()
                bell = self._waited[name] = _Bell(connection, self.holder.prefix, name, self._hub)
            bell.wait(self._ring, self._channel.health_check_interval)

    def _ring(self, bell: _Bell) -> None:
        if bell.answer():
            queue = bell.name.partition(self._channel.sep)[0]
            if queue in self._channel.active_queues and self._channel.qos.can_consume():
                self._rang = True
            else:
                bell.back()

    def receive(self, connection: Any) -> None:
        """Read from *connection* what the script has taken, and hand it to the worker.

        kombu's `Empty` is raised where the server had lost the script, which it has again now.
        """
        found = self._read(connection)
        self._more, self._rang = found[0] == 1, False
        if found[1]:
            coming = time.monotonic() + float(found[1])
            # Without a look it is only what was parked by this take.
            self._next = coming if self._looks or not self._next else min(coming, self._next)
            if len(self._waited) > 1 and float(found[1]) < WAIT:
                self._hub.call_later(float(found[1]), _nothing)  # so that the hub turns then, and asks
        elif self._looks:
            self._next = 0.0
        queue = ""
        for at in range(2, len(found), 4):
            number, raw, record, cancelled = found[at : at + 4]
            queue, name = self._asked[number - 1]
            self._wait_for(name)
            self._deliver(queue, raw, f"{self.holder.worker}/{record.decode()}", bool(cancelled))
        if queue:
            self._channel._queue_cycle.rotate(queue)
            if (speaker := self.holder.speaker) is not None:
                speaker.has_taken((len(found) - 2) // 4)
                if not self._more:
                    speaker.let_go_first()

    def _read(self, connection: Any) -> list[Any]:
        answers: list[Any] = []
        for _ in range(self._answers):  # where one is an error, the next one is there all the same
            try:
                answers.append(connection.read_response())
            except self._channel.connection_errors:
                self._keep()
                connection.disconnect()
                raise
            except RedisError as error:
                answers.append(error)
        if self._loan is not None:
            if isinstance(answers[0], RedisError):
                self._keep()
            else:
                self.holder.told(self._loan, answers[0])
        found = answers[-1]
        if isinstance(found, NoScriptError):
            connection.send_command("SCRIPT", "LOAD", self._script.script)
            connection.read_response()
            self._more = True
            raise Empty
        if isinstance(found, RedisError):
            raise found
        return list(found)

    def _keep(self) -> None:
        """What the holder had to say was not heard: it will be said again."""
        self.holder.untold(self._loan)

    def _deliver(self, queue: str, raw: bytes, tag: str, cancelled: bool) -> None:
        """Hand one message to the worker; what it cannot make a call of is set aside."""
        call = self.holder.calls[tag] = Held(tag, queue)
        try:
            payload = call.message = message.read(raw)
            call.headers = payload["headers"]
            call.signed = signing.is_signed(payload)
            if call.signed is False:
                raise message.Unreadable("it is not signed as it is by any of the task_signing_keys")
            payload["properties"]["delivery_tag"] = tag
            if cancelled:
                state.revoked.add(call.headers.get("id"))
            if message.is_past(call.headers.get("eta")):
                # Celery would wait for it once more; the body still sees it.
                call.headers["core-eta"], call.headers["eta"] = call.headers["eta"], None
            self._channel.connection._deliver(payload, queue)
        except message.Unreadable as error:
            call.headers = message.names(raw)
            call.headers.pop(UNIQUE, None)  # it may not be its own
            self.holder.settle(tag, "dead", str(error))
        except KeyError as error:  # kombu counts it among the errors of a connection
            self.holder.settle(tag, "dead", f"a worker could not make a call of it (no {error})")
        except (RedisError, OSError):
            raise
        except Exception as error:
            self.holder.settle(tag, "dead", f"a worker could not make a call of it ({type(error).__name__}: {error})")

    def _hang_up(self) -> None:
        """Let the server see that nobody waits any more. What it sets down before, `adopt` finds."""
        connections = [self._channel._in_poll, *(bell.connection for bell in self._waited.values() if bell)]
        for connection in filter(None, connections):
            with suppress(AttributeError, OSError):  # it is closed already
                connection._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up. What a script would still take goes nowhere: it finds another connection recorded."""
        self._closed = True
        self._keep()
        for bell in filter(None, self._waited.values()):
            with suppress(RedisError, OSError):
                bell.close()


def _next(prefix: str, name: str) -> str:
    """The key of what was set down for whoever takes next from this list."""
    return f"{prefix}core-next-{name}"


def _awaiting(prefix: str, name: str, seconds: float) -> tuple[str, ...]:
    """The command that answers when a list has a message, or *seconds* have passed."""
    return ("BLMOVE", prefix + name, _next(prefix, name), "RIGHT", "LEFT", f"{seconds:.3f}")


def _nothing() -> None:
    pass
