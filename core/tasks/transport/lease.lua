-- Renews a worker's lease, and gives away what workers held whose lease has ended.
--
-- KEYS  workers, this worker's held calls
-- ARGV  worker, seconds of its lease, the global key prefix, records that have not begun to run ('' is none, else
--       ' r1 r2 '), 1 to keep whole messages of what is set aside
-- Returns {worker, how many calls were put back, {calls that were set aside}} for each worker that was lost.
local workers, prefix = KEYS[1], ARGV[3]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZADD', workers, string.format('%.6f', now + ARGV[2]), ARGV[1])
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[2], 'waiting', ARGV[4])
elseif redis.call('HEXISTS', KEYS[2], 'waiting') == 1 then
  redis.call('HDEL', KEYS[2], 'waiting')
end

local answer = {}
for _, worker in ipairs(redis.call('ZRANGE', workers, '-inf', string.format('%.6f', now), 'BYSCORE')) do
  local held = prefix .. 'core-held-' .. worker
  local waiting = redis.call('HGET', held, 'waiting') or ''
  local calls = redis.call('HSCAN', held, '0', 'COUNT', 500)
  local back, dead = 0, {}
  for i = 1, #calls[2], 2 do
    local record, call = calls[2][i], calls[2][i + 1]
    if record ~= 'connection' and record ~= 'waiting' then
      local list, message = string.match(call, '^([^\n]*)\n(.*)$')
      local at = string.find(message, '"id"', 1, true)
      local id = at and string.match(message, '^"id":%s*"([^"]+)"', at)
      local began = not string.find(waiting, ' ' .. record .. ' ', 1, true)
      if began and lost(prefix, id) then
        at = string.find(message, '"task"', 1, true)
        local queue = string.match(list, '^(.-)\6\22') or list
        set_aside(prefix, 'core-dead', {
          id = id, task = at and string.match(message, '^"task":%s*"([^"]+)"', at), queue = queue, reason = LOST,
          list = list, message = message,
        })
        dead[#dead + 1] = message
      else
        redis.call('RPUSH', prefix .. list, message)
        back = back + 1
      end
      redis.call('HDEL', held, record)
    end
  end
  if calls[1] == '0' then redis.call('DEL', held) end
  if back + #dead > 0 then answer[#answer + 1] = {worker, back, dead} end
  -- It may only have been away, and take more before it renews its lease.
  local ended = tonumber(redis.call('ZSCORE', workers, worker))
  if calls[1] == '0' and now - ended > 3600 then redis.call('ZREM', workers, worker) end
end
return answer
