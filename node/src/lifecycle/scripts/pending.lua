-- Reads events that the application has not taken, if it is this node's turn to deliver them.
--
-- ARGV: the node, how long its turn lasts, how many events at most.
-- Returns nil if another node delivers, else the number of the last event that was taken, and entries of the stream.
local delivery = redis.call('GET', prefix .. 'delivery')
if delivery == ARGV[1] then
  redis.call('PEXPIRE', prefix .. 'delivery', ARGV[2]) -- A full Redis does not refuse this one.
elseif not delivery then
  redis.call('SET', prefix .. 'delivery', ARGV[1], 'PX', ARGV[2])
else
  return false
end
local from, number = '-', '0'
local delivered = redis.call('GET', prefix .. 'delivered')
if delivered then
  from, number = string.match(delivered, '^(%S+) (%d+)$')
  from = '(' .. from
end
return { number, redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', ARGV[3]) }
