-- Take calls off the dead list, except those that came onto it later than a moment.
-- ARGV: prefix, the moment as a unix time or '+inf', ids. Returns how many were taken off.

local prefix, moment, purged = ARGV[1], tonumber(ARGV[2]), 0
for i = 3, #ARGV do
  local at = redis.call('ZSCORE', prefix .. 'core-dead', ARGV[i])
  at = at or redis.call('ZSCORE', prefix .. 'core-failed', ARGV[i])
  if at and tonumber(at) <= moment then
    strike(prefix, {ARGV[i]})
    purged = purged + 1
  end
end
return purged
