//! Values in Redis, shared by all nodes: for each owner a hash of its values, and a sorted set of their ends.

use bytes::Bytes;
use deadpool_redis::redis::FromRedisValue;

use super::Owner;
use super::Put;
use super::VALUES_MAX;
use super::ValueError;
use crate::redis::Batch;
use crate::redis::CommandError;
use crate::redis::Commands;
use crate::redis::Keys;
use crate::redis::Script;
use crate::redis::Server;
use crate::redis::shard_of;

/// Stores a value, unless there are too many. Expired ones are removed first, and the keys expire with the
/// last value.
static PUT: Script = Script::new("local t = redis.call('TIME')
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
    return 1");

/// Names and values of those that have not expired; only one if a name is passed.
static GET: Script = Script::new(
    "local t = redis.call('TIME')
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
    return found",
);

/// Deletes a value; whether there was one that had not expired.
static DELETE: Script = Script::new(
    "local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    local ends = redis.call('ZSCORE', KEYS[2], ARGV[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('HDEL', KEYS[1], ARGV[1])
    return (ends and now < tonumber(ends)) and 1 or 0",
);

/// Values in Redis; those of one owner are all on one server.
pub(super) struct Store {
    servers: Vec<Commands>,
    keys: Keys,
}

impl Store {
    /// `servers` is not empty.
    pub(super) fn new(servers: &[Server]) -> Self {
        let commands = servers.iter().map(|server| server.commands("values"));
        Self {
            servers: commands.collect(),
            keys: servers[0].keys.clone(),
        }
    }

    pub(super) async fn put(&self, owner: &Owner, put: Put) -> Result<(), ValueError> {
        let mut batch = Batch::new();
        batch
            .call(&PUT, &self.keys_of(owner))
            .arg(put.name)
            .arg(put.value.as_ref())
            .arg(u64::try_from(put.ttl.as_millis()).unwrap_or(u64::MAX))
            .arg(VALUES_MAX);
        match self.run(owner, &batch).await? {
            true => Ok(()),
            false => Err(ValueError::TooMany),
        }
    }

    pub(super) async fn get(&self, owner: &Owner, name: &str) -> Result<Option<Bytes>, ValueError> {
        let mut batch = Batch::new();
        batch.call(&GET, &self.keys_of(owner)).arg(name);
        let found: Vec<(String, Vec<u8>)> = self.run(owner, &batch).await?;
        Ok(found.into_iter().next().map(|(_, value)| value.into()))
    }

    pub(super) async fn all(&self, owner: &Owner) -> Result<Vec<(String, Bytes)>, ValueError> {
        let mut batch = Batch::new();
        batch.call(&GET, &self.keys_of(owner)).arg("");
        let found: Vec<(String, Vec<u8>)> = self.run(owner, &batch).await?;
        let all = found.into_iter().map(|(name, value)| (name, value.into()));
        Ok(all.collect())
    }

    pub(super) async fn delete(&self, owner: &Owner, name: &str) -> Result<bool, ValueError> {
        let mut batch = Batch::new();
        batch.call(&DELETE, &self.keys_of(owner)).arg(name);
        self.run(owner, &batch).await
    }

    async fn run<T: FromRedisValue>(&self, owner: &Owner, call: &Batch) -> Result<T, ValueError> {
        let server = shard_of(&owner.to_string(), self.servers.len());
        let mut values = self.servers[server].run(call).await?.values;
        let reply = values.pop().unwrap_or(deadpool_redis::redis::Value::Nil);
        T::from_redis_value(reply)
            .map_err(|error| CommandError::Refused(format!("unexpected reply: {error}")).into())
    }

    fn keys_of(&self, owner: &Owner) -> [String; 2] {
        let owner = owner.to_string();
        let keys = &self.keys;
        [keys.owner_values(&owner), keys.owner_value_ends(&owner)]
    }
}
