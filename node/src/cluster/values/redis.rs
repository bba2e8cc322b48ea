//! Values in Redis, shared by all nodes: for each owner a hash of its values, and a sorted set of their ends.

use bytes::Bytes;
use deadpool_redis::redis::FromRedisValue;
use deadpool_redis::redis::Pipeline;

use super::Owner;
use super::Put;
use super::VALUES_MAX;
use super::ValueError;
use crate::config;
use crate::redis::CommandError;
use crate::redis::Commands;
use crate::redis::connection_name;
use crate::redis::keys;
use crate::redis::shard_of;

/// Stores a value, unless there are too many. Expired ones are removed first, and the keys expire with the
/// last value.
const PUT: &str = "local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    for _, name in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE')) do
        redis.call('HDEL', KEYS[1], name)
        redis.call('ZREM', KEYS[2], name)
    end
    if not redis.call('ZSCORE', KEYS[2], ARGV[1]) and tonumber(ARGV[4]) <= redis.call('ZCARD', KEYS[2]) then
        return 0
    end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
    local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
    redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last))
    redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', last))
    return 1";

/// Names and values of those that have not expired; only one if a name is passed.
const GET: &str = "local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    local found = {}
    local names = {ARGV[1]}
    if ARGV[1] == '' then
        names = redis.call('ZRANGE', KEYS[2], '(' .. now, '+inf', 'BYSCORE')
    end
    for _, name in ipairs(names) do
        local ends = redis.call('ZSCORE', KEYS[2], name)
        local value = redis.call('HGET', KEYS[1], name)
        if ends and value and now < tonumber(ends) then
            found[#found + 1] = name
            found[#found + 1] = value
        end
    end
    return found";

/// Deletes a value; whether there was one that had not expired.
const DELETE: &str = "local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    local ends = redis.call('ZSCORE', KEYS[2], ARGV[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('HDEL', KEYS[1], ARGV[1])
    return (ends and now < tonumber(ends)) and 1 or 0";

/// Values in Redis; those of one owner are all on one server.
pub(super) struct Store {
    servers: Vec<Commands>,
}

impl Store {
    pub(super) fn new(config: &config::Redis, node_id: &str) -> Self {
        let commands = |config: &config::Redis| {
            let name = connection_name(node_id, "values", fastrand::u64(..));
            Commands::new(config, name)
        };
        let servers = config.shards().iter().map(commands).collect();
        Self { servers }
    }

    pub(super) async fn put(&self, owner: &Owner, put: Put) -> Result<(), ValueError> {
        let mut call = script(PUT, owner);
        call.arg(put.name).arg(put.value.as_ref());
        call.arg(u64::try_from(put.ttl.as_millis()).unwrap_or(u64::MAX));
        call.arg(VALUES_MAX);
        match self.run(owner, &call).await? {
            true => Ok(()),
            false => Err(ValueError::TooMany),
        }
    }

    pub(super) async fn get(&self, owner: &Owner, name: &str) -> Result<Option<Bytes>, ValueError> {
        let mut call = script(GET, owner);
        call.arg(name);
        let found: Vec<(String, Vec<u8>)> = self.run(owner, &call).await?;
        Ok(found.into_iter().next().map(|(_, value)| value.into()))
    }

    pub(super) async fn all(&self, owner: &Owner) -> Result<Vec<(String, Bytes)>, ValueError> {
        let mut call = script(GET, owner);
        call.arg("");
        let found: Vec<(String, Vec<u8>)> = self.run(owner, &call).await?;
        let all = found.into_iter().map(|(name, value)| (name, value.into()));
        Ok(all.collect())
    }

    pub(super) async fn delete(&self, owner: &Owner, name: &str) -> Result<bool, ValueError> {
        let mut call = script(DELETE, owner);
        call.arg(name);
        self.run(owner, &call).await
    }

    async fn run<T: FromRedisValue>(
        &self,
        owner: &Owner,
        call: &Pipeline,
    ) -> Result<T, ValueError> {
        let server = shard_of(&owner.to_string(), self.servers.len());
        let mut values = self.servers[server].run(call).await?.values;
        let answer = values.pop().unwrap_or(deadpool_redis::redis::Value::Nil);
        T::from_redis_value(answer)
            .map_err(|error| CommandError::Refused(format!("unexpected reply: {error}")).into())
    }
}

/// Calls `script` for `owner`; the caller adds the arguments.
fn script(script: &str, owner: &Owner) -> Pipeline {
    let owner = owner.to_string();
    let keys = [keys::owner_values(&owner), keys::owner_value_ends(&owner)];
    let mut call = Pipeline::new();
    call.cmd("EVAL").arg(script).arg(keys.len()).arg(&keys);
    call
}
