-- Where the stream of a channel is, if there is one. A server may not have all that another one had, so then a
-- new epoch begins. A server has another replication id after each restart and each promotion (and, to no harm,
-- with its first replica), and asking for it here, in one step with all else, leaves no moment to be wrong about
-- it.
local function stream_of(meta)
  local server = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
  local known = redis.call('HMGET', meta, 'epoch', 'offset', 'server', 'origin')
  local exists = known[1] and known[2] and true
  return server, exists, known[1], known[2], known[3] == server, known[4] or ''
end
-- The moment at which a stream is not there, or begins: what it takes to tell later whether it is the first one
-- since (history/unborn.rs).
local function unborn(server, meta_ttl)
  local evicted = string.match(redis.call('INFO', 'stats'), 'evicted_keys:(%d+)') or '0'
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  return string.format('u%s.%s.%.0f.%.0f', string.sub(server, 1, 12), evicted, now, now + meta_ttl)
end
