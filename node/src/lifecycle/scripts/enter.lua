-- Enters steps.
--
-- ARGV: the holder, its node's id, the position of the first step among all of the holder, and for each step: + or -, u or
-- c, the client or channel, its user, its transport, and the node that has handed it off or ''.
-- Returns whether the holder may do so.
local holder, node, first = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not may_enter(holder, first) then
  return 0
end
local entries, steps = prefix .. 'at:' .. holder, prefix .. 'steps:' .. holder
-- A full Redis refuses the first write of a script, and later ones only if they are the first. So it is refused as a whole.
local done = tonumber(redis.call('GET', steps) or 0)
redis.call('SET', steps, whole(done))

-- Takes the client's entry away from the holders of a node, and returns its session. A node's holders begin with its instance.
local function take_from(instance, client)
  local holders = { redis.call('HKEYS', prefix .. 'holders'), redis.call('ZRANGE', prefix .. 'dead', 0, -1) }
  for _, names in ipairs(holders) do
    for _, name in ipairs(names) do
      if string.sub(name, 1, #instance + 1) == instance .. '.' then
        local theirs = prefix .. 'at:' .. name
        local entry = redis.call('HGET', theirs, 'u' .. client)
        if entry then
          redis.call('HDEL', theirs, 'u' .. client)
          return cjson.decode(entry)[1]
        end
      end
    end
  end
end

local function begin_client(client, user, transport, from)
  if redis.call('HEXISTS', entries, 'u' .. client) == 1 then
    return
  end
  local session = from ~= '' and take_from(from, client)
  if session then
    redis.call('HSET', entries, 'u' .. client, cjson.encode({ session, user, transport, node }))
    return
  end
  if user ~= '' then
    repeat
      session = redis.call('LPOP', prefix .. 'back:' .. user)
    until not session or continues('u' .. session)
  end
  if session then
    redis.call('HDEL', prefix .. 'ended', session)
  else
    session = client
    emit({
      'type', 'connected', 'client', client, 'user', user, 'session', session, 'transport', transport, 'node', node,
    })
  end
  redis.call('HSET', entries, 'u' .. client, cjson.encode({ session, user, transport, node }))
end

local function begin_channel(channel)
  if redis.call('HSET', entries, 'c' .. channel, '') == 0 then
    return
  end
  local is_first = redis.call('EXISTS', prefix .. 'in:' .. channel) == 0
  redis.call('SADD', prefix .. 'in:' .. channel, holder)
  if is_first and not continues('c' .. channel) then
    emit({ 'type', 'occupied', 'channel', channel })
  end
end

local count = (#ARGV - 3) / 6
for step = math.max(0, done - first), count - 1 do
  local at = 4 + step * 6
  local begins, kind, name = ARGV[at] == '+', ARGV[at + 1], ARGV[at + 2]
  if kind == 'c' then
    if begins then begin_channel(name) else end_channel(entries, holder, name) end
  elseif begins then
    begin_client(name, ARGV[at + 3], ARGV[at + 4], ARGV[at + 5])
  else
    end_client(entries, name, true)
  end
end
redis.call('SET', steps, whole(math.max(done, first + count)))
return 1
