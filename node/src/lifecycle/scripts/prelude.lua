-- Lifecycle events: an entry and the event about it are written in one script.
--
-- A step is "a client or channel begins" or "ends", as one node sees it. A holder is a node from the moment that it
-- registers here until it is fenced.
--
-- The keys, with `broker.prefix` in the place of "causeway":
-- causeway:{lc}:events     the stream of events
-- causeway:{lc}:number     the number of the last event
-- causeway:{lc}:holders    the lease of each holder, by its name
-- causeway:{lc}:steps:H    how many steps of holder H have been entered
-- causeway:{lc}:dead       fenced holders, whose entries are being ended, by when they were fenced
-- causeway:{lc}:at:H       the entries of holder H: "u" and a client, with its session, user, transport and node as JSON;
--                          or "c" and a channel
-- causeway:{lc}:in:C       the holders that have subscribers of channel C
-- causeway:{lc}:ending     ends that wait for a reconnect, by when they are due: "u" and a session, or "c" and a channel
-- causeway:{lc}:ended      the `disconnected` events of these sessions
-- causeway:{lc}:back:U     sessions of user U that a reconnect continues, the oldest first
-- causeway:{lc}:delivery   the node that delivers events to the application
-- causeway:{lc}:delivered  the last event that the application has taken: its entry in the stream, and its number
local prefix = string.sub(KEYS[1], 1, -1 - #'events')
local coalesce, keep = tonumber(table.remove(ARGV, 1)), table.remove(ARGV, 1)
local seconds = redis.call('TIME')
local now = seconds[1] * 1000 + math.floor(seconds[2] / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

local function emit(event)
  local number = redis.call('INCR', prefix .. 'number')
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', keep, '*', 'number', number, 'time', whole(now), unpack(event))
end

local function wait(member)
  redis.call('ZADD', prefix .. 'ending', whole(now + coalesce), member)
end

-- Whether what was about to end continues.
local function continues(member)
  return redis.call('ZREM', prefix .. 'ending', member) == 1
end

local function end_client(entries, client, may_continue)
  local entry = redis.call('HGET', entries, 'u' .. client)
  if not entry then
    return
  end
  redis.call('HDEL', entries, 'u' .. client)
  local session, user, transport, node = unpack(cjson.decode(entry))
  local event = {
    'type', 'disconnected', 'client', client, 'user', user, 'session', session, 'transport', transport, 'node', node,
  }
  if coalesce == 0 or user == '' or not may_continue then
    emit(event)
    return
  end
  wait('u' .. session)
  redis.call('HSET', prefix .. 'ended', session, cjson.encode(event))
  redis.call('RPUSH', prefix .. 'back:' .. user, session)
  redis.call('PEXPIRE', prefix .. 'back:' .. user, coalesce + 60000)
end

local function end_channel(entries, holder, channel)
  if redis.call('HDEL', entries, 'c' .. channel) == 0 then
    return
  end
  redis.call('SREM', prefix .. 'in:' .. channel, holder)
  if redis.call('EXISTS', prefix .. 'in:' .. channel) == 1 then
    return
  end
  if coalesce == 0 then
    emit({ 'type', 'vacated', 'channel', channel })
  else
    wait('c' .. channel)
  end
end

-- From now on the holder enters nothing more, and `tend` ends its entries. Its steps stay for a node that has slept and
-- asks how many of them were entered.
local function fence(holder)
  redis.call('HDEL', prefix .. 'holders', holder)
  redis.call('PEXPIRE', prefix .. 'steps:' .. holder, 86400000)
  redis.call('ZADD', prefix .. 'dead', whole(now), holder)
end

-- Whether the holder may enter its steps from `position` on. If fewer than that are known, this Redis has lost some (a
-- failover to a replica that was behind): its entries cannot be relied on, so the holder begins anew.
local function may_enter(holder, position)
  if redis.call('HEXISTS', prefix .. 'holders', holder) == 0 then
    return false
  end
  if tonumber(redis.call('GET', prefix .. 'steps:' .. holder) or 0) < position then
    fence(holder)
    return false
  end
  return true
end

