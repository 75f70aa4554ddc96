"""The mark in Redis that a call was cancelled: workers forget, Redis does not."""

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
_MARK = PRELUDE + "for at = 3, #ARGV do mark(KEYS[1] .. ARGV[at], tonumber(ARGV[1]), ARGV[2], ARGV[at]) end"


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
