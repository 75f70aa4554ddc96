"""What is installed, and what this project is set to."""

import platform
from importlib.metadata import version
from typing import Any

from core import __version__, config, embedded
from core.tasks import catalog, celery_app


def facts() -> dict[str, Any]:
    """All of it in words and numbers that JSON has; URLs without their passwords. Asks no broker, and starts none.

    Raises:
        ProjectImportError: A module with tasks failed.
    """
    settings, project = config.get_settings(), config.get_project()
    tasks = catalog.entries()
    here = f"the development server at {embedded.socket_path(project.root)}"
    return {
        "core": __version__,
        **{name: version(name) for name in ("celery", "kombu", "redis")},
        "python": platform.python_version(),
        "project": str(project.root),
        "settings": f"{project.settings} from {project.source}",
        "environment": settings.environment,
        "broker": str(settings.broker_url or here),
        "results": str(settings.result_url or here),
        "transport": settings.task_broker_transport if settings.uses_core_transport else "stock",
        "pool": settings.task_worker_pool,
        "concurrency": settings.task_worker_concurrency,
        "processes": settings.task_worker_processes,
        "queues": list(celery_app.queues()),
        "tasks": len(tasks),
        "schedule": sum(task.schedule is not None for task in tasks),
    }
