-- Stores one result for a worker's pool process, which holds no calls itself.
--
-- KEYS  result, and the worker's held calls unless they are in another database
-- ARGV  seconds to keep it (0 is for ever), what is stored, record of the call ('' counts as held)
-- Returns 1 when it was stored, 0 when a final state stays.
return store(KEYS[1], ARGV[1], ARGV[2], function()
  return ARGV[3] == '' or not KEYS[2] or redis.call('HEXISTS', KEYS[2], ARGV[3]) == 1
end)
