"""`lifespan`: what it opens before the first request, what it leaves behind, and when an application does not start."""

import asyncio
import logging
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis
from support import eventually, redis_server, valkey_binary

from core.config import Settings, configure
from core.errors import ConfigurationError, ProjectImportError, PublishError, SettingsNotFound, TasksNotFound
from core.tasks import TaskResult, celery_app, lifespan, task, web


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as (url, _):
        yield url


def use(url: str, **values: Any) -> None:
    class Own(Settings):
        redis_url: SecretStr | None = SecretStr(url)
        task_publish_timeout: float = 0.5
        task_modules: tuple[str, ...] = values.get("modules", ())
        task_enabled: bool = values.get("enabled", True)

    configure(Own)


@pytest.fixture
def server(url: str) -> Iterator[Redis]:
    use(url)
    with Redis.from_url(url) as client:
        yield client


@pytest.fixture
def send() -> Any:
    """A task that an application declares."""

    @task(name="mail.send")
    async def send(to: str, *, copy: bool, text: str = "") -> None: ...

    return send


def opened(server: Redis) -> set[str]:
    """The connections that the server has beside the test's own."""
    return {client["id"] for client in server.client_list()} - {str(server.client_id())}


@contextmanager
def broker_at(port: int, directory: Path) -> Iterator[None]:
    command = [valkey_binary(), "--port", str(port), "--save", "", "--dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as broker:
        yield
        broker.kill()


async def are_closed(server: Redis) -> None:
    async def none_is_left() -> bool:
        return not opened(server)

    await eventually(none_is_left, 10, "no connection is left")


async def test_all_is_open_before_the_first_request_and_closed_after_the_last(send: Any, server: Redis) -> None:
    await are_closed(server)
    async with lifespan(object()):
        ready = opened(server)
        call = await send.delay("a@b", copy=True)
        status = await call.status()
        assert (len(ready), opened(server), status) == (2, ready, "pending")

    await are_closed(server)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_how_calls_leave_is_known_before_the_first_one(send: Any, server: Redis) -> None:
    """To find that out takes a thread, and Celery some time."""
    from core.tasks import publish
    from core.tasks.envelope import Call

    async with lifespan():
        assert publish._known(Call(send, "1", [], {}, {})) is not None


async def test_the_connections_stay_however_long_nobody_needs_them(
    send: Any, server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.tasks.listener.IDLE", 0.0)
    monkeypatch.setattr("core.tasks.listener.ANSWER", 0.05)  # how often it looks
    async with lifespan():
        ready = opened(server)
        turns = server.info("commandstats")
        for _ in range(5):
            await asyncio.sleep(0.05)  # nothing tells that a connection is not closed
        assert opened(server) == ready, turns


async def test_it_works_again_and_calls_work_after_it(send: Any, server: Redis) -> None:
    for _ in range(2):
        async with lifespan():
            await send.delay("a@b", copy=True)
    result = await send.delay("a@b", copy=True)

    assert await result.exists()


async def test_of_two_applications_on_a_loop_the_last_one_closes(send: Any, server: Redis) -> None:
    async with lifespan():
        async with lifespan():
            ready = opened(server)
        await (await send.delay("a@b", copy=True)).status()
        assert opened(server) == ready

    await are_closed(server)


async def test_loops_in_two_threads_have_their_own(send: Any, server: Redis) -> None:
    def application() -> int:
        async def serve() -> int:
            async with lifespan():
                await send.delay("a@b", copy=True)
                return len(opened(server))

        return asyncio.run(serve())

    await are_closed(server)
    async with lifespan():
        assert await asyncio.to_thread(application) == 4
        await send.delay("a@b", copy=True)

    await are_closed(server)


async def test_who_still_waits_at_the_end_is_cancelled(send: Any, server: Redis) -> None:
    async with lifespan():
        waits = asyncio.create_task((await send.delay("a@b", copy=True)).get())

        async def subscribed() -> bool:
            return bool(server.pubsub_channels())

        await eventually(subscribed, 10, "it waits")

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waits, 10)
    await are_closed(server)


async def test_a_call_that_is_under_way_at_the_end_arrives(send: Any, server: Redis) -> None:
    async with lifespan():
        calls = [asyncio.create_task(send.delay("a@b", copy=True)) for _ in range(3)]
        await asyncio.sleep(0)

    results = [await asyncio.wait_for(call, 10) for call in calls]
    assert [bool(server.exists(f"celery-task-meta-{result.id}")) for result in results] == [True] * 3
    await are_closed(server)


async def test_celery_sends_where_it_has_to_and_the_broker_is_asked_all_the_same(
    send: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server() as (url, _):
        use(url)
        celery_app.get_app().conf.task_send_sent_event = True
        async with lifespan():
            await send.delay("a@b", copy=True)

    assert caplog.messages == []


async def test_with_tasks_disabled_nothing_is_opened(send: Any, server: Redis, url: str) -> None:
    use(url, enabled=False)
    await are_closed(server)

    async with lifespan():
        assert opened(server) == set()
        assert await TaskResult.from_id("a").status() == "pending"

    await are_closed(server)


# What is no reason not to start


async def test_a_broker_that_is_away_is_a_warning(send: Any, caplog: pytest.LogCaptureFixture) -> None:
    use("redis://:s3cret@127.0.0.1:1/0")

    async with lifespan():
        with pytest.raises(PublishError) as refused:
            await send.delay("a@b", copy=True)

    assert not refused.value.maybe_sent
    (said,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.getMessage().startswith("No Redis answers at 127.0.0.1:1/0: ")
    assert said.getMessage().endswith(" The application starts without it.")
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("by_celery", [False, True], ids=["loop", "thread"])
async def test_a_broker_that_says_nothing_is_not_waited_for(
    send: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, by_celery: bool
) -> None:
    monkeypatch.setattr(web, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        celery_app.get_app().conf.task_send_sent_event = by_celery
        async with lifespan():
            pass

    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "no answer within 0.1 s. Start it, or set REDIS_URL to one that is running. The application starts without it."
    ]


async def test_a_broker_behind_a_wall_is_not_waited_for(send: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a connection is made, or refused."""
    monkeypatch.setattr(web, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as wall, ExitStack() as others:
        for _ in range(3):  # there is no room for more
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(wall.getsockname())
        use(f"redis://127.0.0.1:{wall.getsockname()[1]}/0")
        async with lifespan():
            pass
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_result_backend_that_says_nothing_is_not_waited_for(
    send: Any, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("TASK_RESULT_BACKEND_URL", f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        use(url)
        async with lifespan():
            await send.delay("a@b", copy=True)

    assert caplog.messages == [
        "The result backend does not answer: no answer within 0.1 s. Start it, or set TASK_RESULT_BACKEND_URL to one "
        "that is running. The application starts without it."
    ]


async def test_an_application_joins_when_the_broker_is_there(send: Any, tmp_path: Path) -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    use(f"redis://127.0.0.1:{port}/0")
    async with lifespan():

        async def queued() -> bool:
            try:
                return await (await send.delay("a@b", copy=True)).exists()
            except PublishError:
                return False

        with broker_at(port, tmp_path):
            await eventually(queued, 10, "a call is queued")


# What is one


async def test_a_wrong_password_is_an_error(send: Any, url: str) -> None:
    use(url.replace("//", "//nobody:s3cret@"))

    with pytest.raises(ConfigurationError, match="refuses the user or password") as refused:
        async with lifespan():
            pass

    assert "s3cret" not in str(refused.value)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_cannot_be_a_broker_is_an_error(send: Any) -> None:
    with redis_server("--cluster-enabled", "yes") as (url, _):
        use(url)
        with pytest.raises(ConfigurationError, match="part of a Redis Cluster"):
            async with lifespan():
                pass


async def test_settings_that_are_missing_are_an_error() -> None:
    with pytest.raises(SettingsNotFound):
        async with lifespan():
            pass


async def test_a_project_without_tasks_is_an_error(server: Redis) -> None:
    with pytest.raises(TasksNotFound):
        async with lifespan():
            pass


async def test_a_task_module_that_fails_is_an_error(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_tasks.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    use(url, modules=("failing_tasks",))

    with pytest.raises(ProjectImportError, match="failing_tasks could not be imported: RuntimeError: no"):
        async with lifespan():
            pass


async def test_what_the_application_raises_comes_out(send: Any, server: Redis) -> None:
    with pytest.raises(ValueError, match="own"):
        async with lifespan():
            raise ValueError("own")

    await are_closed(server)
