-- Put a call of the dead list back into its queue, where a new call would go, once however many ask at the same moment.
-- ARGV: prefix, id. Returns 1; 0 where the id is not on the list; -1 where its message was not kept.

local prefix, id = ARGV[1], ARGV[2]
local kept = redis.call('HGET', prefix .. 'core-dead-calls', id)
if not kept then return 0 end
local entry = cjson.decode(kept)
if type(entry.message) ~= 'string' or type(entry.list) ~= 'string' then return -1 end
strike(prefix, {id})
redis.call('DEL', prefix .. 'core-losses-' .. id, prefix .. 'core-unknown-' .. id)
redis.call('LPUSH', prefix .. entry.list, entry.message)
return 1
