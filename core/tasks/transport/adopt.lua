-- Says over a new connection what a worker still holds; everything else that is recorded as its own goes back.
--
-- KEYS  workers, held
-- ARGV  worker, seconds of its lease (0: it ends), number of the new connection, the global key prefix,
--       then the records that it keeps
-- Returns how many calls were put back.
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%.6f', time[1] + time[2] / 1000000 + ARGV[2]), ARGV[1])
local kept = {}
for i = 5, #ARGV do kept[ARGV[i]] = true end
local back = {}
local calls = redis.call('HGETALL', KEYS[2])
for i = 1, #calls, 2 do
  local record = calls[i]
  if record ~= 'connection' and record ~= 'waiting' and not kept[record] then back[#back + 1] = {record, calls[i + 1]} end
end
-- Pushed latest first, so that the oldest leaves first again.
local function order(record)
  local take, number = string.match(record, '^(%d+):(%d+)$')
  return take and take * 100000 + number or 0
end
table.sort(back, function(one, other) return order(one[1]) > order(other[1]) end)
for _, call in ipairs(back) do
  local list, message = string.match(call[2], '^([^\n]*)\n(.*)$')
  redis.call('RPUSH', ARGV[4] .. list, message)
  redis.call('HDEL', KEYS[2], call[1])
end
if ARGV[2] == '0' then redis.call('DEL', KEYS[2]) else redis.call('HSET', KEYS[2], 'connection', ARGV[3]) end
return #back
