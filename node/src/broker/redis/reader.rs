//! Reads streams, and runs other commands that are no publications.

use deadpool_redis::redis::Value;

use super::scripts;
use crate::broker::Ask;
use crate::broker::Unavailable;
use crate::broker::history::Page;
use crate::protocol::channel::ChannelName;
use crate::redis::Access;
use crate::redis::Batch;
use crate::redis::CommandError;
use crate::redis::Commands;
use crate::redis::Connector;
use crate::redis::Keys;
use crate::redis::Server;
use crate::redis::chain;

/// Runs read commands on one server; all callers share a connection.
pub(super) struct Reader {
    commands: Commands,
    /// `None` in a cluster, where nothing counts failovers.
    connector: Option<Connector>,
    keys: Keys,
}

impl Reader {
    pub(super) fn new(server: &Server) -> Self {
        Self {
            commands: server.commands("reader"),
            connector: match &server.access {
                Access::One(connector) => Some(connector.clone()),
                Access::Cluster(_) => None,
            },
            keys: server.keys.clone(),
        }
    }

    /// See [`Commands::suspect`].
    pub(super) fn suspect(&self) {
        self.commands.suspect();
    }

    pub(super) async fn history(&self, ask: &Ask) -> Result<Page, Unavailable> {
        let failover = self.failover();
        let reply = self
            .run_one(&scripts::read(&self.keys, ask, failover))
            .await?;
        if self.failover() != failover {
            let why = "another redis became the primary meanwhile";
            return Err(Unavailable(why.to_owned()));
        }
        scripts::page(reply).map_err(|error| Unavailable(error.to_string()))
    }

    fn failover(&self) -> u64 {
        self.connector.as_ref().map_or(0, Connector::failover)
    }

    pub(super) async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        let mut batch = Batch::new();
        batch.cmd("DEL").arg(self.keys.stream(channel));
        self.run_one(&batch).await?;
        Ok(())
    }

    async fn run_one(&self, batch: &Batch) -> Result<Value, Unavailable> {
        let replies = self.commands.run(batch).await;
        let mut replies = replies.map_err(|error: CommandError| Unavailable(chain(&error)))?;
        Ok(replies.values.pop().unwrap_or(Value::Nil))
    }
}
