-- Ends calls that a worker holds: many in one step, each with its result.
--
-- KEYS  held
-- ARGV  the global key prefix, then six words for each call:
--       its record ('' is a result alone), the verdict, the key of the result ('' is none), seconds to keep it,
--       what is stored, details as JSON ('' is none)
-- Verdicts: done (acknowledged), back (into its list, at the front), lost (back, and counted: its worker was lost),
--           dead (set aside), failed (acknowledged, and listed), later (parked: nobody here knows its task)
-- Returns a word for each call: the verdict that it got; `first` for the first `later`; `gone` when this worker did
-- not hold it any more, or, of those that are done, one of them.
local held, prefix = KEYS[1], ARGV[1]
local answer, done, at_number = {}, {}, {}

local function aside(kind, call, details, reason)
  local list, message = split(call)
  set_aside(prefix, kind, {
    id = details.id, task = details.task, queue = details.queue, reason = reason or details.reason,
    list = list, message = (kind == 'core-dead' or details.keep) and message or nil,
  })
end

-- How long its task has been unknown, in seconds; the first who asks starts the clock.
local function unknown_for(id, hold)
  local time = redis.call('TIME')
  local key = prefix .. 'core-unknown-' .. id
  local since = redis.call('GET', key)
  if not since then redis.call('SET', key, time[1], 'EX', math.ceil(hold) + 86400) end
  return since and time[1] - since, time[1] + time[2] / 1000000
end

for at = 2, #ARGV, 6 do
  local record, verdict, key, ttl, meta = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local details = ARGV[at + 5] ~= '' and cjson.decode(ARGV[at + 5]) or nil
  local number = #answer + 1
  answer[number] = verdict
  if key ~= '' then
    store(key, ttl, meta, function() return record == '' or redis.call('HEXISTS', held, record) == 1 end)
  end
  if verdict == 'done' then
    if record ~= '' then done[#done + 1], at_number[#done + 1] = record, number end
    if details and redis.call('HEXISTS', held, record) == 1 then unlock(prefix, details.unique, details.id) end
  else
    even_if_full(held)
    local call = redis.call('HGET', held, record)
    if not call then
      answer[number] = 'gone'
    elseif verdict == 'back' then
      if not back(prefix, call) then record = '' end
    elseif verdict == 'failed' then
      aside('core-failed', call, details)
    elseif verdict == 'dead' then
      aside('core-dead', call, details)
    elseif verdict == 'lost' then
      if lost(prefix, details.id) then
        aside('core-dead', call, details, LOST)
        answer[number] = 'dead'
      else
        if not back(prefix, call) then record = '' end
      end
    elseif verdict == 'later' then
      local seconds, now = unknown_for(details.id, details.hold)
      if seconds and seconds >= details.hold then
        aside('core-dead', call, details)
        answer[number] = 'dead'
      else
        -- Soon at first, for a deployment under way; then ever less often.
        local pause = math.min(math.max((seconds or 0) / 4, 1), details.pause)
        redis.call('ZADD', prefix .. 'core-delayed', string.format('%.6f', now + pause), details.record)
        redis.call('HSET', prefix .. 'core-delayed-calls', details.record, call)
        answer[number] = seconds and 'later' or 'first'
      end
    end
    if answer[number] == 'failed' or answer[number] == 'dead' then unlock(prefix, details.unique, details.id) end
    if record ~= '' then redis.call('HDEL', held, record) end  -- else its list has no room for it, and it stays held
  end
end
if #done > 0 and redis.call('HDEL', held, unpack(done)) < #done then
  for _, number in ipairs(at_number) do answer[number] = 'gone' end
end
return answer
