-- Counts calls that are kept in a hash, by the list that each came from; a look at a part of the hash.
--
-- KEYS  the hash   ARGV  where to go on, as HSCAN wants it
-- Returns where to go on the next time, '0' at the end, and {list: count} as JSON
--
-- A hash of ours keeps '<list>\n<message>', with fields beside them that are no calls; kombu's a JSON array whose last
-- word is the queue.
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 1000)
local counts = {}
for at = 1, #found[2], 2 do
  local field, kept = found[2][at], found[2][at + 1]
  if field ~= 'connection' and field ~= 'waiting' then
    local list = string.sub(kept, 1, 1) == '[' and string.match(kept, '"([^"]*)"%]$') or string.match(kept, '^([^\n]*)\n')
    if list then counts[list] = (counts[list] or 0) + 1 end
  end
end
return {found[1], cjson.encode(counts)}
