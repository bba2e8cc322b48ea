-- Where the stream of a channel is: its epoch and offset. Begins a new epoch if it is not known, or if this
-- server may not have all that another one had. A server has another replication id after each restart and
-- each promotion (and, to no harm, with its first replica), and asking for it here, in one step with all
-- else, leaves no moment to be wrong about it.
local function position(meta, stream, new_epoch, meta_ttl)
  local server = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
  local known = redis.call('HMGET', meta, 'epoch', 'offset', 'server')
  local epoch, offset = known[1], known[2]
  if not epoch or not offset then
    redis.call('DEL', stream)
    epoch, offset = new_epoch, '0'
    redis.call('HSET', meta, 'epoch', epoch, 'offset', offset, 'server', server)
  elseif known[3] ~= server then
    epoch = new_epoch
    redis.call('HSET', meta, 'epoch', epoch, 'server', server)
  end
  redis.call('PEXPIRE', meta, meta_ttl)
  return epoch, offset
end
