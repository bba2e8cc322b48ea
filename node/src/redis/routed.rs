//! Sends commands to the server that has their keys: the only one, or one of a cluster.
//!
//! In a cluster the commands of a batch are sent to several servers at once, phase by phase
//! ([`Batch::after_that`]). What a server rejects since the slot belongs elsewhere was not executed, and is sent again: for as
//! long as commands may take.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use deadpool_redis::redis::Arg;
use deadpool_redis::redis::Cmd;
use deadpool_redis::redis::ServerError;
use deadpool_redis::redis::Value;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time;
use tokio::time::Duration;
use tokio::time::Instant;

use super::Batch;
use super::Connector;
use super::cluster::Cluster;
use super::cluster::redirect::Redirect;
use super::commands::CommandError;
use super::commands::Replies;
use super::commands::ServerCommands;
use super::commands::error_in;
use super::slot::Slot;
use crate::config::RedisAddress;

/// The first and the longest pause before commands are sent again that a server cannot execute now.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(160);

/// The most servers with which connections are kept because of a slot that is on its way.
const ASKED_MAX: usize = 16;

/// Connections for commands.
pub(crate) struct Commands(Route);

#[expect(
    clippy::large_enum_variant,
    reason = "a node has a handful of them for as long as it runs"
)]
enum Route {
    One(ServerCommands),
    Cluster(ClusterCommands),
}

struct ClusterCommands {
    cluster: Arc<Cluster>,
    role: &'static str,
    /// By the number of the shard.
    shards: Mutex<Vec<Arc<ServerCommands>>>,
    /// Servers that are about to get a slot.
    asked: Mutex<HashMap<RedisAddress, Arc<ServerCommands>>>,
}

impl Commands {
    /// Connects with the first command. `role` is part of the name that `CLIENT LIST` shows.
    pub(super) fn to_one(connector: Connector, role: &'static str) -> Self {
        Self(Route::One(ServerCommands::new(connector, role)))
    }

    /// The same, for all servers of a cluster.
    pub(super) fn to_cluster(cluster: Arc<Cluster>, role: &'static str) -> Self {
        Self(Route::Cluster(ClusterCommands {
            cluster,
            role,
            shards: Mutex::default(),
            asked: Mutex::default(),
        }))
    }

    /// Sends `commands` and waits for all of their replies.
    ///
    /// # Errors
    ///
    /// [`CommandError`]: it is unknown which of the commands were executed.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future it is unknown whether the commands are executed.
    pub(crate) async fn run(&self, commands: &Batch) -> Result<Replies, CommandError> {
        let replies = self.try_each(commands).await?;
        match replies.values.iter().find_map(error_in) {
            Some(error) if matches!(self.0, Route::Cluster(_)) && is_redirect(error) => {
                Err(CommandError::Uncovered(error.to_string()))
            }
            Some(error) => Err(CommandError::of(error)),
            None => Ok(replies),
        }
    }

    /// As [`run`](Self::run), but error replies are returned among the others.
    ///
    /// # Errors
    ///
    /// [`CommandError`], except [`CommandError::Refused`] and [`CommandError::Full`].
    ///
    /// # Cancel safety
    ///
    /// After dropping this future it is unknown whether the commands are executed.
    pub(crate) async fn try_each(&self, commands: &Batch) -> Result<Replies, CommandError> {
        match &self.0 {
            Route::One(server) => server.try_each(commands).await,
            Route::Cluster(cluster) => cluster.try_each(commands).await,
        }
    }

    /// Sends `commands`, which have no keys, to every server. Error replies are returned among the others.
    ///
    /// # Errors
    ///
    /// As of [`try_each`](Self::try_each).
    pub(crate) async fn everywhere(&self, commands: &Batch) -> Result<Vec<Replies>, CommandError> {
        match &self.0 {
            Route::One(server) => Ok(vec![server.try_each(commands).await?]),
            Route::Cluster(cluster) => {
                let topology = cluster.cluster.topology();
                let servers: Vec<_> = topology
                    .numbers()
                    .map(|number| cluster.server(number))
                    .collect();
                let sent = servers.iter().map(|server| server.try_each(commands));
                join_all(sent).await.into_iter().collect()
            }
        }
    }

    /// Makes the next command reconnect: the connection may be dead, and detecting that by a command takes
    /// the whole response timeout.
    pub(crate) fn suspect(&self) {
        match &self.0 {
            Route::One(server) => server.suspect(),
            Route::Cluster(cluster) => {
                cluster
                    .shards
                    .lock()
                    .iter()
                    .for_each(|server| server.suspect());
            }
        }
    }
}

impl ClusterCommands {
    async fn try_each(&self, commands: &Batch) -> Result<Replies, CommandError> {
        let slots = slots(commands);
        let mut values: Vec<Value> = vec![Value::Nil; commands.len()];
        for phase in commands.phases() {
            self.send(commands, &slots, phase.collect(), &mut values)
                .await?;
        }
        Ok(Replies {
            values,
            connection: self.connections(),
        })
    }

    /// Sends the commands with the indexes `pending`, and again what was redirected.
    async fn send(
        &self,
        commands: &Batch,
        slots: &[Option<Slot>],
        mut pending: Vec<usize>,
        values: &mut [Value],
    ) -> Result<(), CommandError> {
        let wait_max = self.cluster.wait_max();
        let deadline = Instant::now() + wait_max;
        let mut pause = PAUSE;
        while !pending.is_empty() {
            let topology = self.cluster.topology();
            let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            let mut uncovered = Vec::new();
            for index in pending.drain(..) {
                let shard = match slots[index] {
                    Some(slot) => topology.shard_of(slot),
                    None => topology.numbers().next(),
                };
                match shard {
                    Some(shard) => groups.entry(shard).or_default().push(index),
                    None => uncovered.push(index),
                }
            }
            let servers: Vec<_> = groups.keys().map(|shard| self.server(*shard)).collect();
            let sent = servers
                .iter()
                .zip(groups.values())
                .map(|(server, indexes)| async move {
                    let replies = if indexes.len() == commands.len() {
                        server.try_each(commands).await?
                    } else {
                        server.try_each(&commands.only(indexes)).await?
                    };
                    Ok::<_, CommandError>(replies.values)
                });
            let mut asks: Vec<(usize, RedisAddress)> = Vec::new();
            let mut is_moved = !uncovered.is_empty();
            for (indexes, sent) in groups.values().zip(join_all(sent).await) {
                for (index, value) in indexes.iter().zip(sent?) {
                    match redirect_in(&value) {
                        None => values[*index] = value,
                        Some(redirect) => {
                            values[*index] = value;
                            match redirect {
                                Redirect::Ask { to: Some(to), .. } => asks.push((*index, to)),
                                Redirect::Moved { .. } => {
                                    is_moved = true;
                                    pending.push(*index);
                                }
                                Redirect::Ask { .. } | Redirect::Later => pending.push(*index),
                            }
                        }
                    }
                }
            }
            for (index, to) in asks {
                let value = self.ask(commands, index, &to).await?;
                if redirect_in(&value).is_some() {
                    pending.push(index);
                }
                values[index] = value;
            }
            let is_over = deadline <= Instant::now();
            if let Some(slot) = uncovered
                .first()
                .map(|index| slots[*index])
                .filter(|_| is_over)
            {
                return Err(CommandError::Uncovered(self.cluster.why_uncovered(slot)));
            }
            pending.append(&mut uncovered);
            if pending.is_empty() || is_over {
                return Ok(()); // The last errors are among the replies.
            }
            pending.sort_unstable();
            if is_moved {
                self.cluster.refreshed(deadline).await;
            }
            time::sleep(pause).await;
            pause = PAUSE_MAX.min(2 * pause);
        }
        Ok(())
    }

    /// Sends one command to a server that is about to get its slot.
    async fn ask(
        &self,
        commands: &Batch,
        index: usize,
        to: &RedisAddress,
    ) -> Result<Value, CommandError> {
        let server = {
            let mut asked = self.asked.lock();
            if ASKED_MAX <= asked.len() && !asked.contains_key(to) {
                asked.clear();
            }
            let server = asked.entry(to.clone()).or_insert_with(|| {
                let connector = self.cluster.connector_to(to);
                Arc::new(ServerCommands::new(connector, self.role))
            });
            Arc::clone(server)
        };
        let mut replies = server.try_each(&commands.only(&[index]).asking()).await?;
        Ok(replies.values.pop().unwrap_or(Value::Nil))
    }

    fn server(&self, shard: usize) -> Arc<ServerCommands> {
        let mut shards = self.shards.lock();
        while shards.len() <= shard {
            let connector = self.cluster.connector(shards.len());
            shards.push(Arc::new(ServerCommands::new(connector, self.role)));
        }
        Arc::clone(&shards[shard])
    }

    /// Changes when a connection to any of the servers is replaced: another server may be there then.
    fn connections(&self) -> u64 {
        let shards = self.shards.lock();
        let replaced = shards.iter().map(|server| server.replaced());
        replaced.sum::<u64>() + 1
    }
}

fn redirect_in(value: &Value) -> Option<Redirect> {
    error_in(value).and_then(redirect_of)
}

fn redirect_of(error: &ServerError) -> Option<Redirect> {
    Redirect::parse(error.code(), error.details().unwrap_or_default())
}

fn is_redirect(error: &ServerError) -> bool {
    redirect_of(error).is_some()
}

/// The slot of each command. One without a key goes where the one before it does, or else the next one.
fn slots(commands: &Batch) -> Vec<Option<Slot>> {
    let mut slots: Vec<Option<Slot>> = commands.commands().map(slot_of).collect();
    let mut last = slots.iter().flatten().next().copied();
    for slot in &mut slots {
        last = slot.or(last);
        *slot = last;
    }
    slots
}

/// The slot of a command's first key.
fn slot_of(command: &Cmd) -> Option<Slot> {
    let mut arguments = command.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => bytes,
        _ => b"",
    });
    let key = match arguments.next()? {
        b"EVAL" | b"EVALSHA" => {
            let keys = arguments.nth(1)?;
            arguments.next().filter(|_| keys != b"0")
        }
        b"TIME" | b"INFO" | b"SCRIPT" | b"PING" | b"WAIT" => None,
        _ => arguments.next(),
    };
    key.map(Slot::of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::Script;

    static SCRIPT: Script = Script::new("return 1");

    #[test]
    fn commands_go_to_the_slot_of_their_key_and_those_without_one_with_their_neighbours() {
        let mut batch = Batch::new();
        batch.cmd("TIME");
        batch.cmd("ZADD").arg("a").arg("b");
        batch.call(&SCRIPT, &["c", "d"]).arg("e");
        batch.call::<&str>(&SCRIPT, &[]).arg("e");
        batch.cmd("EVAL").arg("return 1").arg(1).arg("f");
        batch.cmd("SPUBLISH").arg("g").arg("h");
        let expected = ["a", "a", "c", "c", "f", "g"];
        let expected = expected.map(|key| Some(Slot::of(key.as_bytes())));
        assert_eq!(slots(&batch), expected);
        let mut keyless = Batch::new();
        keyless.cmd("INFO").arg("memory");
        assert_eq!(slots(&keyless), [None]);
    }

    #[test]
    fn a_batch_is_split_by_phases_and_by_commands() {
        let mut batch = Batch::new();
        batch.after_that();
        batch.cmd("GET").arg("a");
        batch.call(&SCRIPT, &["b"]);
        batch.after_that();
        batch.cmd("GET").arg("c");
        batch.after_that();
        assert_eq!(batch.phases(), [0..2, 2..3]);
        let part = batch.only(&[1, 2]);
        let phases = part.phases();
        let whole = phases.first().filter(|_| phases.len() == 1);
        assert_eq!((part.len(), whole), (2, Some(&(0..2))));
        // A permission comes before each command, and scripts are sent by their text.
        let asking = part.asking();
        let first = |command: &Cmd| match command.args_iter().next() {
            Some(Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
            _ => String::new(),
        };
        let names: Vec<String> = asking.commands().map(first).collect();
        assert_eq!(names, ["ASKING", "EVAL", "ASKING", "GET"]);
    }
}
