-- Publishes an event of a channel in one step with all that belongs to it.
--
-- KEYS: the stream, its meta, and the result of its idempotency key if it has one.
-- ARGV: the channel on the wire, the event's body, how many publications are kept (0: not this one), for how
-- long, how long the position is kept, the epoch that begins if one has to, how long the result is kept (all
-- times in milliseconds), the number of the failover that made the server the primary, and the command that publishes.
-- Returns offset and epoch, or the offset 0 and no epoch; and behind that how many subscribers of this server received it, if it
-- was published now and not before.
--
-- The first write is always one that a full Redis refuses: once a script has written, it may write on.
local stream, meta, result = KEYS[1], KEYS[2], KEYS[3]
local wire, body, size, ttl, meta_ttl, new_epoch, result_ttl, failover, publish = unpack(ARGV)
if result then
  local past = redis.call('GET', result)
  if past then
    return { string.match(past, '^(%d+):(.*)$') }
  end
end
local offset, epoch = '0', ''
if size ~= '0' then
  local server, exists, known_epoch, _, is_same_server = stream_of(meta, failover)
  epoch = known_epoch
  if not exists then
    epoch = new_epoch
    begin(meta, epoch, server, failover, unborn(server, failover, meta_ttl))
    redis.call('HSET', meta, 'offset', '0')
    redis.call('DEL', stream)
  elseif not is_same_server then
    epoch = new_epoch
    begin(meta, epoch, server, failover, '')
  end
  offset = string.format('%.0f', redis.call('HINCRBY', meta, 'offset', 1))
  redis.call('PEXPIRE', meta, meta_ttl)
  redis.call('XADD', stream, 'MAXLEN', size, offset .. '-0', 'p', body)
  redis.call('PEXPIRE', stream, ttl)
end
if result then
  redis.call('SET', result, offset .. ':' .. epoch, 'PX', result_ttl)
end
local received_by = redis.call(publish, wire, 'p' .. offset .. ':' .. epoch .. ':' .. body)
return { offset, epoch, received_by }
