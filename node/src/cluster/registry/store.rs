//! The registry in Redis: its scripts, its commands and its encoding.
//!
//! A slot is a field of a hash: a user's, whose fields are leases, or a channel's, whose fields are clients
//! and whose values begin with the lease that they are valid under. Every lease has a set of its slots, written
//! before the slot and cleared after it, so that a sweeper of the lease finds them all.

use bytes::Bytes;
use deadpool_redis::redis::FromRedisValue;
use deadpool_redis::redis::Value as Reply;
use tracing::debug;

use super::desired::Announce;
use super::desired::Slot;
use super::desired::StoredEntry;
use super::desired::Swept;
use super::desired::Value;
use super::desired::Write;
use super::duplicate_ids::Seen;
use super::memory::MemoryInfo;
use crate::cluster::registry::Lease;
use crate::cluster::registry::Node;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;
use crate::redis::Batch;
use crate::redis::CommandError;
use crate::redis::Commands;
use crate::redis::Keys;
use crate::redis::Script;
use crate::redis::Server;

/// The most leases that one call declares dead, and the most entries that one call removes.
const SWEEP_BATCH: usize = 256;

/// How long a sweeper may take before another one starts over.
const SWEEP_MAX_MS: u64 = 10_000;

/// How long it is remembered that a lease was swept.
const SWEPT_FOR_SECS: u64 = 24 * 60 * 60;

/// Takes a lease. Returns whether the one before it is being swept or was.
static TAKE: Script = Script::new(
    "local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
    local swept = redis.call('EXISTS', KEYS[3]) == 1 or redis.call('ZSCORE', KEYS[4], ARGV[4])
    return {now, swept and 1 or 0}",
);

/// Releases a lease, and leaves its entries to the next sweeper.
static RETIRE: Script = Script::new(
    "redis.call('ZREM', KEYS[1], ARGV[1])
    redis.call('HDEL', KEYS[3], ARGV[1])
    return redis.call('ZADD', KEYS[2], 0, ARGV[1])",
);

/// Declares lapsed leases dead, and claims the sweeping of these and of those whose sweeper did not
/// finish.
static CLAIM: Script = Script::new("local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    local claimed = redis.call('ZRANGE', KEYS[2], '-inf', now - ARGV[1], 'BYSCORE', 'LIMIT', 0, ARGV[2])
    for _, lease in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[2])) do
        redis.call('ZREM', KEYS[1], lease)
        redis.call('HDEL', KEYS[3], lease)
        claimed[#claimed + 1] = lease
    end
    for _, lease in ipairs(claimed) do
        redis.call('ZADD', KEYS[2], now, lease)
    end
    return claimed");

/// Removes a member if its value still names the lease that is swept.
static TAKE_OUT: Script = Script::new(
    "local value = redis.call('HGET', KEYS[1], ARGV[1])
    if value and string.sub(value, 1, #ARGV[2]) == ARGV[2] then
        redis.call('HDEL', KEYS[1], ARGV[1])
        return value
    end
    return false",
);

/// The registry in one Redis.
pub(super) struct Store {
    pub(super) commands: Commands,
    pub(super) keys: Keys,
}

/// A lease that was taken.
pub(super) struct Taken {
    /// Redis's time, in UNIX milliseconds.
    pub(super) now: u64,
    /// The connection over which it was taken: another one may lead to another server.
    pub(super) connection: u64,
    pub(super) before: Swept,
}

/// The result of a renewal.
pub(super) struct Renewed {
    /// The lease was still there.
    pub(super) is_held: bool,
    pub(super) connection: u64,
    /// Redis's time, if requested.
    pub(super) now: Option<u64>,
    /// When the first of all leases ends, if requested.
    pub(super) first_end: Option<u64>,
}

/// What a renewal reads besides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queries {
    pub(super) time: bool,
    pub(super) first_end: bool,
}

/// The value of an entry that was swept.
pub(super) type Found = Vec<u8>;

impl Store {
    pub(super) fn new(server: &Server) -> Self {
        Self {
            commands: server.commands("registry"),
            keys: server.keys.clone(),
        }
    }

    /// Takes `lease`, which lives for `milliseconds`; `before` is the one that it follows.
    pub(super) async fn take(
        &self,
        lease: Lease,
        before: Option<Lease>,
        milliseconds: u64,
        info: &str,
    ) -> Result<Taken, CommandError> {
        let before = before.map_or_else(String::new, |lease| lease.to_string());
        let mut pipeline = Batch::new();
        let keys = [
            self.keys.live_leases(),
            self.keys.lease_info(),
            self.keys.swept_lease(&before),
            self.keys.dead_leases(),
        ];
        pipeline
            .call(&TAKE, &keys)
            .arg(lease.to_string())
            .arg(milliseconds)
            .arg(info)
            .arg(&before);
        let replies = self.commands.run(&pipeline).await?;
        let (now, swept): (u64, bool) = first(replies.values)?;
        Ok(Taken {
            now,
            connection: replies.connection,
            before: if swept { Swept::Yes } else { Swept::No },
        })
    }

    /// Lets `lease` end at `end` and replies `queries`, each with one plain command.
    pub(super) async fn renew(
        &self,
        lease: Lease,
        end: u64,
        queries: Queries,
    ) -> Result<Renewed, CommandError> {
        let mut pipeline = Batch::new();
        let renew = pipeline.cmd("ZADD").arg(self.keys.live_leases());
        // Only if it is there, and whether it was: its end always changes.
        renew.arg("XX").arg("CH").arg(end).arg(lease.to_string());
        if queries.time {
            pipeline.cmd("TIME");
        }
        if queries.first_end {
            let command = pipeline.cmd("ZRANGE").arg(self.keys.live_leases());
            command.arg(0).arg(0).arg("WITHSCORES");
        }
        let replies = self.commands.run(&pipeline).await?;
        let connection = replies.connection;
        let mut values = replies.values.into_iter();
        let is_held = from(values.next())?;
        let mut renewed = Renewed {
            is_held,
            connection,
            now: None,
            first_end: None,
        };
        if queries.time {
            let (seconds, microseconds): (u64, u64) = from(values.next())?;
            renewed.now = Some(seconds * 1000 + microseconds / 1000);
        }
        if queries.first_end {
            let ends: Vec<(String, f64)> = from(values.next())?;
            renewed.first_end = ends.first().map(|(_, end)| milliseconds(*end));
        }
        Ok(renewed)
    }

    /// Replaces the description of the holder of `lease`.
    pub(super) async fn describe(&self, lease: Lease, info: &str) -> Result<(), CommandError> {
        let mut pipeline = Batch::new();
        let command = pipeline.cmd("HSET").arg(self.keys.lease_info());
        command.arg(lease.to_string()).arg(info);
        self.commands.run(&pipeline).await.map(|_| ())
    }

    /// Releases `lease`: entries under it are no longer valid.
    pub(super) async fn retire(&self, lease: Lease) -> Result<(), CommandError> {
        let mut pipeline = Batch::new();
        let call = pipeline.call(&RETIRE, &self.all_leases_keys());
        call.arg(lease.to_string());
        self.commands.run(&pipeline).await.map(|_| ())
    }

    /// Leases whose entries the caller is to sweep.
    pub(super) async fn claim(&self) -> Result<Vec<Lease>, CommandError> {
        let mut pipeline = Batch::new();
        pipeline
            .call(&CLAIM, &self.all_leases_keys())
            .arg(SWEEP_MAX_MS)
            .arg(SWEEP_BATCH);
        let claimed: Vec<String> = first(self.commands.run(&pipeline).await?.values)?;
        Ok(claimed
            .iter()
            .filter_map(|lease| Lease::parse(lease))
            .collect())
    }

    /// Removes some entries of a dead lease. Returns the members that were still stored under it; `None` once there
    /// are no more.
    pub(super) async fn sweep(
        &self,
        lease: Lease,
    ) -> Result<Option<Vec<(Slot, Value)>>, CommandError> {
        let text = lease.to_string();
        let index = self.keys.lease_entries(&text);
        let mut pipeline = Batch::new();
        let command = pipeline.cmd("SRANDMEMBER").arg(&index);
        command.arg(SWEEP_BATCH);
        let entries: Vec<Vec<u8>> = first(self.commands.run(&pipeline).await?.values)?;
        if entries.is_empty() {
            return Ok(None);
        }
        let slots: Vec<Option<Slot>> = entries.iter().map(|entry| parse_slot(entry)).collect();
        let mut pipeline = Batch::new();
        for slot in slots.iter().flatten() {
            match slot {
                Slot::User(user) => {
                    let command = pipeline.cmd("HDEL").arg(self.keys.user_leases(user));
                    command.arg(&text);
                }
                Slot::Member(channel, client) => {
                    let members = self.keys.channel_members(channel);
                    pipeline
                        .call(&TAKE_OUT, &[members])
                        .arg(client.to_string())
                        .arg(format!("{text} "));
                }
            }
        }
        let replies = self.commands.run(&pipeline).await?.values;
        // Afterwards, so that an entry whose removal fails is swept again. If this fails, nothing is found the next time.
        let mut pipeline = Batch::new();
        pipeline.cmd("SREM").arg(&index).arg(&entries);
        if let Err(error) = self.commands.run(&pipeline).await {
            debug!(%lease, %error, "cannot remove swept entries from the index of a lease");
        }
        let known = slots.into_iter().flatten();
        let found = known.zip(replies).filter_map(|(slot, reply)| match slot {
            Slot::User(_) => None,
            Slot::Member(..) => {
                let value = Option::<Found>::from_redis_value(reply).ok()??;
                let (_, value) = parse_value(&value)?;
                Some((slot, value))
            }
        });
        Ok(Some(found.collect()))
    }

    /// Records that all entries of `lease` are removed.
    pub(super) async fn swept(&self, lease: Lease) -> Result<(), CommandError> {
        let text = lease.to_string();
        let mut pipeline = Batch::new();
        let command = pipeline
            .cmd("SET")
            .arg(self.keys.swept_lease(&text))
            .arg("");
        command.arg("EX").arg(SWEPT_FOR_SECS);
        let command = pipeline.cmd("ZREM").arg(self.keys.dead_leases());
        command.arg(&text);
        self.commands.run(&pipeline).await.map(|_| ())
    }

    /// Carries out `batch` under `lease`. For each write, whether it added or removed an entry.
    pub(super) async fn write(
        &self,
        lease: Lease,
        batch: &[Write],
    ) -> Result<Vec<bool>, CommandError> {
        let lease = lease.to_string();
        let index = self.keys.lease_entries(&lease);
        let mut pipeline = Batch::new();
        // The index comes first and leaves last: a sweeper must find whatever is stored.
        for write in batch.iter().filter(|write| write.put.is_some()) {
            pipeline
                .cmd("SADD")
                .arg(&index)
                .arg(print_slot(&write.slot));
        }
        pipeline.after_that();
        let puts = batch.iter().filter(|write| write.put.is_some()).count();
        for write in batch {
            let (hash, field) = match &write.slot {
                Slot::User(user) => (self.keys.user_leases(user), lease.clone()),
                Slot::Member(channel, client) => {
                    (self.keys.channel_members(channel), client.to_string())
                }
            };
            match &write.put {
                Some(value) => {
                    let command = pipeline.cmd("HSET").arg(hash).arg(field);
                    command.arg(print_value(&lease, value));
                }
                None if write.is_release && matches!(write.slot, Slot::Member(..)) => {
                    let call = pipeline.call(&TAKE_OUT, &[hash]);
                    call.arg(field).arg(format!("{lease} "));
                }
                None => {
                    pipeline.cmd("HDEL").arg(hash).arg(field);
                }
            }
        }
        pipeline.after_that();
        for write in batch.iter().filter(|write| write.put.is_none()) {
            pipeline
                .cmd("SREM")
                .arg(&index)
                .arg(print_slot(&write.slot));
        }
        let replies = self.commands.run(&pipeline).await?.values;
        let changes = replies.iter().skip(puts).take(batch.len());
        let changes = changes.map(|reply| matches!(reply, Reply::Int(1)));
        Ok(changes.collect())
    }

    /// Whether each of `stored_entries` is stored under `lease`. Also restores them in the index that the sweeper of the lease
    /// uses.
    pub(super) async fn compare(
        &self,
        lease: Lease,
        stored_entries: &[StoredEntry],
    ) -> Result<Vec<bool>, CommandError> {
        if stored_entries.is_empty() {
            return Ok(Vec::new());
        }
        let lease = lease.to_string();
        let mut pipeline = Batch::new();
        let entries: Vec<String> = stored_entries
            .iter()
            .map(|stored_entry| print_slot(&stored_entry.slot))
            .collect();
        pipeline
            .cmd("SADD")
            .arg(self.keys.lease_entries(&lease))
            .arg(entries);
        // Those of one channel are adjacent.
        for group in stored_entries
            .chunk_by(|one, other| self.hash_of(&one.slot) == self.hash_of(&other.slot))
        {
            let fields: Vec<String> = group
                .iter()
                .map(|stored_entry| match &stored_entry.slot {
                    Slot::User(_) => lease.clone(),
                    Slot::Member(_, client) => client.to_string(),
                })
                .collect();
            let command = pipeline.cmd("HMGET").arg(self.hash_of(&group[0].slot));
            command.arg(fields);
        }
        let replies = self.commands.run(&pipeline).await?.values;
        let mut found = Vec::with_capacity(stored_entries.len());
        for reply in replies.into_iter().skip(1) {
            found.extend(from::<Vec<Option<Vec<u8>>>>(Some(reply))?);
        }
        let pairs = stored_entries.iter().zip(found);
        let stands = pairs.map(|(stored_entry, found)| {
            found.is_some_and(|found| found == print_value(&lease, &stored_entry.value))
        });
        Ok(stands.collect())
    }

    /// Whether the description of the holder of `lease` is stored.
    pub(super) async fn is_described(&self, lease: Lease) -> Result<bool, CommandError> {
        let mut pipeline = Batch::new();
        let command = pipeline.cmd("HGET").arg(self.keys.lease_info());
        command.arg(lease.to_string());
        let info: Option<String> = first(self.commands.run(&pipeline).await?.values)?;
        Ok(info.is_some())
    }

    /// Redis's memory state, of all servers together; `None` if `INFO` is not permitted.
    pub(super) async fn memory(&self) -> Result<Option<MemoryInfo>, CommandError> {
        let mut pipeline = Batch::new();
        pipeline.cmd("INFO").arg("memory");
        pipeline.cmd("INFO").arg("stats");
        let servers = self.commands.everywhere(&pipeline).await?.into_iter();
        let infos = servers.map(|replies| {
            let texts = replies.values.into_iter().map(String::from_redis_value);
            let text: Result<String, _> = texts.collect();
            text.ok().and_then(|text| MemoryInfo::parse(&text))
        });
        let infos: Option<Vec<MemoryInfo>> = infos.collect();
        Ok(infos.and_then(|infos| infos.into_iter().reduce(MemoryInfo::with)))
    }

    /// All leases that were not declared dead, when they end, and their holders' descriptions.
    pub(super) async fn all_leases(&self) -> Result<Vec<Seen>, CommandError> {
        let mut pipeline = Batch::new();
        let command = pipeline.cmd("ZRANGE").arg(self.keys.live_leases());
        command.arg(0).arg(-1).arg("WITHSCORES");
        pipeline.cmd("HGETALL").arg(self.keys.lease_info());
        let mut values = self.commands.run(&pipeline).await?.values.into_iter();
        let ends: Vec<(String, f64)> = from(values.next())?;
        let infos: std::collections::HashMap<String, String> = from(values.next())?;
        let leases = ends.into_iter().filter_map(|(text, end)| {
            let lease = Lease::parse(&text)?;
            let about = infos.get(&text).map_or("", String::as_str);
            Some((lease, milliseconds(end), Node::parse(lease, about)))
        });
        Ok(leases.collect())
    }

    /// The live leases at `now`, Redis's time, with their holders' descriptions.
    pub(super) async fn live(
        &self,
        now: Option<u64>,
    ) -> Result<Vec<(Lease, String)>, CommandError> {
        let mut pipeline = Batch::new();
        self.read_live(&mut pipeline, now);
        pipeline.cmd("HGETALL").arg(self.keys.lease_info());
        let mut values = self.commands.run(&pipeline).await?.values.into_iter();
        let live: Vec<String> = from(values.next())?;
        let mut infos: std::collections::HashMap<String, String> = from(values.next())?;
        let leases = live.into_iter().filter_map(|text| {
            let info = infos.remove(&text).unwrap_or_default();
            Some((Lease::parse(&text)?, info))
        });
        Ok(leases.collect())
    }

    /// The live leases of nodes that have clients of `user`. Entries of other leases are removed.
    pub(super) async fn leases_of(
        &self,
        user: &str,
        now: Option<u64>,
    ) -> Result<Vec<Lease>, CommandError> {
        let hash = self.keys.user_leases(user);
        let mut pipeline = Batch::new();
        // Before the leases: one that is not live then has ended, and is not one that was just taken.
        pipeline.cmd("HKEYS").arg(&hash);
        pipeline.after_that();
        self.read_live(&mut pipeline, now);
        let mut values = self.commands.run(&pipeline).await?.values.into_iter();
        let leases: Vec<String> = from(values.next())?;
        let live: Vec<String> = from(values.next())?;
        let (held, dead): (Vec<String>, Vec<String>) =
            leases.into_iter().partition(|lease| live.contains(lease));
        if !dead.is_empty() {
            let mut pipeline = Batch::new();
            pipeline.cmd("HDEL").arg(&hash).arg(&dead);
            self.commands.run(&pipeline).await?;
        }
        Ok(held
            .iter()
            .filter_map(|lease| Lease::parse(lease))
            .collect())
    }

    /// The members of `channel` under live leases.
    pub(super) async fn members(
        &self,
        channel: &ChannelName,
        now: Option<u64>,
    ) -> Result<Vec<(ClientId, Bytes)>, CommandError> {
        let mut pipeline = Batch::new();
        self.read_live(&mut pipeline, now);
        pipeline
            .cmd("HGETALL")
            .arg(self.keys.channel_members(channel));
        let mut values = self.commands.run(&pipeline).await?.values.into_iter();
        let live: Vec<String> = from(values.next())?;
        let members: Vec<(String, Vec<u8>)> = from(values.next())?;
        let known = members.into_iter().filter_map(|(client, value)| {
            let (lease, value) = parse_value(&value)?;
            let client = ClientId::parse(&client).ok()?;
            live.iter()
                .any(|text| text == lease)
                .then_some((client, value.info))
        });
        Ok(known.collect())
    }

    /// Reads the live leases. Without a clock, all that were not declared dead.
    fn read_live(&self, pipeline: &mut Batch, now: Option<u64>) {
        let after = now.map_or_else(|| "-inf".to_owned(), |now| format!("({now}"));
        let command = pipeline.cmd("ZRANGE").arg(self.keys.live_leases());
        command.arg(after).arg("+inf").arg("BYSCORE");
    }

    /// The key of the hash that contains the slot.
    fn hash_of(&self, slot: &Slot) -> String {
        match slot {
            Slot::User(user) => self.keys.user_leases(user),
            Slot::Member(channel, _) => self.keys.channel_members(channel),
        }
    }

    /// The keys of all leases: live ones, dead ones, their holders' descriptions.
    fn all_leases_keys(&self) -> [String; 3] {
        let keys = &self.keys;
        [keys.live_leases(), keys.dead_leases(), keys.lease_info()]
    }
}

fn print_slot(slot: &Slot) -> String {
    match slot {
        Slot::User(user) => format!("u {user}"),
        Slot::Member(channel, client) => format!("m {client} {channel}"),
    }
}

/// `None` for an undecodable entry.
fn parse_slot(entry: &[u8]) -> Option<Slot> {
    let entry = std::str::from_utf8(entry).ok()?;
    match entry.split_once(' ')? {
        ("u", user) => Some(Slot::User(user.into())),
        ("m", member) => {
            let (client, channel) = member.split_once(' ')?;
            let channel = ChannelName::new(channel).ok()?;
            Some(Slot::Member(channel, ClientId::parse(client).ok()?))
        }
        _ => None,
    }
}

fn print_value(lease: &str, value: &Value) -> Vec<u8> {
    let announce = match value.announce {
        Announce::No => "-",
        Announce::Yes => "a",
    };
    let mut text = format!("{lease} {announce} ").into_bytes();
    text.extend_from_slice(&value.info);
    text
}

fn parse_value(text: &[u8]) -> Option<(&str, Value)> {
    let mut parts = text.splitn(3, |byte| *byte == b' ');
    let lease = std::str::from_utf8(parts.next()?).ok()?;
    let announce = match parts.next()? {
        b"a" => Announce::Yes,
        b"-" => Announce::No,
        _ => return None,
    };
    let info = Bytes::copy_from_slice(parts.next()?);
    Some((lease, Value { info, announce }))
}

fn first<T: FromRedisValue>(values: Vec<Reply>) -> Result<T, CommandError> {
    from(values.into_iter().next())
}

fn from<T: FromRedisValue>(value: Option<Reply>) -> Result<T, CommandError> {
    T::from_redis_value(value.unwrap_or(Reply::Nil))
        .map_err(|error| CommandError::Refused(format!("unexpected reply: {error}")))
}

/// Scores are doubles, exact for milliseconds until the year 287396.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a score out of range is clamped"
)]
fn milliseconds(score: f64) -> u64 {
    score.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::instance::Instance;

    #[test]
    fn slots_and_values_round_trip() {
        let client = ClientId::random(Instance::random());
        let channel = ChannelName::new("a b\u{0} c").unwrap();
        for slot in [Slot::User("an n".into()), Slot::Member(channel, client)] {
            assert_eq!(parse_slot(print_slot(&slot).as_bytes()), Some(slot));
        }
        for announce in [Announce::Yes, Announce::No] {
            let info = Bytes::from_static(b" \x00 \xff ");
            let value = Value { info, announce };
            let text = print_value("lease.1", &value);
            assert_eq!(parse_value(&text), Some(("lease.1", value)));
        }
    }

    #[test]
    fn undecodable_entries_are_ignored() {
        for entry in ["", "u", "x y", "m a b", "m ", "\u{ff} "] {
            assert_eq!(parse_slot(entry.as_bytes()), None, "{entry}");
        }
        assert_eq!(parse_slot(b"u \xff"), None);
        for value in ["", "lease", "lease a", "lease ? info"] {
            assert_eq!(parse_value(value.as_bytes()), None, "{value}");
        }
        assert_eq!(parse_value(b"\xff a info"), None);
    }
}
