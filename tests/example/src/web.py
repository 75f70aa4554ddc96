import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from core.tasks import TaskResult, lifespan
from src.apps.imports.tasks import import_orders

app = FastAPI(lifespan=lifespan)


@app.post("/imports", status_code=202)
async def start(rows: int) -> dict[str, str]:
    """Queue a call."""
    call = await import_orders.delay(rows)
    return {"id": call.id}


@app.get("/imports/{call_id}")
async def show(call_id: str) -> dict[str, str]:
    """Say where it is."""
    call = TaskResult.from_id(call_id)
    if not await call.exists():
        raise HTTPException(404, "there is no such import")
    return {"id": call.id, "status": await call.status()}


@app.get("/imports/{call_id}/events")
async def follow(call_id: str) -> StreamingResponse:
    """Send its progress as it comes, then how it ended."""
    call = TaskResult.from_id(call_id)
    if not await call.exists():
        raise HTTPException(404, "there is no such import")

    async def events() -> AsyncIterator[str]:
        async for update in call.progress():
            yield event("progress", {"percent": update.percent, "message": update.message})
        yield event("end", {"status": await call.status()})

    return StreamingResponse(events(), media_type="text/event-stream")


def event(name: str, data: Any) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
