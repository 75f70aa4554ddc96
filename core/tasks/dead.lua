-- Local functions that scripts are prefixed with: how a call gets on the dead list, and off it.
--
-- <prefix>core-dead        zset   id -> unix time   set aside by a worker; kept until it is retried or purged
-- <prefix>core-failed      zset   id -> unix time   failed for good; the youngest, see failed_kept
-- <prefix>core-dead-calls  hash   id -> JSON {id, task, queue, reason, at, list, message}
--
-- An id is in one of the two zsets, or in none and not in the hash either.

local failed_kept = 10000 -- entries
local failed_age = 7 * 86400 -- seconds

-- Take ids off the list.
local function strike(prefix, ids)
  redis.call('ZREM', prefix .. 'core-dead', unpack(ids))
  redis.call('ZREM', prefix .. 'core-failed', unpack(ids))
  return redis.call('HDEL', prefix .. 'core-dead-calls', unpack(ids))
end

-- Take off the list what failed too long ago, and the oldest of too many. One run does a bounded amount of work.
local function trim_failed(prefix, now)
  local key = prefix .. 'core-failed'
  local old = redis.call('ZRANGEBYSCORE', key, '-inf', string.format('(%.6f', now - failed_age), 'LIMIT', 0, 1000)
  if #old > 0 then strike(prefix, old) end
  local excess = math.min(redis.call('ZCARD', key) - failed_kept, 1000)
  if excess > 0 then strike(prefix, redis.call('ZRANGE', key, 0, excess - 1)) end
end

-- Put a call on the list, at the server's time. An id that is on it already is replaced.
-- kind: 'core-dead' or 'core-failed'.
-- entry: strings {id=, task=, queue=, reason=, list=, message=}. list is the Redis list that the call came from,
--   without the prefix. message is the whole raw message, any bytes. What is not known, or not kept, is nil or ''.
local function set_aside(prefix, kind, entry)
  local function known(value)
    return type(value) == 'string' and value ~= '' and value or cjson.null
  end
  local time = redis.call('TIME')
  local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
  strike(prefix, {entry.id})
  redis.call('ZADD', prefix .. kind, string.format('%.6f', now), entry.id)
  redis.call('HSET', prefix .. 'core-dead-calls', entry.id, cjson.encode({
    id = entry.id,
    task = known(entry.task),
    queue = known(entry.queue),
    reason = known(entry.reason),
    at = now,
    list = known(entry.list),
    message = known(entry.message),
  }))
  if kind == 'core-failed' then trim_failed(prefix, now) end
end

