"""Background tasks for async Python applications, run by Celery. Start at `core.tasks`."""

__version__ = "0.1.0"
