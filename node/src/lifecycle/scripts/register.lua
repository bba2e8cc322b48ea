-- Registers a holder, once all entries of the one that it replaces are ended: so the end of a client that lives on is told
-- before its new beginning.
--
-- ARGV: the holder, its lease, the holder that it replaces or '', how many of the node's steps were entered as far as it
-- knows.
-- Returns whether it is registered, and how many steps were entered.
local holder, lease, previous, position = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if previous ~= '' then
  if redis.call('HEXISTS', prefix .. 'holders', previous) == 1 or redis.call('ZSCORE', prefix .. 'dead', previous) then
    return { 0, 0 }
  end
  position = math.max(position, tonumber(redis.call('GET', prefix .. 'steps:' .. previous) or 0))
end
redis.call('HSET', prefix .. 'holders', holder, lease)
redis.call('SET', prefix .. 'steps:' .. holder, whole(position))
return { 1, position }
