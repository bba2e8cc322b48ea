-- Begins a new epoch of a stream, if a node has acknowledged a publication in it on the server that was the primary
-- before, and later than others began to use it on this one: the publication is not here, and who has subscribed here
-- since then has to be told.
--
-- KEYS: the stream, its meta.
-- ARGV: the channel on the wire, how long the position is kept (in milliseconds), the epoch that begins if one has to,
-- the number of the failover that made this server the primary, how long ago that was acknowledged (in milliseconds),
-- and the command that publishes.
-- Returns 1 if an epoch has begun.
local stream, meta = KEYS[1], KEYS[2]
local wire, meta_ttl, new_epoch, failover, age, publish = unpack(ARGV)
local server, exists, _, _, is_same_server = stream_of(meta, failover)
if exists and not is_same_server then
  return 0 -- Nobody has a position of this failover: an epoch begins with the first use.
end
if exists then
  -- By the clock of this server alone. The time on the way here makes the acknowledgement seem later than it was.
  local known = redis.call('HMGET', meta, 'began', 'failover')
  if known[1] and clock() - tonumber(age) < tonumber(known[1]) then
    return 0
  end
  if tonumber(failover) < tonumber(known[2] or '0') then
    failover = known[2]
  end
  begin(meta, new_epoch, server, failover, '')
else
  -- Somebody may have subscribed to a stream that does not exist.
  begin(meta, new_epoch, server, failover, '')
  redis.call('HSET', meta, 'offset', '0')
  redis.call('DEL', stream)
end
redis.call('PEXPIRE', meta, meta_ttl)
redis.call(publish, wire, 'r0::')
return 1
