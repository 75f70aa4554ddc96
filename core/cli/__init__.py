"""The `core` command. One file a command group; each turns options into one call, and errors into one line.

Nothing heavy is imported before a command runs: `core --help` needs neither Celery nor settings.
"""

from core.cli.main import main

__all__ = ["main"]
