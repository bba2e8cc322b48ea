-- Publishes a probe, if this server is one that takes writes: one that follows another (since a moment ago,
-- maybe) keeps its connections, and who publishes to it reaches nobody else.
--
-- ARGV: the channel, the probe, the command that publishes.
-- Returns how many have heard it from this server, and what the server calls its data: something else after
-- each promotion.
local info = redis.pcall('INFO', 'replication')
if type(info) ~= 'string' then
  info = ''
end
if string.find(info, 'role:slave', 1, true) then
  return redis.error_reply('READONLY this server follows another one')
end
local server = string.match(info, 'master_replid:(%w+)') or ''
return { redis.call(ARGV[3], ARGV[1], ARGV[2]), server }
