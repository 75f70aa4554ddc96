"""The mark in Redis that a call was cancelled: workers forget, Redis does not."""

from datetime import UTC, datetime
from functools import cache
from typing import Any

from core import embedded
from core.tasks.celery_config import is_one_database

#: Lua: `mark(key, seconds, delayed, id)` marks a call as cancelled, for as long as it may still come up: a call with
#: a countdown that is parked may do so for months. To be prefixed to a script.
PRELUDE = """
local function mark(key, seconds, delayed, id)
  local due = delayed ~= '' and redis.call('ZSCORE', delayed, id)
  if due then seconds = math.max(seconds, math.ceil(due - redis.call('TIME')[1]) + 86400) end
  redis.call('SET', key, '1', 'EX', seconds)
end
"""
#: In one step: remember that the call is cancelled, and give it its outcome unless a worker has it already.
CANCEL = (
    PRELUDE
    + """
mark(KEYS[2], tonumber(ARGV[2]), ARGV[4], ARGV[5])
local stored = redis.call('GET', KEYS[1])
if stored then
  local readable, meta = pcall(cjson.decode, stored)
  local status = readable and meta.status or 'FAILURE'
  if status ~= 'PENDING' and status ~= 'RETRY' and status ~= 'RECEIVED' then return status end
end
if ARGV[3] == '1' then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  redis.call('PUBLISH', KEYS[1], ARGV[1])
end
return 'PENDING'
"""
)
_MARK = PRELUDE + "for at = 3, #ARGV do mark(KEYS[1] .. ARGV[at], tonumber(ARGV[1]), ARGV[2], ARGV[at]) end"


def outcome(task_id: str, reason: str = "cancelled") -> dict[str, Any]:
    """What Celery stores of a revoked call."""
    return {
        "status": "REVOKED",
        "result": {"exc_type": "TaskRevokedError", "exc_message": [reason], "exc_module": "celery.exceptions"},
        "traceback": None,
        "children": [],
        "date_done": datetime.now(UTC).isoformat(),
        "task_id": task_id,
    }


def client(app: Any) -> Any:
    """A client of the Redis that keeps the marks: where results are, or would be if they were in Redis."""
    from celery.backends.redis import RedisBackend

    return app.backend.client if isinstance(app.backend, RedisBackend) else _client()


@cache
def _client() -> Any:
    return embedded.result_url().client()


def cancel_key(conf: Any, task_id: str) -> str:
    """The key of the mark, in the results' database."""
    prefix = (conf.result_backend_transport_options or {}).get("global_keyprefix", "")
    return f"{prefix}core-cancelled-{task_id}"


def delayed_key(conf: Any) -> str:
    """Where calls wait for their time; empty where that is in another database than the marks."""
    prefix = conf.broker_transport_options.get("global_keyprefix", "")
    return f"{prefix}core-delayed" if is_one_database(conf) else ""


def mark_all(app: Any, task_ids: list[str]) -> None:
    """Mark calls as cancelled. Raises what the Redis client raises."""
    words = [int(app.conf.result_expires), delayed_key(app.conf), *task_ids]
    client(app).eval(_MARK, 1, cancel_key(app.conf, ""), *words)
