"""`Wire`: an open connection to Redis, as an event loop writes to it and hears from it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as Client
from redis.exceptions import ConnectionError, ResponseError
from support import redis_server

from core.tasks.wire import TURN, Wire


@pytest.fixture(scope="module")
def url() -> Any:
    with redis_server() as (url, _):
        yield url


class Talk:
    """A wire, and what came by it."""

    def __init__(self, connection: Any) -> None:
        self.answers: list[Any] = []
        self.pushes: list[Any] = []
        self.came = asyncio.Event()
        self.wire = Wire(connection, self._answered, self.pushes.append)

    def _answered(self, said: Any) -> None:
        self.answers.append(said)
        self.came.set()
        if said == b"enough":
            raise ValueError("enough")

    async def answered(self, count: int) -> list[Any]:
        async with asyncio.timeout(5):
            while len(self.answers) < count:
                self.came.clear()
                await self.came.wait()
        return self.answers


@asynccontextmanager
async def a_talk(url: str) -> AsyncIterator[Talk]:
    client = Client.from_url(url, protocol=3)
    connection = client.connection_pool.make_connection()
    await connection.connect()
    try:
        yield Talk(connection)
    finally:
        began = time.monotonic()
        await connection.disconnect()  # which waits for the end
        assert time.monotonic() - began < 1
        await client.aclose()


async def test_answers_come_in_their_order_and_an_error_is_one_of_them(url: str) -> None:
    async with a_talk(url) as talk:
        talk.wire.write(("SET", "key", "é"), ("GET", "key"), ("LPUSH", "key", 1))
        talk.wire.write(("GET", "none"), ("LRANGE", "none", 0, -1))

        ok, value, error, none, empty = await talk.answered(5)

    assert (ok, value, none, empty) == (b"OK", "é".encode(), None, [])
    assert isinstance(error, ResponseError)
    assert "Operation against a key" in str(error)


async def test_what_is_published_is_no_answer(url: str) -> None:
    async with a_talk(url) as talk:
        talk.wire.write(("SUBSCRIBE", "news"), ("PUBLISH", "news", "here"), ("PING",))

        assert await talk.answered(2) == [1, b"PONG"]

    assert talk.pushes == [[b"subscribe", b"news", 1], [b"message", b"news", b"here"]]


async def test_many_answers_leave_the_loop_its_turns(url: str) -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with a_talk(url) as talk:
        talk.wire.write(*[("ECHO", str(number)) for number in range(TURN * 3)])
        with Redis.from_url(url) as asked:
            asked.ping()  # all the answers have left the server
        ticking = asyncio.create_task(turn())
        await talk.answered(1)
        first = turns
        answers = await talk.answered(TURN * 3)
        ticking.cancel()

    assert answers == [str(number).encode() for number in range(TURN * 3)]
    assert turns - first >= 2


async def test_a_connection_that_the_server_closes_is_lost(url: str) -> None:
    async with a_talk(url) as talk:
        talk.wire.write(("CLIENT", "ID"))
        (number,) = await talk.answered(1)
        assert talk.wire.is_quiet()

        with Redis.from_url(url) as admin:
            admin.client_kill_filter(_id=number)
            admin.ping()

        assert not talk.wire.is_quiet()  # before the loop has turned
        with pytest.raises((ConnectionError, OSError)):
            await asyncio.wait_for(talk.wire.lost, 5)


async def test_an_answer_that_nobody_understands_ends_the_talk(url: str) -> None:
    async with a_talk(url) as talk:
        talk.wire.write(("ECHO", "enough"), ("ECHO", "more"))

        with pytest.raises(ValueError, match="enough"):
            await asyncio.wait_for(talk.wire.lost, 5)

    assert talk.answers == [b"enough"]
