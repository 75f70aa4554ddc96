"""The suite's tasks in an application of plain Celery, configured as the suite configures it."""

import os

from celery.contrib.testing.app import TestApp

app = TestApp(
    set_as_current=True,
    enable_logging=True,
    config={
        "broker_url": os.environ["TEST_BROKER"],
        "result_backend": os.environ["TEST_BACKEND"],
        "result_extended": True,
        "task_create_missing_queues": False,
    },
)
app.set_default()

from t.integration.tasks import ClassBasedAutoRetryTask  # noqa: E402  its tasks belong to the application that is current

app.register_task(ClassBasedAutoRetryTask)
