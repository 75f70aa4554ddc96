"""Each test of this directory has a process state of its own, and so do those of `tests/tasks`."""

from marks import own_state

__all__ = ["own_state"]
