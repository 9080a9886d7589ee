"""Near duplicates: scripts that find them and hand them out together (scripts.py says how scripts are run).

tohash             sorted set: tasks whose picture nobody has looked at yet, by order; hashing: by when they are again
near:<band>:<hex>  list: the latest leaders of groups with these 16 bits of the hash: its 16 digits, then the task's id
group:<leader>     set: tasks of a group, its leader's name among them; task:<id> has `group`

A picture joins the group of a leader within the distance, and is compared with leaders alone: groups do not grow in
chains. Two hashes that differ in 3 bits have one of 4 bands in common for sure, others mostly; of a band 32 leaders are
looked at. So a look takes the same however many wait.
"""

from __future__ import annotations

from worker.console.scripts import PRELUDE

# lease_ms -> id of a task whose picture is to be looked at, '' where there is none
NEXT_UNHASHED = (
    PRELUDE
    + """
local now = now_ms()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. 'hashing', '-inf', now, 'LIMIT', 0, 10)) do
  redis.call('ZREM', base .. 'hashing', id)  -- whoever had it died
  redis.call('ZADD', base .. 'tohash', 0, id)
end
for _ = 1, 20 do
  local id = redis.call('ZPOPMIN', base .. 'tohash')[1]
  if not id then return '' end
  local state = redis.call('HGET', base .. 'task:' .. id, 'state')
  if state == 'waiting' or state == 'held' then
    redis.call('ZADD', base .. 'hashing', now + tonumber(ARGV[1]), id)
    return id
  end
end
return ''
"""
)

# id, hash ('' where there is no picture), distance, most in a group, keep_s -> the leader's id, '' where it is alone
JOIN = (
    PRELUDE
    + """
local id, hash, keep = ARGV[1], ARGV[2], tonumber(ARGV[5])
local key = base .. 'task:' .. id
for _, place in ipairs({'hashing', 'tohash'}) do redis.call('ZREM', base .. place, id) end
if hash == '' or redis.call('EXISTS', key) == 0 then return '' end
local known = redis.call('HGET', key, 'group')
if known then return known end
local function bits(one, other)
  local count = 0
  for half = 1, 9, 8 do
    local v = bit.bxor(tonumber(one:sub(half, half + 7), 16), tonumber(other:sub(half, half + 7), 16))
    while v ~= 0 do
      v = bit.band(v, v - 1)
      count = count + 1
    end
  end
  return count
end
local function leader()
  local found, least = nil, tonumber(ARGV[3]) + 1
  for band = 0, 3 do
    local place = base .. 'near:' .. band .. ':' .. hash:sub(4 * band + 1, 4 * band + 4)
    for _, entry in ipairs(redis.call('LRANGE', place, 0, 31)) do
      local apart, other = bits(hash, entry:sub(1, 16)), entry:sub(17)
      if apart < least and other ~= id and redis.call('EXISTS', base .. 'task:' .. other) == 1
        and redis.call('SCARD', base .. 'group:' .. other) < tonumber(ARGV[4]) then
        found, least = other, apart
      end
    end
  end
  return found
end
local first = leader()
if first then
  redis.call('SADD', base .. 'group:' .. first, first, id)
  redis.call('EXPIRE', base .. 'group:' .. first, keep)
  redis.call('HSET', base .. 'task:' .. first, 'group', first)
  redis.call('HSET', key, 'group', first)
  return first
end
for band = 0, 3 do
  local place = base .. 'near:' .. band .. ':' .. hash:sub(4 * band + 1, 4 * band + 4)
  redis.call('LPUSH', place, hash .. id)
  redis.call('LTRIM', place, 0, 31)
  redis.call('EXPIRE', place, keep)
end
return ''
"""
)

_MEMBERS = (
    PRELUDE
    + """
local function may_have(id, who, first_queue)
  local t = redis.call('HMGET', base .. 'task:' .. id, 'state', 'queue', 'holder', 'lead')
  if not t[1] or t[1] == 'done' then return nil end
  if t[4] or redis.call('HEXISTS', base .. 'opinions:' .. id, who) == 1 then return nil end
  if t[1] == 'held' then return t[3] == who and t[2] or nil end
  if t[1] ~= 'waiting' then return nil end
  for q = first_queue, #ARGV do
    if ARGV[q] == t[2] then return t[2] end
  end
  return nil
end
local function members(id, who, first_queue)
  local found = {}
  local group = redis.call('HGET', base .. 'task:' .. id, 'group')
  if not group then return found end
  for _, other in ipairs(redis.call('SMEMBERS', base .. 'group:' .. group)) do
    if other ~= id then
      local queue = may_have(other, who, first_queue)
      if queue then table.insert(found, {other, queue}) end
    end
  end
  return found
end
"""
)

# who, id, queue... -> how many others of its group `who` could have
SIBLINGS = _MEMBERS + "return #members(ARGV[2], ARGV[1], 3)"

# who, id, token, lock_ms, nonce, most, queue... -> ids of others of its group, which `who` has now
HOLD_GROUP = (
    _MEMBERS
    + """
local who, id, now = ARGV[1], ARGV[2], now_ms()
local got = {}
if not holds(id, who, ARGV[3]) then return got end
for n, found in ipairs(members(id, who, 7)) do
  if n > tonumber(ARGV[6]) then break end
  local other = found[1]
  local key = base .. 'task:' .. other
  if redis.call('HGET', key, 'holder') ~= who then
    for _, kind in ipairs({'wait:', 'second:'}) do redis.call('ZREM', base .. kind .. found[2], other) end
    redis.call('HSET', key, 'state', 'held', 'holder', who, 'token', ARGV[5] .. '.' .. n, 'held_ms', now)
    redis.call('ZADD', base .. 'held:' .. who, now + 100 + n, other)
  end
  redis.call('ZADD', base .. 'locks', now + tonumber(ARGV[4]), other)
  table.insert(got, other)
end
return got
"""
)

SCRIPTS = {
    "next_unhashed": NEXT_UNHASHED,
    "join": JOIN,
    "siblings": SIBLINGS,
    "hold_group": HOLD_GROUP,
}
