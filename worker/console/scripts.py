"""What several consoles do to the queues at once, as Lua that Redis runs in one piece each.

KEYS[1] is the prefix of all keys here, which stand on one node (redis_scripts.py). What there is below it:

task:<id>          hash: verdict (JSON), queue, order, decided_ms, needed, given, share, state (waiting, held, pending,
                   done), holder, token, held_ms; truth of a golden item; appeal;
                   lead_ms: since when a lead is to decide it
opinions:<id>      hash: who has decided it, and what
wait:<queue>       sorted set: tasks that nobody has seen, by order; second:<queue>: those that want another opinion
age:<queue>        sorted set: every task that is not done, by the time of its verdict
held:<who>         sorted set: tasks that somebody has on the screen or next, by the time they got them
locks              sorted set: held tasks, by the time their lock ends
skipped:<who>      set: tasks that somebody passed over
outbox, task_of, tries    hashes by review id: decisions on their way to Kafka; due: when they go
said:<review id>   the review is on Kafka: what it says, in short; undone:<review id>: its task, for a while
fed                hash: up to which server process verdicts of a partition were read into it (feed_places.py)
recent             list: the latest reviews; golden: hash of golden items, had:<who>: those that somebody has had

Every time is Redis' own, in milliseconds. Nothing here walks a whole queue: a claim looks at 50 heads of each.
"""

from __future__ import annotations

PRELUDE = """
local base = KEYS[1]
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function number(text) return tonumber(text or 0) or 0 end
local function let_go(id)
  local holder = redis.call('HGET', base .. 'task:' .. id, 'holder')
  if holder then redis.call('ZREM', base .. 'held:' .. holder, id) end
  redis.call('ZREM', base .. 'locks', id)
  redis.call('HDEL', base .. 'task:' .. id, 'holder', 'token', 'held_ms')
end
local function wait_again(id)
  local key = base .. 'task:' .. id
  let_go(id)
  local t = redis.call('HMGET', key, 'queue', 'order', 'given', 'truth')
  if not t[1] then return end
  if t[4] then redis.call('DEL', key, base .. 'opinions:' .. id) return end
  redis.call('HSET', key, 'state', 'waiting')
  local kind = number(t[3]) > 0 and 'second:' or 'wait:'
  redis.call('ZADD', base .. kind .. t[1], t[2], id)
end
local function to_queue(id, queue, order)
  local key = base .. 'task:' .. id
  local t = redis.call('HMGET', key, 'queue', 'decided_ms')
  for _, kind in ipairs({'wait:', 'second:', 'age:'}) do redis.call('ZREM', base .. kind .. t[1], id) end
  redis.call('HSET', key, 'queue', queue, 'order', order)
  redis.call('ZADD', base .. 'age:' .. queue, t[2], id)
end
local function holds(id, who, token)
  local t = redis.call('HMGET', base .. 'task:' .. id, 'state', 'holder', 'token')
  return t[1] == 'held' and t[2] == who and t[3] == token
end
"""

# id, queue, order, decided_ms, needed, share, verdict, most, '1' to look for near duplicates, order of the conflict
# queue -> 1 new, 0 there already, -1 the queue is full. Of what Redis knows the reviews alone (it had lost the rest)
# those opinions are wanted that are missing.
ADD = (
    PRELUDE
    + """
local id, queue, order = ARGV[1], ARGV[2], ARGV[3]
local key = base .. 'task:' .. id
if redis.call('HEXISTS', key, 'verdict') == 1 then return 0 end
local given, said, kinds = number(redis.call('HGET', key, 'given')), {}, 0
for _, decision in ipairs(redis.call('HVALS', base .. 'opinions:' .. id)) do
  if not said[decision] then kinds = kinds + 1 end
  said[decision] = true
end
local contested = given > 1 and given == number(ARGV[5]) and kinds > 1
if given >= number(ARGV[5]) and not contested then return 0 end
if redis.call('ZCARD', base .. 'age:' .. queue) >= tonumber(ARGV[8]) then return -1 end
redis.call('HSET', key, 'queue', queue, 'order', order, 'decided_ms', ARGV[4], 'needed', ARGV[5], 'share', ARGV[6],
  'verdict', ARGV[7], 'given', given, 'state', 'waiting')
redis.call('ZADD', base .. 'age:' .. queue, ARGV[4], id)
if given > 0 then
  redis.call('PERSIST', key)
  redis.call('PERSIST', base .. 'opinions:' .. id)
end
if contested then
  redis.call('HSET', key, 'needed', given + 1, 'lead', 1, 'lead_ms', now_ms())
  to_queue(id, 'conflicts', number(ARGV[10]) + number(ARGV[4]))
end
wait_again(id)
if ARGV[9] == '1' then redis.call('ZADD', base .. 'tohash', order, id) end
return 1
"""
)

# who, lock_ms, how many, nonce, golden ('1': one of them may be a golden item), alone_ms, queue... -> [id, ...] held.
# What a lead decided already is theirs again in a lead's queue, once no other lead took it for alone_ms.
CLAIM = (
    PRELUDE
    + """
local who, lock_ms, many, nonce = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local alone_ms, now = tonumber(ARGV[6]), now_ms()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. 'locks', '-inf', now, 'LIMIT', 0, 50)) do wait_again(id) end
local got = {}
for _, id in ipairs(redis.call('ZRANGE', base .. 'held:' .. who, 0, -1)) do
  if redis.call('HGET', base .. 'task:' .. id, 'holder') ~= who then  -- a golden one whose time is over
    redis.call('ZREM', base .. 'held:' .. who, id)
    redis.call('ZREM', base .. 'locks', id)
  elseif #got < many then
    redis.call('ZADD', base .. 'locks', now + lock_ms, id)
    table.insert(got, id)
  end
end
local function hold(id, n)
  redis.call('HSET', base .. 'task:' .. id, 'state', 'held', 'holder', who, 'token', nonce .. '.' .. n, 'held_ms', now)
  redis.call('ZADD', base .. 'locks', now + lock_ms, id)
  redis.call('ZADD', base .. 'held:' .. who, now + n, id)
  table.insert(got, id)
end
local function may_have(id, queue)
  if redis.call('SISMEMBER', base .. 'skipped:' .. who, id) == 1 then return false end
  if redis.call('HEXISTS', base .. 'opinions:' .. id, who) == 0 then return true end
  if queue ~= 'conflicts' and queue ~= 'appeals' then return false end
  local since = redis.call('HGET', base .. 'task:' .. id, 'lead_ms')
  return since and now - number(since) >= alone_ms
end
local function best()
  local found, least, key
  for q = 7, #ARGV do
    for _, kind in ipairs({'second:', 'wait:'}) do
      local place = base .. kind .. ARGV[q]
      local ids = redis.call('ZRANGE', place, 0, 49, 'WITHSCORES')
      for i = 1, #ids, 2 do
        local order = tonumber(ids[i + 1])
        if least and order >= least then break end
        if may_have(ids[i], ARGV[q]) then
          found, least, key = ids[i], order, place
          break
        end
      end
    end
  end
  return found, key
end
if ARGV[5] == '1' and #got < many then
  for _ = 1, 5 do
    local name = redis.call('HRANDFIELD', base .. 'golden')
    if not name then break end
    if redis.call('SADD', base .. 'had:' .. who, name) == 1 then
      redis.call('EXPIRE', base .. 'had:' .. who, 7776000)
      local item = cjson.decode(redis.call('HGET', base .. 'golden', name))
      local id = 'golden-' .. nonce
      redis.call('HSET', base .. 'task:' .. id, 'queue', item.queue, 'order', 0, 'decided_ms', now, 'needed', 1,
        'share', 1, 'verdict', item.verdict, 'given', 0, 'truth', item.truth)
      redis.call('EXPIRE', base .. 'task:' .. id, 86400)
      hold(id, #got)
      break
    end
  end
end
while #got < many do
  local id, key = best()
  if not id then break end
  redis.call('ZREM', key, id)
  hold(id, #got)
end
return got
"""
)

# who, lock_ms, id, token, id, token... -> [id, ...] still held
RENEW = (
    PRELUDE
    + """
local kept = {}
for i = 3, #ARGV, 2 do
  if holds(ARGV[i], ARGV[1], ARGV[i + 1]) then
    redis.call('ZADD', base .. 'locks', now_ms() + tonumber(ARGV[2]), ARGV[i])
    table.insert(kept, ARGV[i])
  end
end
return kept
"""
)

# who, id, token, how (release, skip, move), queue and priority's order of a move -> 1, or 0 where it is not theirs
GIVE_BACK = (
    PRELUDE
    + """
local who, id, how = ARGV[1], ARGV[2], ARGV[4]
if not holds(id, who, ARGV[3]) then return 0 end
local key = base .. 'task:' .. id
if how == 'skip' then
  redis.call('SADD', base .. 'skipped:' .. who, id)
  redis.call('EXPIRE', base .. 'skipped:' .. who, 3600)
  local t = redis.call('HMGET', key, 'order', 'decided_ms')
  redis.call('HSET', key, 'order', number(t[1]) - number(t[2]) + now_ms())
elseif how == 'move' and redis.call('HEXISTS', key, 'truth') == 0 then
  to_queue(id, ARGV[5], number(ARGV[6]) + number(redis.call('HGET', key, 'decided_ms')))
end
wait_again(id)
return 1
"""
)

# who, id, token, review_id, event, undo_ms, decision -> ok, same (it was taken already), gone, not_yours
DECIDE = (
    PRELUDE
    + """
local who, id, review = ARGV[1], ARGV[2], ARGV[4]
local key = base .. 'task:' .. id
if redis.call('HEXISTS', base .. 'outbox', review) == 1 or redis.call('EXISTS', base .. 'said:' .. review) == 1 then
  return 'same'
end
if redis.call('EXISTS', key) == 0 then return 'gone' end
if not holds(id, who, ARGV[3]) then return 'not_yours' end
let_go(id)
local before = redis.call('HGET', base .. 'opinions:' .. id, who)
redis.call('HSET', key, 'state', 'pending', 'review_id', review, 'before', before or '')
redis.call('HSET', base .. 'opinions:' .. id, who, ARGV[7])
redis.call('HSET', base .. 'outbox', review, ARGV[5])
redis.call('HSET', base .. 'task_of', review, id)
redis.call('ZADD', base .. 'due', now_ms() + tonumber(ARGV[6]), review)
return 'ok'
"""
)

# who, review_id, lock_ms, token -> id of the task, held again; '' where it is too late or not theirs. Asked once more,
# it answers the same.
UNDO = (
    PRELUDE
    + """
local who, review = ARGV[1], ARGV[2]
local undone = redis.call('GET', base .. 'undone:' .. review)
if undone then
  return redis.call('HGET', base .. 'task:' .. undone, 'holder') == who and undone or ''
end
local id = redis.call('HGET', base .. 'task_of', review)
if not id or number(redis.call('HGET', base .. 'tries', review)) > 0 then return '' end
local key = base .. 'task:' .. id
if redis.call('HGET', key, 'review_id') ~= review or redis.call('HGET', key, 'state') ~= 'pending' then return '' end
if cjson.decode(redis.call('HGET', base .. 'outbox', review)).reviewer ~= who then return '' end
for _, name in ipairs({'outbox', 'task_of', 'tries'}) do redis.call('HDEL', base .. name, review) end
redis.call('ZREM', base .. 'due', review)
local before = redis.call('HGET', key, 'before')
if before and before ~= '' then
  redis.call('HSET', base .. 'opinions:' .. id, who, before)
else
  redis.call('HDEL', base .. 'opinions:' .. id, who)
end
local now = now_ms()
redis.call('HSET', key, 'state', 'held', 'holder', who, 'token', ARGV[4], 'held_ms', now)
redis.call('ZADD', base .. 'locks', now + tonumber(ARGV[3]), id)
redis.call('ZADD', base .. 'held:' .. who, 0, id)
redis.call('SET', base .. 'undone:' .. review, id, 'EX', 600)
return id
"""
)

# lease_ms, how many -> review_id, event, tries, ... of decisions that are due; others do not get them for so long
TAKE = (
    PRELUDE
    + """
local now = now_ms()
local taken = {}
for _, review in ipairs(redis.call('ZRANGEBYSCORE', base .. 'due', '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))) do
  redis.call('ZADD', base .. 'due', now + tonumber(ARGV[1]), review)
  table.insert(taken, review)
  table.insert(taken, redis.call('HGET', base .. 'outbox', review))
  table.insert(taken, redis.call('HINCRBY', base .. 'tries', review, 1))
end
return taken
"""
)

# review_id, id of the task ('' of a golden item: it has one of its own), who, decision, event, keep_s, order of the
# conflict queue, what was said in short -> what became of the task: done, second, conflict, or '' where it was known.
# The review is on Kafka: however little Redis remembers, this is what it knows from now on.
APPLY = (
    PRELUDE
    + """
local review, who, keep = ARGV[1], ARGV[3], tonumber(ARGV[6])
local id = redis.call('HGET', base .. 'task_of', review) or ARGV[2]
local key, opinions = base .. 'task:' .. id, base .. 'opinions:' .. id
for _, name in ipairs({'outbox', 'task_of', 'tries'}) do redis.call('HDEL', base .. name, review) end
redis.call('ZREM', base .. 'due', review)
if not redis.call('SET', base .. 'said:' .. review, ARGV[8], 'NX', 'EX', keep) then return '' end
redis.call('LPUSH', base .. 'recent', ARGV[5])
redis.call('LTRIM', base .. 'recent', 0, 4999)
if id == '' then return 'done' end
if redis.call('HEXISTS', key, 'truth') == 1 then
  let_go(id)
  redis.call('DEL', key, opinions)
  return 'done'
end
redis.call('HSET', opinions, who, ARGV[4])
local given = redis.call('HINCRBY', key, 'given', 1)
let_go(id)
local t = redis.call('HMGET', key, 'needed', 'queue', 'decided_ms', 'lead')
local queue = t[2]
if not queue then
  redis.call('HSET', key, 'state', 'done')
  redis.call('EXPIRE', key, keep)
  redis.call('EXPIRE', opinions, keep)
  return 'done'
end
for _, kind in ipairs({'wait:', 'second:'}) do redis.call('ZREM', base .. kind .. queue, id) end
if given < number(t[1]) then
  wait_again(id)
  return 'second'
end
local said = {}
local kinds = 0
for _, decision in ipairs(redis.call('HVALS', opinions)) do
  if not said[decision] then kinds = kinds + 1 end
  said[decision] = true
end
if kinds > 1 and not t[4] then
  redis.call('HSET', key, 'needed', given + 1, 'lead', 1, 'lead_ms', now_ms())
  to_queue(id, 'conflicts', number(ARGV[7]) + number(t[3]))
  wait_again(id)
  return 'conflict'
end
redis.call('HSET', key, 'state', 'done')
redis.call('ZREM', base .. 'age:' .. queue, id)
redis.call('EXPIRE', key, keep)
redis.call('EXPIRE', opinions, keep)
return 'done'
"""
)

# id, order of the appeals queue, who appeals, note -> 1 it waits for a lead, 0 where the task is not done, or not
# remembered, 2 where a lead has decided it since this very appeal
APPEAL = (
    PRELUDE
    + """
local id = ARGV[1]
local key = base .. 'task:' .. id
local t = redis.call('HMGET', key, 'state', 'given', 'decided_ms', 'verdict', 'appealed_by', 'appeal_note')
local same = t[5] == ARGV[3] and t[6] == ARGV[4]
if same and t[1] then return t[1] == 'done' and 2 or 1 end
if t[1] ~= 'done' or not t[4] then return 0 end
redis.call('PERSIST', key)
redis.call('PERSIST', base .. 'opinions:' .. id)
redis.call('HSET', key, 'needed', number(t[2]) + 1, 'lead', 1, 'appeal', 1, 'appealed_by', ARGV[3],
  'appeal_note', ARGV[4], 'lead_ms', now_ms())
to_queue(id, 'appeals', number(ARGV[2]) + number(t[3]))
wait_again(id)
return 1
"""
)

# Of one key alone, the hash of an image's review: decided_at, seconds to live, field, value, ... -> 1 where it is newer
STORE = """
local before = redis.call('HGET', KEYS[1], 'decided_at')
if before and before > ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
if ARGV[2] == '0' then redis.call('PERSIST', KEYS[1]) else redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return 1
"""

# name of a counter, seconds -> how often it was counted in them
COUNT = """
local n = redis.call('INCR', KEYS[1] .. ARGV[1])
if n == 1 then redis.call('EXPIRE', KEYS[1] .. ARGV[1], ARGV[2]) end
return n
"""

# name of a counter: one less, where it is still counted
UNCOUNT = """
local key = KEYS[1] .. ARGV[1]
if redis.call('EXISTS', key) == 1 then return redis.call('DECR', key) end
return 0
"""

SCRIPTS = {
    "add": ADD,
    "claim": CLAIM,
    "renew": RENEW,
    "give_back": GIVE_BACK,
    "decide": DECIDE,
    "undo": UNDO,
    "take": TAKE,
    "apply": APPLY,
    "appeal": APPEAL,
    "store": STORE,
    "count": COUNT,
    "uncount": UNCOUNT,
}
