-- Takes calls out of their lists and records them as held by one worker, in one step.
--
-- KEYS  held, delayed, delayed calls, then the lists: those of one priority together, the most urgent first
-- ARGV  how many calls, how many queues, number of the worker's connection, number of this take,
--       1 to look for calls whose time has come, the prefix of cancellation marks ('' looks for none),
--       the global key prefix
-- Returns {lists may hold more, seconds until the next delayed call is due or '',
--          then for each call: number of its list, the message as it was, its record, whether it was cancelled}
--
-- A message is not read here, so that none can be lost by being bad. Only its eta and id are looked for.
-- What is parked has one name for each call, its id, by which the mark of a cancellation finds it.
local held, delayed, waiting = KEYS[1], KEYS[2], KEYS[3]
local room, queues, take, prefix = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[4], ARGV[7]

-- The lists without their prefix, and where what has woken a worker was set down: that is taken first.
local lists, nexts = {}, {}
for number = 1, #KEYS - 3 do
  lists[number] = string.sub(KEYS[3 + number], #prefix + 1)
  nexts[number] = prefix .. 'core-next-' .. lists[number]
end

-- A connection that was given up may still be waiting at a server that has not noticed.
local connection = redis.call('HGET', held, 'connection')
if connection and connection ~= ARGV[3] then
  for _, list in ipairs(lists) do set_back(prefix, list) end
  return {0, ''}
end

local now
local function clock()
  if not now then
    local time = redis.call('TIME')
    now = time[1] + time[2] / 1000000
  end
  return now
end

local function days(year, month, day)  -- since 1970-01-01
  if month <= 2 then year = year - 1 end
  local era = math.floor(year / 400)
  local of_era = year - era * 400
  local of_year = math.floor((153 * ((month + 9) % 12) + 2) / 5) + day - 1
  return era * 146097 + of_era * 365 + math.floor(of_era / 4) - math.floor(of_era / 100) + of_year - 719468
end

-- When a message is due, as a Unix time; nil when it is due at once, or says so in a way that a worker is to read.
local function due(message)
  local eta = header(message, 'eta')
  if not eta then return nil end
  local y, mo, d, h, mi, s, rest = string.match(eta, '^(%d%d%d%d)%-(%d%d)%-(%d%d)[T ](%d%d):(%d%d):(%d%d)(.*)$')
  if not y then return nil end
  local fraction, zone = string.match(rest, '^(%.?%d*)(.*)$')
  local offset = 0
  if zone ~= 'Z' then
    local sign, hours, minutes = string.match(zone, '^([+-])(%d%d):?(%d%d)$')
    if not sign then return nil end
    offset = (hours * 3600 + minutes * 60) * (sign == '-' and -1 or 1)
  end
  local time = days(tonumber(y), tonumber(mo), tonumber(d)) * 86400 + h * 3600 + mi * 60 + s - offset
  time = time + (tonumber('0' .. fraction) or 0)
  if time <= clock() or time > clock() + 3155760000 then return nil end
  return time
end

local until_next = ''
if ARGV[5] == '1' then
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if first[2] and tonumber(first[2]) <= clock() then
    local ids = redis.call('ZRANGE', delayed, '-inf', string.format('%.6f', clock()), 'BYSCORE', 'LIMIT', 0, 500)
    local gone = {}
    for i = #ids, 1, -1 do  -- the earliest is pushed last, and leaves first
      local call = redis.call('HGET', waiting, ids[i])
      if not call or back(prefix, call, true) then
        gone[#gone + 1] = ids[i]
      else
        redis.call('ZADD', delayed, string.format('%.6f', clock() + 60), ids[i])
      end
    end
    if #gone > 0 then
      redis.call('HDEL', waiting, unpack(gone))
      redis.call('ZREM', delayed, unpack(gone))
    end
    first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  end
  if first[2] then until_next = string.format('%.3f', math.max(0, first[2] - clock())) end
end

local answer, ids, count = {0, until_next}, {}, 0
local looked = 0
local next_left = redis.call('EXISTS', unpack(nexts))
local any_next = next_left > 0
-- A lone call is what has woken a worker: its lists are empty then.
local any_list = not any_next or redis.call('EXISTS', unpack(KEYS, 4)) > 0

-- Takes up to `most` calls of one list out of a key; returns how many, and whether it may hold more.
local function out_of(key, number, most)
  local list = lists[number]
  local taken = 0
  while taken < most do
    if looked >= 1000 then return taken, true end
    local asked = most - taken
    local messages = redis.pcall('RPOP', key, asked)
    if not messages or messages.err then return taken, false end
    local records, parked = {}, {}
    for _, message in ipairs(messages) do
      looked = looked + 1
      local time = due(message)
      if time then
        local id = header(message, 'id') or ''
        if id == '' or redis.call('HEXISTS', waiting, id) == 1 then
          id = id .. ':' .. string.sub(held, -8) .. ':' .. take .. ':' .. looked
        end
        redis.call('ZADD', delayed, string.format('%.6f', time), id)
        redis.call('HSET', waiting, id, list .. '\n' .. message)
        if until_next == '' or time - clock() < tonumber(until_next) then
          until_next = string.format('%.3f', time - clock())
        end
      else
        count = count + 1
        taken = taken + 1
        local record = take .. ':' .. count
        records[#records + 1] = record
        records[#records + 1] = list .. '\n' .. message
        ids[count] = ARGV[6] .. (header(message, 'id') or '')
        answer[#answer + 1] = number
        answer[#answer + 1] = message
        answer[#answer + 1] = record
        answer[#answer + 1] = 0
      end
    end
    if #records > 0 then redis.call('HSET', held, unpack(records)) end
    if #messages < asked then return taken, false end
  end
  return taken, true
end

-- Of a short list each worker takes its part only: what it cannot begin with at once, others can.
local parts = {}
local function part(there)
  return there == 1 and 1 or math.ceil(there / math.max(1, redis.call('ZCARD', prefix .. 'core-workers')))
end

local function from(number, most)
  local first, goes_on = 0, false
  if next_left > 0 then
    first, goes_on = out_of(nexts[number], number, most)
    if first > 0 and not goes_on then next_left = next_left - 1 end
  end
  local there = any_list and redis.pcall('LLEN', KEYS[3 + number])
  if type(there) ~= 'number' or there == 0 then return first, false end
  parts[number] = parts[number] or part(there)
  local asked = math.min(most - first, parts[number])
  local taken, full = out_of(KEYS[3 + number], number, asked)
  parts[number] = parts[number] - taken
  return first + taken, full and (there > asked or looked >= 1000)
end

local more = false
for first = 1, #KEYS - 3, queues do
  local left = {}
  local share = math.ceil(room / queues)
  for number = first, first + queues - 1 do
    if room > 0 then
      local taken, full = from(number, math.min(room, share))
      room = room - taken
      if full then left[#left + 1] = number end
    else
      more = true
    end
  end
  for _, number in ipairs(left) do  -- what some queues left of their share goes to the others
    if room > 0 then
      local taken, full = from(number, room)
      room = room - taken
      more = more or full
    else
      more = true
    end
  end
end
if more then answer[1] = 1 end
if any_next and room == 0 then  -- others have room, perhaps
  for _, list in ipairs(lists) do set_back(prefix, list) end
end
answer[2] = until_next

if count > 0 and ARGV[6] ~= '' and redis.call('EXISTS', unpack(ids)) > 0 then
  for number, mark in ipairs(redis.call('MGET', unpack(ids))) do
    if mark then answer[2 + number * 4] = 1 end
  end
end
return answer
