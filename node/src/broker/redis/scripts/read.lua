-- Reads a part of a channel's stream, and where the stream is at that moment.
--
-- KEYS: the stream, its meta.
-- ARGV: how long the position is kept (in milliseconds), the epoch that begins if one has to, how many are
-- wanted ('': all), from which end (asc, desc), and epoch and offset of the position to start behind, if any.
-- Returns epoch, offset and entries. A position of another epoch leads to none.
local stream, meta = KEYS[1], KEYS[2]
local meta_ttl, new_epoch, limit, order, since_epoch, since_offset = unpack(ARGV)
local epoch, offset = position(meta, stream, new_epoch, meta_ttl)
if limit == '0' or (since_epoch and since_epoch ~= epoch) then
  return { epoch, offset, {} }
end
local behind = since_epoch and '(' .. since_offset .. '-0'
local range
if order == 'asc' then
  range = { 'XRANGE', stream, behind or '-', '+' }
elseif since_offset == '0' then
  return { epoch, offset, {} }
else
  range = { 'XREVRANGE', stream, behind or '+', '-' }
end
if limit ~= '' then
  table.insert(range, 'COUNT')
  table.insert(range, limit)
end
return { epoch, offset, redis.call(unpack(range)) }
