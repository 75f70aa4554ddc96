"""The suite's tasks, plain functions for plain Celery, in an application of core.tasks."""

import os
from types import SimpleNamespace

from core.tasks import celery_app

app = celery_app.get_app()
app.set_current()
app.set_default()

from t.integration.tasks import ClassBasedAutoRetryTask  # noqa: E402  its tasks belong to the application that is current

app.register_task(ClassBasedAutoRetryTask)
if os.environ.get("SUITE_ON_LOOP"):
    for task in app.tasks.values():
        task.is_coroutine, task.body = True, SimpleNamespace(limit=None)
