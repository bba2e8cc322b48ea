-- Reads a part of a channel's stream, and where the stream is at that moment.
--
-- KEYS: the stream, its meta.
-- ARGV: how long the position is kept (in milliseconds), the epoch that begins if one has to, how many are
-- wanted at most, and how many bytes, from which end (asc, desc), and epoch and offset of the position to start
-- behind, if any.
-- Returns epoch, offset, entries, 1 if a limit may have left some out, and the moment at which the stream began, if
-- that is known. A position of another epoch leads to none. The first entry comes whatever its size. A stream that is
-- not there is not begun by being read: its epoch is this moment.
local stream, meta = KEYS[1], KEYS[2]
local meta_ttl, new_epoch, failover, limit, bytes_max, order, since_epoch, since_offset = unpack(ARGV)
local server, exists, epoch, offset, is_same_server, origin = stream_of(meta, failover)
local entries = {}
if not exists then
  local moment = unborn(server, failover, meta_ttl)
  return { moment, '0', entries, 0, moment }
end
if not is_same_server then
  epoch, origin = new_epoch, ''
  begin(meta, epoch, server, failover, origin)
end
redis.call('PEXPIRE', meta, meta_ttl)
if since_epoch and string.sub(since_epoch, 1, 1) == 'u' then
  since_epoch = epoch -- The node sees by the moment at which the stream began whether it is the same.
end
limit, bytes_max = tonumber(limit), tonumber(bytes_max)
if limit == 0 or (since_epoch and since_epoch ~= epoch) or (order == 'desc' and since_offset == '0') then
  return { epoch, offset, entries, 0, origin }
end
local command, from, to = 'XRANGE', '-', '+'
if order == 'desc' then
  command, from, to = 'XREVRANGE', '+', '-'
end
if since_offset then
  from = '(' .. since_offset .. '-0'
end
-- In pieces, so that little more is read than is returned: as many as fit if none is larger than the largest yet.
local bytes, wanted, largest = 0, 8, 1
while #entries < limit do
  wanted = math.min(wanted, limit - #entries)
  local found = redis.call(command, stream, from, to, 'COUNT', wanted)
  for _, entry in ipairs(found) do
    local size = #entry[2][2]
    if 0 < #entries and bytes_max < bytes + size then
      return { epoch, offset, entries, 1, origin }
    end
    bytes, largest = bytes + size, math.max(largest, size)
    entries[#entries + 1] = entry
  end
  if #found < wanted then
    return { epoch, offset, entries, 0, origin }
  end
  from = '(' .. found[#found][1]
  wanted = math.max(1, math.min(256, math.floor((bytes_max - bytes) / largest)))
end
return { epoch, offset, entries, 1, origin }
