//! The log in one Redis: its keys, its scripts, and what they reply.
//!
//! A node writes its steps as a *holder*, a name that is stored with the node's lease. When that lease has expired, any other
//! node fences the holder: the name is removed, so that the node can write nothing more under it, and its entries are ended,
//! each with its event. All keys have one hash tag, so that one script may use them together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::FromRedisValue;
use deadpool_redis::redis::Pipeline;
use deadpool_redis::redis::Value;

use super::delivery::Log;
use super::delivery::Pending;
use super::delivery::Turn;
use super::event::Event;
use super::journal::Key;
use super::journal::Step;
use crate::redis::Batch;
use crate::redis::CommandError;
use crate::redis::Commands;
use crate::redis::Keys;
use crate::redis::Script;
use crate::redis::Server;

/// A script, with the common prelude.
macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(
            include_str!("scripts/prelude.lua"),
            include_str!($file)
        ))
    };
}

static REGISTER: Script = script!("scripts/register.lua");
static RENEW: Script = script!("scripts/renew.lua");
static ENTER: Script = script!("scripts/enter.lua");
static FENCE: Script = script!("scripts/fence.lua");
static TEND: Script = script!("scripts/tend.lua");
static PENDING: Script = script!("scripts/pending.lua");
static DELIVERED: Script = script!("scripts/delivered.lua");
static HAND_OVER: Script = script!("scripts/hand_over.lua");

/// The common fields of all events of a node.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    pub(super) node_id: Arc<str>,
    /// How long an end is delayed for a reconnect.
    pub(super) coalesce: Duration,
    /// The most events in the log.
    pub(super) keep: usize,
}

/// The log in one Redis.
pub(super) struct RedisLog {
    commands: Commands,
    keys: Keys,
    scope: Scope,
    /// The index of the server, which is the prefix of event ids.
    index: usize,
}

/// The result of writing steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// They are in the log.
    Yes,
    /// The holder is fenced: its entries are ended, or are about to be.
    Fenced,
}

/// A holder and the lease that keeps it alive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Holding {
    pub(super) holder: String,
    pub(super) lease: String,
}

impl RedisLog {
    pub(super) fn new(server: &Server, scope: Scope, index: usize) -> Self {
        Self {
            commands: server.commands("lifecycle"),
            keys: server.keys.clone(),
            scope,
            index,
        }
    }

    /// Registers a holder, in place of `previous` if the node had one; `entered` is how many steps are in the log as far
    /// as the node knows. Returns how many there are, or `None` while entries of `previous` are still being ended.
    pub(super) async fn register(
        &self,
        holding: &Holding,
        previous: Option<&str>,
        entered: u64,
    ) -> Result<Option<u64>, CommandError> {
        let mut pipeline = Batch::new();
        let script = self.script(&mut pipeline, &REGISTER);
        script.arg(&holding.holder).arg(&holding.lease);
        script.arg(previous.unwrap_or_default()).arg(entered);
        let (is_registered, entered): (bool, u64) = self.reply(&pipeline).await?;
        Ok(is_registered.then_some(entered))
    }

    /// Sets the lease of the holder.
    pub(super) async fn renew(
        &self,
        holding: &Holding,
        entered: u64,
    ) -> Result<Entered, CommandError> {
        let mut pipeline = Batch::new();
        let script = self.script(&mut pipeline, &RENEW);
        script.arg(&holding.holder).arg(&holding.lease).arg(entered);
        self.entered(&pipeline).await
    }

    /// Enters `steps`, of which the first has this position. Those that are in the log already are skipped, so that a
    /// lost reply repeats nothing.
    pub(super) async fn enter(
        &self,
        holder: &str,
        position: u64,
        steps: &[Step],
    ) -> Result<Entered, CommandError> {
        let mut pipeline = Batch::new();
        let script = self.script(&mut pipeline, &ENTER);
        script.arg(holder).arg(&*self.scope.node_id).arg(position);
        for Step { key, begins } in steps {
            let (kind, name) = match key {
                Key::Client(client) => ("u", client.to_string()),
                Key::Channel(channel) => ("c", channel.as_str().to_owned()),
            };
            script.arg(if begins.is_some() { "+" } else { "-" });
            script.arg(kind).arg(name);
            let (user, transport, from) = match begins {
                Some(subject) => (&*subject.user, subject.transport, subject.from),
                None => ("", "", None),
            };
            let from = from.map(|from| from.to_string());
            script.arg(user).arg(transport);
            script.arg(from.unwrap_or_default());
        }
        self.entered(&pipeline).await
    }

    /// All holders whose lease has ended; none while this node's own, `lease`, is not live either: then Redis may be full, or
    /// have been unavailable, and no node could renew its lease.
    pub(super) async fn without_lease(&self, lease: &str) -> Result<Vec<Holding>, CommandError> {
        let mut pipeline = Batch::new();
        pipeline.cmd("HGETALL").arg(self.keys.lifecycle_holders());
        let command = pipeline.cmd("ZRANGE").arg(self.keys.live_leases());
        command.arg(0).arg(-1).arg("WITHSCORES");
        // Of the server that has the leases, whose clock they end by.
        pipeline.cmd("TIME");
        let mut values = self.commands.run(&pipeline).await?.values.into_iter();
        let holders: BTreeMap<String, String> = from(values.next())?;
        let leases: BTreeMap<String, f64> = from(values.next())?;
        let (seconds, _): (u64, u64) = from(values.next())?;
        let now = seconds as f64 * 1000.0;
        let is_alive = |lease: &str| leases.get(lease).is_some_and(|end| now < *end);
        if !is_alive(lease) {
            return Ok(Vec::new());
        }
        let holdings = holders
            .into_iter()
            .map(|(holder, lease)| Holding { holder, lease });
        Ok(holdings
            .filter(|holding| !is_alive(&holding.lease))
            .collect())
    }

    /// Fences a holder, if it still has this lease.
    pub(super) async fn fence(&self, holding: &Holding) -> Result<(), CommandError> {
        let mut pipeline = Batch::new();
        let script = self.script(&mut pipeline, &FENCE);
        script.arg(&holding.holder).arg(&holding.lease);
        self.commands.run(&pipeline).await.map(drop)
    }

    /// Emits some of the ends that are due, those of fenced holders among them. Returns whether there may be more.
    pub(super) async fn tend(&self) -> Result<bool, CommandError> {
        let mut pipeline = Batch::new();
        self.script(&mut pipeline, &TEND);
        self.reply(&pipeline).await
    }

    async fn entered(&self, pipeline: &Batch) -> Result<Entered, CommandError> {
        let is_entered: bool = self.reply(pipeline).await?;
        Ok(if is_entered {
            Entered::Yes
        } else {
            Entered::Fenced
        })
    }

    async fn reply<T: FromRedisValue>(&self, pipeline: &Batch) -> Result<T, CommandError> {
        let values = self.commands.run(pipeline).await?.values;
        from(values.into_iter().next())
    }

    /// Calls a script; the caller adds the arguments.
    fn script<'a>(&self, batch: &'a mut Batch, script: &'static Script) -> &'a mut Pipeline {
        let call = batch.call(script, &[self.keys.lifecycle_events()]);
        call.arg(self.scope.coalesce.as_millis().to_string())
            .arg(self.scope.keep)
    }

    fn event(&self, entry: &str, mut fields: BTreeMap<String, String>) -> Event {
        let mut number = |name: &str| fields.remove(name).and_then(|text| text.parse().ok());
        Event {
            number: number("number").unwrap_or_default(),
            time: number("time").unwrap_or_default(),
            id: format!("{}-{entry}", self.index),
            fields,
        }
    }
}

#[async_trait]
impl Log for RedisLog {
    async fn pending(&self, turn: Turn, count: usize) -> Result<Option<Pending>, CommandError> {
        let mut pipeline = Batch::new();
        let script = self.script(&mut pipeline, &PENDING);
        script.arg(turn.owner.to_string());
        script.arg(turn.lasts.as_millis().to_string()).arg(count);
        let reply: Option<(u64, Vec<(String, BTreeMap<String, String>)>)> =
            self.reply(&pipeline).await?;
        Ok(reply.map(|(delivered, entries)| Pending {
            delivered,
            events: entries
                .into_iter()
                .map(|(entry, fields)| self.event(&entry, fields))
                .collect(),
        }))
    }

    async fn delivered(&self, turn: Turn, last: &Event) -> Result<(), CommandError> {
        let entry = last.id.split_once('-').map_or("", |(_, entry)| entry);
        let mut pipeline = Batch::new();
        let script = self.script(&mut pipeline, &DELIVERED);
        script.arg(turn.owner.to_string());
        script.arg(turn.lasts.as_millis().to_string());
        script.arg(entry).arg(last.number);
        self.commands.run(&pipeline).await.map(drop)
    }

    async fn hand_over(&self, turn: Turn) -> Result<bool, CommandError> {
        let mut pipeline = Batch::new();
        self.script(&mut pipeline, &HAND_OVER)
            .arg(turn.owner.to_string());
        self.commands.run(&pipeline).await?;
        Ok(false)
    }
}

fn from<T: FromRedisValue>(value: Option<Value>) -> Result<T, CommandError> {
    T::from_redis_value(value.unwrap_or(Value::Nil))
        .map_err(|error| CommandError::Refused(format!("unexpected reply: {error}")))
}
