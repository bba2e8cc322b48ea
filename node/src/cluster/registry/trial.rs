//! Tries whether Redis allows what this node needs, by doing it on keys that belong to nobody.
//!
//! A probe through Pub/Sub passes while every script is refused: by an ACL that lacks a command, or for want of memory. So
//! each command is tried, within a script as most of them are used, under the names that the node's own keys have.

use deadpool_redis::redis::FromRedisValue;
use deadpool_redis::redis::Pipeline;
use deadpool_redis::redis::ServerError;
use deadpool_redis::redis::Value as Answer;

use super::Needs;
use super::condition::Trouble;
use super::store::Store;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::Instance;
use crate::redis::CommandError;
use crate::redis::keys;

/// A digest that no script has: whoever may call scripts by digest is told that it is not there.
const NO_SCRIPT: &str = "0000000000000000000000000000000000000000";
const NOT_THERE: &str = "NOSCRIPT";

/// The refusals that are named; more say nothing new.
const NAMED_MAX: usize = 3;

/// Does everything once and returns what was refused.
///
/// KEYS: the stream, the meta and the past result of a channel, its members, a user's leases, a lease's entries, an owner's
/// values and their ends, and one among those of lifecycle events. ARGV: whether streams are needed and whether values are,
/// the channel on the wire, and whether lifecycle events are needed.
const TRY: &str =
    "local stream, meta, result, members, user, entries, values, ends, lifecycle = unpack(KEYS)
    local refused = {}
    local function try(...)
        local answer = redis.pcall(...)
        if type(answer) == 'table' and answer.err then
            refused[#refused + 1] = string.lower((...)) .. ': ' .. answer.err
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
        try('PUBLISH', ARGV[3], '')
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

/// What comes of a trial.
#[derive(Debug, Default)]
struct Refused(Vec<String>);

impl Store {
    /// Tries everything that `needs` says; what is wrong, if anything is.
    ///
    /// # Errors
    ///
    /// [`CommandError`]: there is no answer.
    pub(super) async fn try_out(
        &self,
        instance: Instance,
        needs: Needs,
    ) -> Result<Option<Trouble>, CommandError> {
        let name = format!("try:{instance}");
        let channel = ChannelName::new(&name).expect("an instance has 16 characters");
        let all = [
            keys::stream(&channel),
            keys::stream_meta(&channel),
            keys::past_result(&channel, ""),
            keys::channel_members(&channel),
            keys::user_leases(&name),
            keys::lease_entries(&name),
            keys::owner_values(&name),
            keys::owner_value_ends(&name),
            keys::lifecycle_trial(instance),
        ];
        let mut pipeline = Pipeline::new();
        let call = pipeline.cmd("EVAL").arg(TRY).arg(all.len()).arg(&all);
        call.arg(u8::from(needs.streams));
        call.arg(u8::from(needs.values));
        call.arg(ChannelName::wire(&channel).as_str());
        call.arg(u8::from(needs.lifecycle));
        if needs.streams {
            pipeline.cmd("SCRIPT").arg("LOAD").arg("return 1");
            pipeline.cmd("EVALSHA").arg(NO_SCRIPT).arg(0);
        }
        let answers = self.commands.try_each(&pipeline).await?.values;
        let mut refused = Refused::default();
        for (index, (name, answer)) in ["eval", "script load", "evalsha"]
            .into_iter()
            .zip(answers)
            .enumerate()
        {
            match answer {
                Answer::ServerError(error) => refused.note(name, &error),
                answer if index == 0 => {
                    let list = Vec::<String>::from_redis_value(answer);
                    refused.0.extend(list.unwrap_or_default());
                }
                _ => {}
            }
        }
        Ok(refused.trouble())
    }
}

impl Refused {
    fn note(&mut self, name: &str, error: &ServerError) {
        let text = error.to_string();
        if !(error.code() == NOT_THERE || text.contains(NOT_THERE)) {
            self.0.push(format!("{name}: {text}"));
        }
    }

    fn trouble(mut self) -> Option<Trouble> {
        let count = self.0.len();
        self.0.truncate(NAMED_MAX);
        let mut text = self.0.join("; ");
        if text.is_empty() {
            return None;
        }
        if NAMED_MAX < count {
            text = format!("{text}; and {} more", count - NAMED_MAX);
        }
        Some(Trouble::of(&CommandError::refused(text)))
    }
}
