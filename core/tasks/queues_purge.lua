-- Drops calls that wait in a list, as many as it is told; calls of their kind may be queued again. After calls.lua.
--
-- KEYS  the list   ARGV  the global key prefix, how many at most
-- Returns how many, then the ids of those that have a result
local calls = redis.call('RPOP', KEYS[1], ARGV[2]) or {}
local answer = {#calls}
for _, call in ipairs(calls) do
  local id = header(call, 'id')
  unlock(ARGV[1], header(call, 'core-unique'), id)
  if id and not string.find(call, '"ignore_result": true', 1, true) then answer[#answer + 1] = id end
end
return answer
