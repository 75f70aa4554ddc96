from core.config import Settings


class AppSettings(Settings):
    task_enabled: bool = True
    task_default_queue: str = "default"
