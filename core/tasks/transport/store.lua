-- A PRELUDE: how a result is stored. Other scripts begin with this text.
--
-- A final state stays: SUCCESS and REVOKED always, FAILURE unless another final state comes from whoever holds the
-- call, which `mine` tells. A call that says how far it is has started, which is stored a moment later than it was.
-- Returns 1 when the state was stored and announced, 0 when another one stays.
local FINAL = {SUCCESS = true, REVOKED = true, FAILURE = true}

local function status_of(meta)
  return string.match(meta, '^{"status":%s*"(%u+)"')
end

local function store(key, ttl, meta, mine)
  local words = ttl == '0' and {key, meta, 'GET'} or {key, meta, 'GET', 'EX', ttl}
  local old = redis.pcall('SET', unpack(words))
  if type(old) == 'table' then  -- refused by a server that is full; after a write that it allows it allows this one
    redis.call('DEL', key .. ':full')
    old = redis.call('SET', unpack(words))
  end
  local before = old and status_of(old)
  local final = FINAL[before] and not (before == 'FAILURE' and FINAL[status_of(meta)] and mine())
  if final or (before == 'PROGRESS' and status_of(meta) == 'STARTED') then
    if ttl == '0' then redis.call('SET', key, old) else redis.call('SET', key, old, 'EX', ttl) end
    return 0
  end
  redis.call('PUBLISH', key, meta)
  return 1
end
