"""Which calls of a task are the same call, so that only one of them is queued or running at a time."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.errors import ArgumentsError, OptionError
from core.tasks.arguments import Arguments, to_json

# A lock says who has it: the call's id, and when that expires. It is nobody's where that call has ended, or has expired
# before it began. Results are in the same database, or are not looked at.
PRELUDE = """
local function taken(lock, result, holder)
  local there = redis.call('GET', lock)
  if not there then return nil end
  local id, expires = string.match(there, '^([^\\n]*)\\n(.*)$')
  local mine = string.match(holder, '^[^\\n]*')
  if not id or id == mine then return nil end
  local status  -- unknown where results are not kept
  if result ~= '' then
    local meta = redis.call('GET', string.sub(result, 1, #result - #mine) .. id)
    status = meta and string.match(meta, '"status":%s*"(%u+)"')
    if status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED' then return nil end
  end
  local began = status and status ~= 'PENDING' and status ~= 'RETRY'
  if result ~= '' and expires ~= '' and not began and tonumber(expires) < tonumber(redis.call('TIME')[1]) then
    return nil
  end
  return id
end
"""


def lock_name(
    task: str,
    arguments: Arguments,
    key: Callable[..., object] | tuple[str, ...] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> str:
    """The name of the lock that a call takes: the same for calls that are the same.

    Args:
        key: A function of the arguments, or the names of those that count; None is all of them.

    Raises:
        OptionError: The function in `unique_key` returned what has no form in JSON.
    """
    if callable(key):
        value: Any = key(*args, **kwargs)
    else:
        bound = arguments.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        value = {name: bound.arguments[name] for name in (bound.arguments if key is None else key)}
    try:
        text = json.dumps([task, to_json(value, "its value")], sort_keys=True)
    except ArgumentsError as error:
        raise OptionError(f"unique_key of {task} cannot be used: {error}") from error
    label = re.sub(r"[^\w.-]", "_", task, flags=re.ASCII)  # scripts find it in messages, where JSON escapes the rest
    return f"core-unique-{label}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
