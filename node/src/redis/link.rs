//! A connection for commands, which are pipelined on it, and the scripts among them.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::AsyncConnectionConfig;
use deadpool_redis::redis::Cmd;
use deadpool_redis::redis::Pipeline;
use deadpool_redis::redis::RedisConnectionInfo;
use deadpool_redis::redis::RedisError;
use deadpool_redis::redis::ServerError;
use deadpool_redis::redis::Value;
use deadpool_redis::redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;

use super::ConnectError;
use super::Connector;
use super::Script;
use super::connect::Identity;
use super::connect::Opened;
use super::script;
use super::tenure::Tenure;

/// A connection for commands. Clones share it; it is closed with the last one.
#[derive(Clone)]
pub(crate) struct Link {
    connection: MultiplexedConnection,
    pub(super) identity: Option<Identity>,
    tenure: Tenure,
    /// Reads and writes; ends with the connection, or is ended with the link.
    _driver: Arc<JoinSet<()>>,
}

/// Commands that are sent together, some of which may call scripts.
///
/// If a script is missing, only the calls of scripts are repeated: plain commands whose place among the calls matters belong
/// into another batch.
pub(crate) struct Batch {
    commands: Pipeline,
    /// The calls, by their index among the commands.
    calls: Vec<(usize, &'static Script)>,
    /// Where a phase begins, other than the first.
    phases: Vec<usize>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            commands: Pipeline::new(),
            calls: Vec::new(),
            phases: Vec::new(),
        }
    }

    /// Has all commands that are added from now on executed after those before. One server does so anyway; in a cluster,
    /// commands without this between them may be on different servers.
    pub(crate) fn after_that(&mut self) {
        self.phases.push(self.commands.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.commands.len()
    }

    /// The commands of each phase, by their index.
    pub(super) fn phases(&self) -> Vec<Range<usize>> {
        let ends = self.phases.iter().copied().chain([self.len()]);
        let mut start = 0;
        ends.map(|end| std::mem::replace(&mut start, end)..end)
            .filter(|phase| !phase.is_empty())
            .collect()
    }

    pub(super) fn commands(&self) -> impl Iterator<Item = &Cmd> {
        self.commands.cmd_iter()
    }

    /// The commands with these indexes, which ascend.
    pub(super) fn only(&self, indexes: &[usize]) -> Self {
        let mut batch = Self::new();
        let mut wanted = indexes.iter().copied().peekable();
        for (index, command) in self.commands().enumerate() {
            if wanted.next_if_eq(&index).is_some() {
                let call = self.calls.iter().find(|(call, _)| *call == index);
                if let Some((_, script)) = call {
                    batch.calls.push((batch.commands.len(), *script));
                }
                batch.commands.add_command(command.clone());
            }
        }
        batch
    }

    /// The same commands, each permitted once on a server that is about to get its slot. The replies to the permissions come
    /// before each other one.
    pub(crate) fn asking(&self) -> Self {
        let mut batch = Self::new();
        for (index, command) in self.commands().enumerate() {
            batch.commands.cmd("ASKING");
            let call = self.calls.iter().find(|(call, _)| *call == index);
            // By its text: a repetition would lack the permission.
            let command = match call {
                Some((_, script)) => script.by_text(command),
                None => command.clone(),
            };
            batch.commands.add_command(command);
        }
        batch
    }

    /// Adds a command; the caller adds the arguments.
    pub(crate) fn cmd(&mut self, name: &str) -> &mut Pipeline {
        self.commands.cmd(name)
    }

    /// Adds a call of `script`; the caller adds the arguments.
    pub(crate) fn call<T: AsRef<str>>(
        &mut self,
        script: &'static Script,
        keys: &[T],
    ) -> &mut Pipeline {
        self.calls.push((self.commands.len(), script));
        let call = self.commands.cmd("EVALSHA").arg(script.digest());
        call.arg(keys.len());
        for key in keys {
            call.arg(key.as_ref());
        }
        call
    }
}

impl Link {
    /// Connects. `role` is part of the name that `CLIENT LIST` shows.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub(crate) async fn open(connector: &Connector, role: &str) -> Result<Self, ConnectError> {
        let opened = connector.open(role).await?;
        Ok(Self::over(opened, connector.response_timeout()).await)
    }

    async fn over(opened: Opened, response_timeout: Duration) -> Self {
        // The login is done, so that nothing is sent here and nothing can fail.
        let login = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(response_timeout));
        let connection =
            MultiplexedConnection::new_with_config(&login, opened.stream, config).await;
        let (connection, driver) = connection.expect("nothing is sent");
        let mut tasks = JoinSet::new();
        tasks.spawn(driver);
        Self {
            connection,
            identity: opened.identity,
            tenure: opened.tenure,
            _driver: Arc::new(tasks),
        }
    }

    /// Sends a batch and waits for the replies, one for each command; some may be errors. Scripts that Redis does not have
    /// are sent.
    ///
    /// # Errors
    ///
    /// [`RedisError`]: the connection can no longer be used; it is unknown which of the commands were executed.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future it is unknown whether the commands are executed.
    pub(crate) async fn send(&mut self, batch: &Batch) -> Result<Vec<Value>, RedisError> {
        let mut replies = self.exchange(&batch.commands).await?;
        let missing = |&&(index, _): &&(usize, &Script)| matches!(replies.get(index), Some(Value::ServerError(error)) if script::is_missing(error));
        let missing: Vec<_> = batch.calls.iter().filter(missing).collect();
        if missing.is_empty() {
            return Ok(replies);
        }
        let mut again = Pipeline::with_capacity(missing.len());
        let mut indexes = missing.iter().peekable();
        for (index, command) in batch.commands.cmd_iter().enumerate() {
            if let Some((_, script)) = indexes.next_if(|(missing, _)| *missing == index) {
                again.add_command(script.by_text(command));
            }
        }
        let repeated = self.exchange(&again).await?;
        for ((index, _), reply) in missing.into_iter().zip(repeated) {
            replies[*index] = reply;
        }
        Ok(replies)
    }

    /// Sends a batch that is not repeated: a call of a missing script is an error reply.
    ///
    /// # Errors
    ///
    /// As of [`send`](Self::send).
    pub(crate) async fn send_once(&mut self, batch: &Batch) -> Result<Vec<Value>, RedisError> {
        self.exchange(&batch.commands).await
    }

    /// Has Redis keep `script`, so that calls in [`send_once`](Self::send_once) succeed. Returns Redis's error if it rejects
    /// that.
    ///
    /// # Errors
    ///
    /// As of [`send`](Self::send).
    pub(crate) async fn load(
        &mut self,
        script: &'static Script,
    ) -> Result<Result<(), ServerError>, RedisError> {
        let mut load = Pipeline::new();
        load.cmd("SCRIPT").arg("LOAD").arg(script.text());
        let mut replies = self.exchange(&load).await?;
        Ok(match replies.pop() {
            Some(Value::ServerError(error)) => Err(error),
            _ => Ok(()),
        })
    }

    pub(super) async fn exchange(&mut self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let count = commands.len();
        tokio::select! {
            biased;
            replies = self.connection.send_packed_commands(commands, 0, count) => replies,
            () = self.tenure.over() => Err(io::Error::other("another redis is the primary now").into()),
        }
    }

    /// The number of the failover that made the server the primary ([`Tenure::failover`]).
    pub(crate) fn failover(&self) -> u64 {
        self.tenure.failover()
    }

    /// The time for which the server is the primary.
    pub(crate) fn tenure(&self) -> Tenure {
        self.tenure.clone()
    }
}
