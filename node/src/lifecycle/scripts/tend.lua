-- Emits some of the ends that are due, and ends some entries of a fenced holder. Clients of a killed node that have
-- reconnected did so before its end was known, so their old sessions end at once.
--
-- Returns whether there may be more.
local ending = prefix .. 'ending'
local due = redis.call('ZRANGE', ending, '-inf', whole(now), 'BYSCORE', 'LIMIT', 0, 128)
for _, member in ipairs(due) do
  redis.call('ZREM', ending, member)
  local kind, name = string.sub(member, 1, 1), string.sub(member, 2)
  if kind == 'c' then
    emit({ 'type', 'vacated', 'channel', name })
  else
    local event = redis.call('HGET', prefix .. 'ended', name)
    redis.call('HDEL', prefix .. 'ended', name)
    if event then
      emit(cjson.decode(event))
    end
  end
end
local holder = redis.call('ZRANGE', prefix .. 'dead', 0, 0)[1]
if not holder then
  return #due == 128 and 1 or 0
end
local entries = prefix .. 'at:' .. holder
for _, name in ipairs(redis.call('HRANDFIELD', entries, 128)) do
  local kind, rest = string.sub(name, 1, 1), string.sub(name, 2)
  if kind == 'c' then
    end_channel(entries, holder, rest)
  else
    end_client(entries, rest, false)
  end
end
if redis.call('EXISTS', entries) == 0 then
  redis.call('ZREM', prefix .. 'dead', holder)
end
return 1
