"""Background tasks for async Python applications, run by Celery.

Declare a task with `@task`, queue a call with `await f.delay(...)`, await its result with `await result.get()`.
Workers and the scheduler are started with `core runworker` and `core scheduler start`.
"""

from core.errors import (
    AlreadyRunning,
    ArgumentsError,
    BrokerUnreachable,
    ConfigurationError,
    CoreError,
    DuplicateTask,
    EmbeddedServerError,
    NotRunning,
    OptionError,
    OutsideTask,
    ProjectImportError,
    PublishError,
    PublishManyError,
    ResultTimeout,
    ResultUnavailable,
    SettingsNotFound,
    SyncInLoop,
    TaskDefinitionError,
    TaskError,
    TaskFailed,
    TaskRevoked,
    TasksDisabled,
    TasksNotFound,
    TaskTimeout,
    UnknownQueue,
)
from core.tasks.context import CurrentTask, current
from core.tasks.decorators import periodic_task, task
from core.tasks.definition import PeriodicTask, Task
from core.tasks.progress import Progress
from core.tasks.resources import worker_lifespan
from core.tasks.result import TaskResult, TaskStatus
from core.tasks.web import lifespan

__all__ = [
    "AlreadyRunning",
    "ArgumentsError",
    "BrokerUnreachable",
    "ConfigurationError",
    "CoreError",
    "CurrentTask",
    "DuplicateTask",
    "EmbeddedServerError",
    "NotRunning",
    "OptionError",
    "OutsideTask",
    "PeriodicTask",
    "Progress",
    "ProjectImportError",
    "PublishError",
    "PublishManyError",
    "ResultTimeout",
    "ResultUnavailable",
    "SettingsNotFound",
    "SyncInLoop",
    "Task",
    "TaskDefinitionError",
    "TaskError",
    "TaskFailed",
    "TaskResult",
    "TaskRevoked",
    "TaskStatus",
    "TaskTimeout",
    "TasksDisabled",
    "TasksNotFound",
    "UnknownQueue",
    "current",
    "lifespan",
    "periodic_task",
    "task",
    "worker_lifespan",
]
