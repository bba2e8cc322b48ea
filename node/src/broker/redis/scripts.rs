//! The scripts that work on a channel's stream atomically: their commands and their replies.

use std::time::Instant;

use deadpool_redis::redis::ServerError;
use deadpool_redis::redis::Value;

use super::acknowledged::Last;
use super::primary_check::ProbeReply;
use crate::broker::Ask;
use crate::broker::Store;
use crate::broker::Stored;
use crate::broker::history::Entry;
use crate::broker::history::Order;
use crate::broker::history::Page;
use crate::broker::history::Unstarted;
use crate::protocol::Epoch;
use crate::protocol::Position;
use crate::protocol::channel::ChannelName;
use crate::redis::Batch;
use crate::redis::Keys;
use crate::redis::Script;

/// Stores and publishes.
pub(super) static STORE: Script = Script::new(concat!(
    include_str!("scripts/position.lua"),
    include_str!("scripts/store.lua")
));

/// Reads.
static READ: Script = Script::new(concat!(
    include_str!("scripts/position.lua"),
    include_str!("scripts/read.lua")
));

/// Begins a new epoch after a failover that this node has learnt of late.
static RENEW: Script = Script::new(concat!(
    include_str!("scripts/position.lua"),
    include_str!("scripts/renew.lua")
));

/// Publishes a probe.
pub(super) static PROBE: Script = Script::new(include_str!("scripts/probe.lua"));

/// A reply that these scripts do not return.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected reply of redis to a script")]
pub(super) struct UnexpectedReply;

/// Adds the command that publishes `store`. `failover`: that of the primary which the command is sent to.
pub(super) fn store(batch: &mut Batch, names: &Keys, store: &Store, failover: u64) {
    let (size, ttl, meta_ttl) = store.retention.map_or((0, 0, 0), |retention| {
        let (ttl, meta_ttl) = (retention.ttl.as_millis(), retention.meta_ttl.as_millis());
        (retention.size.get(), ttl, meta_ttl)
    });
    let mut keys = vec![
        names.stream(&store.channel),
        names.stream_meta(&store.channel),
    ];
    let result_ttl = store.idempotency.as_ref().map_or(0, |idempotency| {
        keys.push(names.past_result(&store.channel, &idempotency.key));
        idempotency.ttl.as_millis()
    });
    batch
        .call(&STORE, &keys)
        .arg(&*names.channel(&ChannelName::wire(&store.channel)))
        .arg(store.body.as_ref())
        .arg(size)
        .arg(ttl.to_string())
        .arg(meta_ttl.to_string())
        .arg(Epoch::random().as_str())
        .arg(result_ttl.to_string())
        .arg(failover)
        .arg(names.pubsub(&ChannelName::wire(&store.channel)).publish());
}

/// Parses the reply to [`store`].
pub(super) fn stored(reply: &Value) -> Result<Stored, UnexpectedReply> {
    let Value::Array(parts) = reply else {
        return Err(UnexpectedReply);
    };
    let [offset, epoch, ..] = parts.as_slice() else {
        return Err(UnexpectedReply);
    };
    let (offset, epoch) = (number(offset)?, text(epoch)?);
    let position = (offset != 0).then(|| Position {
        epoch: epoch.into(),
        offset,
    });
    Ok(Stored { position })
}

/// Whether the reply to [`store`] says that it was published by that, and not before.
pub(super) fn is_newly_stored(reply: &Value) -> bool {
    matches!(reply, Value::Array(parts) if parts.len() == 3)
}

/// Adds the command that begins a new epoch of the stream of `channel`, if that was used on this primary before `last`,
/// when this node last acknowledged a publication on the one before it. `failover`: that of this primary.
pub(super) fn renew(
    batch: &mut Batch,
    names: &Keys,
    channel: &ChannelName,
    last: &Last,
    (failover, now): (u64, Instant),
) {
    let wire = ChannelName::wire(channel);
    let age = now.saturating_duration_since(last.at);
    batch
        .call(&RENEW, &[names.stream(channel), names.stream_meta(channel)])
        .arg(&*names.channel(&wire))
        .arg(last.meta_ttl.as_millis().to_string())
        .arg(Epoch::random().as_str())
        .arg(failover)
        .arg(age.as_millis().to_string())
        .arg(names.pubsub(&wire).publish());
}

/// Adds the command that publishes a probe on `channel`.
pub(super) fn probe(batch: &mut Batch, names: &Keys, channel: &ChannelName, data: &[u8]) {
    // Without a key: while the slot is on its way, a server of a cluster would have the other one execute it.
    let call = batch.call::<&str>(&PROBE, &[]);
    let publish = names.pubsub(channel).publish();
    call.arg(&*names.channel(channel)).arg(data).arg(publish);
}

/// Whether a server of a cluster has rejected [`probe`] because it does not have the slot.
pub(super) fn is_elsewhere(error: &ServerError) -> bool {
    error.code() == "MOVED" || error.to_string().contains("non local key")
}

/// Parses the reply to [`probe`], or to a PUBLISH.
pub(super) fn probed(reply: &Value) -> Result<ProbeReply, UnexpectedReply> {
    let (receivers, server) = match reply {
        Value::Array(parts) => match parts.as_slice() {
            [receivers, server] => (receivers, text(server)?),
            _ => return Err(UnexpectedReply),
        },
        receivers => (receivers, ""),
    };
    Ok(ProbeReply {
        receivers: number(receivers)?,
        server: Some(server.to_owned()).filter(|server| !server.is_empty()),
    })
}

/// The command that reads what `ask` requests. `failover`: see [`Connector::failover`](crate::redis::Connector::failover).
pub(super) fn read(names: &Keys, ask: &Ask, failover: u64) -> Batch {
    let keys = [names.stream(&ask.channel), names.stream_meta(&ask.channel)];
    let query = &ask.query;
    let mut batch = Batch::new();
    let call = batch
        .call(&READ, &keys)
        .arg(ask.retention.meta_ttl.as_millis().to_string())
        .arg(Epoch::random().as_str())
        .arg(failover)
        .arg(query.limit)
        .arg(query.bytes_max)
        .arg(match query.order {
            Order::OldestFirst => "asc",
            Order::NewestFirst => "desc",
        });
    if let Some(since) = &query.since {
        call.arg(since.epoch.as_str()).arg(since.offset);
    }
    batch
}

/// Parses the reply to [`read`].
pub(super) fn page(reply: Value) -> Result<Page, UnexpectedReply> {
    let Value::Array(parts) = reply else {
        return Err(UnexpectedReply);
    };
    let [epoch, offset, Value::Array(entries), is_cut, origin] = parts.as_slice() else {
        return Err(UnexpectedReply);
    };
    let position = Position {
        epoch: text(epoch)?.into(),
        offset: number(offset)?,
    };
    let entries: Result<_, _> = entries.iter().map(entry).collect();
    Ok(Page {
        position,
        entries: entries?,
        is_cut: number(is_cut)? != 0,
        origin: Unstarted::parse(text(origin)?),
    })
}

fn entry(value: &Value) -> Result<Entry, UnexpectedReply> {
    let Value::Array(parts) = value else {
        return Err(UnexpectedReply);
    };
    let [id, Value::Array(fields)] = parts.as_slice() else {
        return Err(UnexpectedReply);
    };
    let [_, Value::BulkString(body)] = fields.as_slice() else {
        return Err(UnexpectedReply);
    };
    let offset = text(id)?.strip_suffix("-0").ok_or(UnexpectedReply)?;
    Ok(Entry {
        offset: offset.parse().map_err(|_| UnexpectedReply)?,
        body: body.clone().into(),
    })
}

fn text(value: &Value) -> Result<&str, UnexpectedReply> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).map_err(|_| UnexpectedReply),
        Value::SimpleString(text) => Ok(text),
        _ => Err(UnexpectedReply),
    }
}

fn number(value: &Value) -> Result<u64, UnexpectedReply> {
    match value {
        Value::Int(number) => u64::try_from(*number).map_err(|_| UnexpectedReply),
        value => text(value)?.parse().map_err(|_| UnexpectedReply),
    }
}
