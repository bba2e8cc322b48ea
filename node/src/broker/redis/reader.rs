//! Reads streams, and runs other commands that are no publications.

use deadpool_redis::redis::Pipeline;
use deadpool_redis::redis::Value;
use tokio::sync::OnceCell;

use super::chain;
use super::scripts;
use super::scripts::Run;
use crate::broker::Ask;
use crate::broker::Unavailable;
use crate::broker::history::Page;
use crate::protocol::channel::ChannelName;
use crate::redis::CommandError;
use crate::redis::Commands;
use crate::redis::keys;

/// Runs read commands on one server; all callers share a connection.
pub(super) struct Reader {
    commands: Commands,
    /// The digest of [`scripts::READ`]; `None` if loading is not permitted, and the text is sent each time.
    digest: OnceCell<Option<String>>,
}

impl Reader {
    pub(super) fn new(commands: Commands) -> Self {
        let digest = OnceCell::new();
        Self { commands, digest }
    }

    /// See [`Commands::suspect`].
    pub(super) fn suspect(&self) {
        self.commands.suspect();
    }

    pub(super) async fn history(&self, ask: &Ask) -> Result<Page, Unavailable> {
        let digest = self.digest.get_or_try_init(|| self.load()).await?;
        let by_text = scripts::read(Run::Text(scripts::READ), ask);
        let answer = match digest {
            Some(digest) => match self.run_one(scripts::read(Run::Digest(digest), ask)).await {
                // Redis was restarted, or its scripts were flushed.
                Err(CommandError::Refused(answer))
                    if answer.to_lowercase().contains("noscript") =>
                {
                    self.run_one(by_text).await
                }
                other => other,
            },
            None => self.run_one(by_text).await,
        };
        scripts::page(answer.map_err(unavailable)?).map_err(|error| Unavailable(error.to_string()))
    }

    pub(super) async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        let mut command = deadpool_redis::redis::cmd("DEL");
        command.arg(keys::stream(channel));
        self.run_one(command).await.map_err(unavailable)?;
        Ok(())
    }

    async fn load(&self) -> Result<Option<String>, Unavailable> {
        let mut load = deadpool_redis::redis::cmd("SCRIPT");
        load.arg("LOAD").arg(scripts::READ);
        match self.run_one(load).await {
            Ok(Value::BulkString(digest)) => {
                Ok(Some(String::from_utf8_lossy(&digest).into_owned()))
            }
            Ok(_) | Err(CommandError::Refused(_)) => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn run_one(&self, command: deadpool_redis::redis::Cmd) -> Result<Value, CommandError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.add_command(command);
        let mut answers = self.commands.run(&commands).await?;
        Ok(answers.values.pop().unwrap_or(Value::Nil))
    }
}

fn unavailable(error: CommandError) -> Unavailable {
    Unavailable(chain(&error))
}
