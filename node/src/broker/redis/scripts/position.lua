-- Where the stream of a channel is, if there is one. A server may not have all that another one had, so then a
-- new epoch begins. A server has another replication id after each restart and each promotion (and, to no harm,
-- with its first replica), and asking for it here, in one step with all else, leaves no moment to be wrong about
-- it. One that is promoted again before it has followed the one that replaced it keeps its id, and lacks what that
-- one had: so a later failover (0 if nothing counts them) begins a new epoch too. A node that knows an older failover than
-- the stream does changes nothing.
local function stream_of(meta, failover)
  local server = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
  local known = redis.call('HMGET', meta, 'epoch', 'offset', 'server', 'origin', 'failover')
  local exists = known[1] and known[2] and true
  local is_same_server = known[3] == server and tonumber(failover) <= tonumber(known[5] or '0')
  return server, exists, known[1], known[2], is_same_server, known[4] or ''
end
-- The time of this server, in milliseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
-- Begins an epoch of a stream.
local function begin(meta, epoch, server, failover, origin)
  local began = string.format('%.0f', clock())
  redis.call('HSET', meta, 'epoch', epoch, 'server', server, 'failover', failover, 'origin', origin, 'began', began)
end
-- The moment at which a stream is not there, or begins: what it takes to tell later whether it is the first one
-- since (history/unstarted.rs).
local function unborn(server, failover, meta_ttl)
  local evicted = string.match(redis.call('INFO', 'stats'), 'evicted_keys:(%d+)') or '0'
  local now = clock()
  local id = string.sub(server, 1, 12)
  if failover ~= '0' then
    id = id .. '-' .. failover
  end
  return string.format('u%s.%s.%.0f.%.0f', id, evicted, now, now + meta_ttl)
end
