-- A PRELUDE: a call as it is kept, '<list>\n<message>'. Other scripts begin with this text.

local function split(call)
  return string.match(call, '^([^\n]*)\n(.*)$')
end

-- A header of a message that is not read otherwise. With its colon a name cannot be a value.
local function header(message, name)
  local at = string.find(message, '"' .. name .. '":', 1, true)
  return at and string.match(message, '^%s*"([^"]+)"', at + #name + 3) or nil
end

-- Puts a call into its list, at the front. One that was given out before says so from now on, as with kombu.
-- False when something else has the list's name.
local function back(prefix, call, is_new)
  local list, message = split(call)
  if not is_new and not string.find(message, '"redelivered": true', 1, true) then
    message = string.gsub(message, '^(.*"delivery_info":%s*{)(%s*")', '%1"redelivered": true, %2')
  end
  return type(redis.pcall('RPUSH', prefix .. list, message)) == 'number'
end

-- Puts {record, call} pairs of one worker back, so that what was taken first leaves first again; returns how many.
local function all_back(prefix, held, calls)
  local function order(record)
    local connection, take, number = string.match(record, '^(%d+)%.(%d+):(%d+)$')
    return connection and (connection * 2^31 + take) * 2^11 + number or 0
  end
  table.sort(calls, function(one, other) return order(one[1]) > order(other[1]) end)
  local count = 0
  for _, call in ipairs(calls) do
    if back(prefix, call[2]) then
      redis.call('HDEL', held, call[1])
      count = count + 1
    end
  end
  return count
end

-- Lets another call of its kind be queued, now that this one has ended; never in the place of one that came later.
local function unlock(prefix, lock, id)
  if not lock or not id then return end
  local holder = redis.call('GET', prefix .. lock)
  if holder and string.match(holder, '^[^\n]*') == id then redis.call('DEL', prefix .. lock) end
end

-- Puts what was set down for whoever takes next from a list into that list again.
local function set_back(prefix, list)
  local moved
  repeat
    moved = redis.pcall('LMOVE', prefix .. 'core-next-' .. list, prefix .. list, 'LEFT', 'RIGHT')
  until type(moved) ~= 'string'
end

-- A write that Redis allows when it is full. What follows in the same script is allowed then, too: a server that is
-- full has to learn what is finished, and whose lease goes on.
local function even_if_full(key)
  redis.call('HDEL', key, '')
end
