//! What Redis does in one step for a channel's stream: how it is told, and what it answers.

use deadpool_redis::redis::Cmd;
use deadpool_redis::redis::Value;

use super::whereabouts::Answer;
use crate::broker::Ask;
use crate::broker::Store;
use crate::broker::Stored;
use crate::broker::history::Entry;
use crate::broker::history::Order;
use crate::broker::history::Page;
use crate::broker::history::Unborn;
use crate::protocol::Epoch;
use crate::protocol::Position;
use crate::protocol::channel::ChannelName;
use crate::redis::keys;

/// Stores and publishes.
pub(super) const STORE: &str = concat!(
    include_str!("scripts/position.lua"),
    include_str!("scripts/store.lua")
);

/// Reads.
pub(super) const READ: &str = concat!(
    include_str!("scripts/position.lua"),
    include_str!("scripts/read.lua")
);

/// Publishes a probe.
pub(super) const PROBE: &str = include_str!("scripts/probe.lua");

/// Which command runs a script, and what it takes to name the script.
#[derive(Debug, Clone, Copy)]
pub(super) enum Run<'a> {
    /// By the digest that Redis has given it.
    Digest(&'a str),
    /// By its text, which Redis then knows.
    Text(&'a str),
}

/// Answers nothing that these scripts return.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("redis returned something else than its script")]
pub(super) struct Strange;

/// The command that publishes `store`.
pub(super) fn store(run: Run<'_>, store: &Store) -> Cmd {
    let (size, ttl, meta_ttl) = store.retention.map_or((0, 0, 0), |retention| {
        let (ttl, meta_ttl) = (retention.ttl.as_millis(), retention.meta_ttl.as_millis());
        (retention.size.get(), ttl, meta_ttl)
    });
    let mut keys = vec![
        keys::stream(&store.channel),
        keys::stream_meta(&store.channel),
    ];
    let result_ttl = store.idempotency.as_ref().map_or(0, |idempotency| {
        keys.push(keys::past_result(&store.channel, &idempotency.key));
        idempotency.ttl.as_millis()
    });
    let mut command = start(run, &keys);
    command
        .arg(ChannelName::wire(&store.channel).as_str())
        .arg(store.body.as_ref())
        .arg(size)
        .arg(ttl.to_string())
        .arg(meta_ttl.to_string())
        .arg(Epoch::random().as_str())
        .arg(result_ttl.to_string());
    command
}

/// What the answer to [`store`] says.
pub(super) fn stored(answer: &Value) -> Result<Stored, Strange> {
    let Value::Array(parts) = answer else {
        return Err(Strange);
    };
    let [offset, epoch] = parts.as_slice() else {
        return Err(Strange);
    };
    let (offset, epoch) = (number(offset)?, text(epoch)?);
    let position = (offset != 0).then(|| Position {
        epoch: epoch.into(),
        offset,
    });
    Ok(Stored { position })
}

/// The command that publishes a probe on `channel`.
pub(super) fn probe(run: Run<'_>, channel: &ChannelName, data: &[u8]) -> Cmd {
    let mut command = start(run, &[]);
    command.arg(channel.as_str()).arg(data);
    command
}

/// What the answer to [`probe`] says, or the one to a PUBLISH.
pub(super) fn probed(answer: &Value) -> Result<Answer, Strange> {
    let (heard_by, server) = match answer {
        Value::Array(parts) => match parts.as_slice() {
            [heard_by, server] => (heard_by, text(server)?),
            _ => return Err(Strange),
        },
        heard_by => (heard_by, ""),
    };
    Ok(Answer {
        heard_by: number(heard_by)?,
        server: Some(server.to_owned()).filter(|server| !server.is_empty()),
    })
}

/// The command that reads what `ask` wants.
pub(super) fn read(run: Run<'_>, ask: &Ask) -> Cmd {
    let keys = [keys::stream(&ask.channel), keys::stream_meta(&ask.channel)];
    let query = &ask.query;
    let mut command = start(run, &keys);
    command
        .arg(ask.retention.meta_ttl.as_millis().to_string())
        .arg(Epoch::random().as_str())
        .arg(query.limit)
        .arg(query.bytes_max)
        .arg(match query.order {
            Order::OldestFirst => "asc",
            Order::NewestFirst => "desc",
        });
    if let Some(since) = &query.since {
        command.arg(since.epoch.as_str()).arg(since.offset);
    }
    command
}

/// What the answer to [`read`] says.
pub(super) fn page(answer: Value) -> Result<Page, Strange> {
    let Value::Array(parts) = answer else {
        return Err(Strange);
    };
    let [epoch, offset, Value::Array(entries), is_cut, origin] = parts.as_slice() else {
        return Err(Strange);
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
        origin: Unborn::parse(text(origin)?),
    })
}

fn entry(value: &Value) -> Result<Entry, Strange> {
    let Value::Array(parts) = value else {
        return Err(Strange);
    };
    let [id, Value::Array(fields)] = parts.as_slice() else {
        return Err(Strange);
    };
    let [_, Value::BulkString(body)] = fields.as_slice() else {
        return Err(Strange);
    };
    let offset = text(id)?.strip_suffix("-0").ok_or(Strange)?;
    Ok(Entry {
        offset: offset.parse().map_err(|_| Strange)?,
        body: body.clone().into(),
    })
}

fn start(run: Run<'_>, keys: &[String]) -> Cmd {
    let mut command = match run {
        Run::Digest(digest) => Cmd::new().arg("EVALSHA").arg(digest).to_owned(),
        Run::Text(text) => Cmd::new().arg("EVAL").arg(text).to_owned(),
    };
    command.arg(keys.len()).arg(keys);
    command
}

fn text(value: &Value) -> Result<&str, Strange> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).map_err(|_| Strange),
        Value::SimpleString(text) => Ok(text),
        _ => Err(Strange),
    }
}

fn number(value: &Value) -> Result<u64, Strange> {
    match value {
        Value::Int(number) => u64::try_from(*number).map_err(|_| Strange),
        value => text(value)?.parse().map_err(|_| Strange),
    }
}
