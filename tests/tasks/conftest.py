"""Each test of this directory has a process state of its own: no tasks, no settings, no Celery application."""

from marks import own_state

__all__ = ["own_state"]
