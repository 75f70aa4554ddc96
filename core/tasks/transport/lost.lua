-- A PRELUDE: counts how often a call has lost its worker. Other scripts begin with this text.
--
-- Returns whether that was once too often: a call runs three times at most because of lost workers.
local function lost(prefix, id)
  if not id or id == '' then return false end
  local key = prefix .. 'core-losses-' .. id
  local times = redis.call('INCR', key)
  redis.call('EXPIRE', key, 604800)
  return times >= 3
end
local LOST = 'lost its worker 3 times while it ran'
