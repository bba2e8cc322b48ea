-- Ends this node's turn to deliver.
--
-- ARGV: the node.
if redis.call('GET', prefix .. 'delivery') == ARGV[1] then
  redis.call('DEL', prefix .. 'delivery')
end
return 1
