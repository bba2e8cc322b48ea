-- Fences a holder, unless another lease keeps it alive meanwhile.
--
-- ARGV: the holder, its lease.
if redis.call('HGET', prefix .. 'holders', ARGV[1]) ~= ARGV[2] then
  return 0
end
fence(ARGV[1])
return 1
