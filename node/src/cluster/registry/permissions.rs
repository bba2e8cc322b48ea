//! Checks that Redis permits the commands that this node needs, by running them on keys that nothing else uses.
//!
//! A probe through Pub/Sub succeeds while every script is rejected, by an ACL that lacks a command or because memory is full. So
//! each command is run, in a script as most of them are used, on keys named like the node's own.

use deadpool_redis::redis::FromRedisValue;
use deadpool_redis::redis::ServerError;
use deadpool_redis::redis::Value as Reply;

use super::Needs;
use super::condition::Problem;
use super::store::Store;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::Instance;
use crate::redis::Batch;
use crate::redis::CommandError;

/// A digest that no script has: if calling by digest is permitted, the reply is `NOSCRIPT`.
const NO_SCRIPT: &str = "0000000000000000000000000000000000000000";
const NOT_THERE: &str = "NOSCRIPT";

/// The most rejected commands that are listed in the error.
const NAMED_MAX: usize = 3;

/// Runs every command once and returns those that were rejected.
///
/// KEYS: the stream, the meta and the past result of a channel, its members, a user's leases, a lease's entries, an owner's
/// values and their ends, and one among those of lifecycle events. ARGV: whether streams are needed and whether values are,
/// the channel on the wire, whether lifecycle events are needed, and the command that publishes.
const TRY: &str =
    "local stream, meta, result, members, user, entries, values, ends, lifecycle = unpack(KEYS)
    local refused = {}
    local function try(...)
        local reply = redis.pcall(...)
        if type(reply) == 'table' and reply.err then
            refused[#refused + 1] = string.lower((...)) .. ': ' .. reply.err
        end
    end
    try('TIME')
    try('EXISTS', user)
    try('SADD', entries, '1')
    try('HSET', members, '1', '1')
    try('HSET', user, '1', '1')
    try('ZADD', ends, 1, '1')
    try('SET', result, '1', 'PX', 10000)
    for _, key in ipairs({entries, members, user, ends}) do
        try('PEXPIRE', key, 10000)
    end
    try('SRANDMEMBER', entries, 1)
    try('HGET', members, '1')
    try('HMGET', members, '1')
    try('HGETALL', members)
    try('HKEYS', user)
    try('ZRANGE', ends, 0, 0)
    try('ZSCORE', ends, '1')
    if ARGV[1] == '1' then
        try('INFO', 'replication')
        try('HMGET', meta, '1')
        try('HSET', meta, '1', '1')
        try('HINCRBY', meta, '1', 1)
        try('PEXPIRE', meta, 10000)
        try('XADD', stream, 'MAXLEN', 1, '1-0', '1', '1')
        try('PEXPIRE', stream, 10000)
        try('XRANGE', stream, '-', '+')
        try('XREVRANGE', stream, '+', '-')
        try('GET', result)
        try(ARGV[5], ARGV[3], '')
    end
    if ARGV[2] == '1' then
        try('HSET', values, '1', '1')
        try('PEXPIREAT', values, '1')
        try('ZCARD', ends)
    end
    if ARGV[4] == '1' then
        try('INCR', lifecycle)
        try('DEL', lifecycle)
        try('RPUSH', lifecycle, '1')
        try('LPOP', lifecycle)
        try('HSET', lifecycle, '1', '1')
        try('PEXPIRE', lifecycle, 10000)
        try('HEXISTS', lifecycle, '1')
        try('HRANDFIELD', lifecycle, 1)
    end
    try('ZREM', ends, '1')
    try('HDEL', members, '1')
    try('SREM', entries, '1')
    try('DEL', unpack(KEYS))
    return refused";

/// Commands that were rejected, with the errors.
#[derive(Debug, Default)]
struct Refused(Vec<String>);

impl Store {
    /// Runs everything that `needs` requires; the problem, if there is one.
    ///
    /// # Errors
    ///
    /// [`CommandError`]: Redis did not respond.
    pub(super) async fn check_permissions(
        &self,
        instance: Instance,
        needs: Needs,
    ) -> Result<Option<Problem>, CommandError> {
        let name = format!("try:{instance}");
        let channel = ChannelName::new(&name).expect("an instance has 16 characters");
        let all = [
            self.keys.stream(&channel),
            self.keys.stream_meta(&channel),
            self.keys.past_result(&channel, ""),
            self.keys.channel_members(&channel),
            self.keys.user_leases(&name),
            self.keys.lease_entries(&name),
            self.keys.owner_values(&name),
            self.keys.owner_value_ends(&name),
            self.keys.lifecycle_trial(instance),
        ];
        let mut pipeline = Batch::new();
        let call = pipeline.cmd("EVAL").arg(TRY).arg(all.len()).arg(&all);
        call.arg(u8::from(needs.streams));
        call.arg(u8::from(needs.values));
        call.arg(&*self.keys.channel(&ChannelName::wire(&channel)));
        call.arg(u8::from(needs.lifecycle));
        call.arg(self.keys.pubsub(&ChannelName::wire(&channel)).publish());
        if needs.streams {
            pipeline.cmd("SCRIPT").arg("LOAD").arg("return 1");
            pipeline.cmd("EVALSHA").arg(NO_SCRIPT).arg(0);
        }
        let replies = self.commands.try_each(&pipeline).await?.values;
        let mut refused = Refused::default();
        for (index, (name, reply)) in ["eval", "script load", "evalsha"]
            .into_iter()
            .zip(replies)
            .enumerate()
        {
            match reply {
                Reply::ServerError(error) => refused.note(name, &error),
                reply if index == 0 => {
                    let list = Vec::<String>::from_redis_value(reply);
                    refused.0.extend(list.unwrap_or_default());
                }
                _ => {}
            }
        }
        Ok(refused.problem())
    }
}

impl Refused {
    fn note(&mut self, name: &str, error: &ServerError) {
        let text = error.to_string();
        if !(error.code() == NOT_THERE || text.contains(NOT_THERE)) {
            self.0.push(format!("{name}: {text}"));
        }
    }

    fn problem(mut self) -> Option<Problem> {
        let count = self.0.len();
        self.0.truncate(NAMED_MAX);
        let mut text = self.0.join("; ");
        if text.is_empty() {
            return None;
        }
        if NAMED_MAX < count {
            text = format!("{text}; and {} more", count - NAMED_MAX);
        }
        Some(Problem::of(&CommandError::refused(text)))
    }
}
