-- Notes the last event that the application has taken, if it is still this node's turn.
--
-- ARGV: the node, how long its turn lasts, the event's entry in the stream and its number.
if redis.call('GET', prefix .. 'delivery') ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', prefix .. 'delivery', ARGV[2]) -- First, because a full Redis takes the rest after this one.
redis.call('SET', prefix .. 'delivered', ARGV[3] .. ' ' .. ARGV[4])
return 1
