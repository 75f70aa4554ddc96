"""Makes the calls that the suite asks for, one JSON object a line, and answers with what became of each.

`caller.py ours` calls through core.tasks, `caller.py stock` through Celery. A call that does not return holds no other
one up.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Send = Callable[[str, list[Any], dict[str, Any]], Awaitable[str]]
Cancel = Callable[[str], Awaitable[None]]


def ours() -> tuple[Send, Cancel]:
    from core.tasks import TaskResult
    from src import tasks

    async def send(task: str, args: list[Any], options: dict[str, Any]) -> str:
        return (await getattr(tasks, task).delay(*args, **options)).id

    async def cancel(task_id: str) -> None:
        await TaskResult[Any].from_id(task_id).cancel()

    return send, cancel


def stock() -> tuple[Send, Cancel]:
    import stock

    threads = ThreadPoolExecutor(16)

    async def in_thread(function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, function)

    async def send(task: str, args: list[Any], options: dict[str, Any]) -> str:
        return (await in_thread(lambda: getattr(stock, task).apply_async(args, **options))).id

    async def cancel(task_id: str) -> None:
        await in_thread(lambda: stock.app.control.revoke(task_id))

    return send, cancel


async def main(kind: str) -> None:
    send, cancel = ours() if kind == "ours" else stock()

    async def answer(request: dict[str, Any]) -> None:
        args = [*request.get("args", ()), *([eval(request["code"])] if "code" in request else ())]
        said: dict[str, Any] = {"number": request["number"]}
        began = time.monotonic()
        try:
            if "cancel" in request:
                await cancel(request["cancel"])
            else:
                said["id"] = await send(request["task"], args, request.get("options", {}))
        except Exception as error:
            said |= {
                "error": f"{type(error).__name__}: {error}"[:2000],
                "maybe": getattr(error, "maybe_sent", True),
                "id": getattr(error, "task_id", ""),
            }
        said["seconds"] = time.monotonic() - began
        print(json.dumps(said), flush=True)

    reader = asyncio.StreamReader(limit=2**20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"number": 0}), flush=True)
    tasks = set()
    async for line in reader:
        tasks.add(task := asyncio.create_task(answer(json.loads(line))))
        task.add_done_callback(tasks.discard)
    os._exit(0)  # a call that hangs has a thread that hangs


asyncio.run(main(sys.argv[1]))
