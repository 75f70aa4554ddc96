-- Says over a new connection what a worker still holds; everything else that is recorded as its own goes back.
--
-- KEYS  workers, held
-- ARGV  worker, seconds of its lease (0: it ends), number of the new connection, the global key prefix,
--       then the records that it keeps, or where it ends, the lists that it has waited for
-- Returns how many calls were put back.
even_if_full(KEYS[2])
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%.6f', time[1] + time[2] / 1000000 + ARGV[2]), ARGV[1])
local kept = {connection = true, waiting = true}
for i = 5, #ARGV do kept[ARGV[i]] = true end
local calls, others = redis.call('HGETALL', KEYS[2]), {}
for i = 1, #calls, 2 do
  if not kept[calls[i]] then others[#others + 1] = {calls[i], calls[i + 1]} end
end
local count = all_back(ARGV[4], KEYS[2], others)
-- A worker that ends says 0: what its connections still wait for takes nothing, until the server notices their end.
redis.call('HSET', KEYS[2], 'connection', ARGV[3])
if ARGV[2] == '0' then
  redis.call('HDEL', KEYS[2], 'waiting')
  for i = 5, #ARGV do set_back(ARGV[4], ARGV[i]) end
  if redis.call('HLEN', KEYS[2]) == 1 then redis.call('EXPIRE', KEYS[2], 60) end
end
return count
