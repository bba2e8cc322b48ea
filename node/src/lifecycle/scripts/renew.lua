-- Notes which lease keeps a holder alive.
--
-- ARGV: the holder, its lease, how many of its steps were entered.
-- Returns whether the holder is still registered.
local holder, lease, position = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not may_enter(holder, position) then
  return 0
end
redis.call('HSET', prefix .. 'holders', holder, lease)
return 1
