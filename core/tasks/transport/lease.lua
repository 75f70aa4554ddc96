-- Renews a worker's lease, and gives away what workers held whose lease has ended.
--
-- KEYS  workers, this worker's held calls
-- ARGV  worker, seconds of its lease, the global key prefix, records that have not begun to run ('' is none, else
--       ' r1 r2 '), 1 to look for workers that were lost
-- Returns {whether this worker's own lease had not ended, then for each worker that was lost
--          {worker, how many calls were put back, {messages of calls that were set aside}}}
local workers, prefix = KEYS[1], ARGV[3]
even_if_full(KEYS[2])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local mine = redis.call('ZSCORE', workers, ARGV[1])
redis.call('ZADD', workers, string.format('%.6f', now + ARGV[2]), ARGV[1])
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[2], 'waiting', ARGV[4])
elseif redis.call('HEXISTS', KEYS[2], 'waiting') == 1 then
  redis.call('HDEL', KEYS[2], 'waiting')
end

local answer = {mine and tonumber(mine) > now and 1 or 0}
-- A request that waited in a server that was frozen asks of everybody whose lease ended meanwhile, its own with them.
if ARGV[5] ~= '1' or answer[1] == 0 then return answer end
for _, worker in ipairs(redis.call('ZRANGE', workers, '-inf', string.format('%.6f', now), 'BYSCORE')) do
  local held = prefix .. 'core-held-' .. worker
  local waiting = redis.call('HGET', held, 'waiting') or ''
  local scanned = redis.call('HSCAN', held, '0', 'COUNT', 500)
  local calls, dead = {}, {}
  for i = 1, #scanned[2], 2 do
    local record, call = scanned[2][i], scanned[2][i + 1]
    if record ~= 'connection' and record ~= 'waiting' then
      local list, message = split(call)
      local id = header(message, 'id')
      local began = not string.find(waiting, ' ' .. record .. ' ', 1, true)
      if began and lost(prefix, id) then
        set_aside(prefix, 'core-dead', {
          id = id, task = header(message, 'task'), queue = string.match(list, '^(.-)\6\22') or list, reason = LOST,
          list = list, message = message,
        })
        redis.call('HDEL', held, record)
        unlock(prefix, header(message, 'core-unique'), id)
        dead[#dead + 1] = message
      else
        calls[#calls + 1] = {record, call}
      end
    end
  end
  local count = all_back(prefix, held, calls)
  if scanned[1] == '0' and redis.call('HGET', held, 'connection') ~= '0' then
    redis.call('HDEL', held, 'connection', 'waiting')
  end
  if count + #dead > 0 then answer[#answer + 1] = {worker, count, dead} end
  -- It may only have been away, and take more before it renews its lease.
  local ended = tonumber(redis.call('ZSCORE', workers, worker))
  if now - ended > 3600 and redis.call('EXISTS', held) == 0 then redis.call('ZREM', workers, worker) end
end
return answer
