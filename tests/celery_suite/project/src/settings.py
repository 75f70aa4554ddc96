from typing import Any

from pydantic import Field

from core.config import Settings


class AppSettings(Settings):
    task_default_queue: str = "celery"
    celery: dict[str, Any] = Field(default={"broker_heartbeat": 0, "task_create_missing_queues": False})
