"""The Celery application, for `celery -A core …`, Flower and exporters."""

from core.tasks.worker import prepared_app

app = prepared_app()
