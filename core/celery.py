"""The Celery application, for `celery -A core …`, Flower and exporters."""

from click import get_current_context

from core.tasks.worker import prepared_app

app = prepared_app()

_context = get_current_context(silent=True)
if _context and getattr(_context.find_root().command.callback, "__module__", None) == "celery.bin.celery":
    # Celery's commands are this application's alone, and Flower asks the current one for results.
    app.set_current()
    app.set_default()
