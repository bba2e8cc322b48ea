//! Control commands for a client, from the API or another node, executed one after the other. Messages that the client
//! sends in separate requests are not among them, and do not wait for them ([`input`](super::input)).

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::debug;

use crate::client::channels::client::ChannelClient;
use crate::client::channels::client::input::Input;
use crate::client::channels::failure::Failure;
use crate::cluster::directory::ClientControl;
use crate::cluster::directory::CommandRejected;
use crate::cluster::directory::ControlCommand;
use crate::protocol::disconnect::DisconnectMessage;

/// Control commands that may be queued for one client. They wait only for Redis, so a full queue means that the application
/// sends far too many.
const COMMANDS_MAX: usize = 128;

/// Control commands and messages of one client that are not done. It exists only while there are any.
#[derive(Default)]
pub(super) struct ControlQueue {
    waiting: VecDeque<ControlCommand>,
    pub(super) input: Option<Input>,
}

impl ControlQueue {
    /// Whether nothing is queued.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.input.is_none()
    }
}

/// Commands arrive through the directory's handle, which does not keep the client alive.
impl ClientControl for ChannelClient {
    fn command(&self, command: &ControlCommand) -> Result<(), CommandRejected> {
        let Some(this) = self.this.upgrade() else {
            return Err(CommandRejected::Gone);
        };
        if let ControlCommand::Input(message) = command {
            return this.take_input(message.clone());
        }
        let is_first = {
            let mut control = self.control.lock();
            let queue = &mut control.get_or_insert_default().waiting;
            if COMMANDS_MAX <= queue.len() {
                return Err(CommandRejected::Busy);
            }
            queue.push_back(command.clone());
            queue.len() == 1
        };
        if is_first {
            self.clients
                .background_tasks
                .spawn(this.run_commands(command.clone()));
        }
        Ok(())
    }
}

impl ChannelClient {
    /// Executes commands until the queue is empty. A command stays in the queue until it is done, so that only one task
    /// runs.
    async fn run_commands(self: Arc<Self>, first: ControlCommand) {
        let mut next = Some(first);
        while let Some(command) = next {
            self.run_command(command).await;
            next = self.next_command();
        }
    }

    /// Removes the command that is done and returns the next one. Under one lock: a command that finds the queue empty
    /// starts a new task.
    fn next_command(&self) -> Option<ControlCommand> {
        let mut control = self.control.lock();
        let queue = &mut control.as_deref_mut()?.waiting;
        queue.pop_front();
        let next = queue.front().cloned();
        if control.as_deref().is_some_and(ControlQueue::is_idle) {
            *control = None;
        }
        next
    }

    async fn run_command(self: &Arc<Self>, command: ControlCommand) {
        match command {
            ControlCommand::Disconnect { code, reason } => {
                self.member
                    .close(DisconnectMessage::by_application(code, reason));
            }
            ControlCommand::Unsubscribe {
                channel,
                code,
                reason,
            } => self.unsubscribe_by_control(&channel, code, &reason).await,
            ControlCommand::Refresh(lifetime) => self.refresh_by_control(lifetime),
            ControlCommand::Input(_) => debug_assert!(false, "it is not queued"),
            ControlCommand::Subscribe(command) => {
                let channel = command.channel.clone();
                match self.subscribe_by_control(*command).await {
                    Ok(()) => {}
                    Err(Failure::Error(error)) => {
                        debug!(client = %self.id, %channel, code = error.code, error = error.message, "a subscription by the application failed");
                    }
                    Err(Failure::Disconnect(disconnect_message)) => {
                        self.member.close(disconnect_message)
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
