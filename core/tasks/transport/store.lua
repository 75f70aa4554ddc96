-- A PRELUDE: how a result is stored. Other scripts begin with this text.
--
-- A final state stays: SUCCESS and REVOKED always; FAILURE unless it is replaced by whoever holds the call, which
-- `mine` tells. Returns 1 when the state was stored and announced, 0 when another one stays.
local function store(key, ttl, meta, mine)
  local old
  if ttl == '0' then
    old = redis.call('SET', key, meta, 'GET')
  else
    old = redis.call('SET', key, meta, 'EX', ttl, 'GET')
  end
  if old then
    local status = string.match(old, '^{"status":%s*"(%u+)"')
    local final = status == 'SUCCESS' or status == 'REVOKED' or (status == 'FAILURE' and not mine())
    if final then
      if ttl == '0' then redis.call('SET', key, old) else redis.call('SET', key, old, 'EX', ttl) end
      return 0
    end
  end
  redis.call('PUBLISH', key, meta)
  return 1
end
