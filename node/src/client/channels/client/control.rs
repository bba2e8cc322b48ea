//! Control commands for a client, from the API or another node, executed one after the other. Messages that the client
//! sends in separate requests are not among them, and do not wait for them ([`input`](super::input)).

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::debug;

use crate::client::channels::client::ChannelClient;
use crate::client::channels::client::input::Input;
use crate::client::channels::failure::Failure;
use crate::cluster::directory::ClientControl;
use crate::cluster::directory::CommandRejected;
use crate::cluster::directory::ControlCommand;
use crate::cluster::directory::Lifetime;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::disconnect::DisconnectMessage;

/// Control commands that may be queued for one client. They wait only for Redis, so a full queue means that the application
/// sends far too many.
const COMMANDS_MAX: usize = 128;

/// Control commands and messages of one client that are not done. It exists only while there are any.
#[derive(Default)]
pub(super) struct ControlQueue {
    waiting: VecDeque<ControlCommand>,
    pub(super) input: Option<Input>,
    gate: Gate,
}

/// What becomes of commands.
#[derive(Default)]
enum Gate {
    /// They are executed.
    #[default]
    Open,
    /// They wait: the client is being handed off. The sender is told when the running one is done.
    Closed(Option<oneshot::Sender<()>>),
    /// They are passed on: the client is handed off.
    Moved(Arc<dyn ClientControl>),
}

impl ControlQueue {
    /// Whether nothing is queued.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.input.is_none() && matches!(self.gate, Gate::Open)
    }

    /// Whether commands are passed on.
    pub(super) fn has_moved(&self) -> bool {
        matches!(self.gate, Gate::Moved(_))
    }
}

/// Commands arrive through the directory's handle, which does not keep the client alive.
impl ClientControl for ChannelClient {
    fn command(self: Arc<Self>, command: &ControlCommand) -> Result<(), CommandRejected> {
        if let ControlCommand::Input(message) = command {
            return self.take_input(message.clone());
        }
        let is_first = {
            let mut control = self.control.lock();
            let queue = control.get_or_insert_default();
            if let Gate::Moved(controls) = &queue.gate {
                let controls = Arc::clone(controls);
                drop(control);
                return controls.command(command);
            }
            if COMMANDS_MAX <= queue.waiting.len() {
                return Err(CommandRejected::Busy);
            }
            queue.waiting.push_back(command.clone());
            queue.waiting.len() == 1 && matches!(queue.gate, Gate::Open)
        };
        if is_first {
            let running = Arc::clone(&self).run_commands(command.clone());
            self.clients.background_tasks.spawn(running);
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
        let queue = control.as_deref_mut()?;
        queue.waiting.pop_front();
        if let Gate::Closed(done) = &mut queue.gate {
            if let Some(done) = done.take() {
                let _ = done.send(()); // The handoff may have been given up.
            }
            return None; // Those that wait are executed or passed on when the handoff ends.
        }
        let next = queue.waiting.front().cloned();
        if control.as_deref().is_some_and(ControlQueue::is_idle) {
            *control = None;
        }
        next
    }

    /// Holds commands back from now on, because the client is being handed off. Returns what completes when the running one
    /// is done, if there is one.
    pub(super) fn hold_commands(&self) -> Option<oneshot::Receiver<()>> {
        let mut control = self.control.lock();
        let queue = control.get_or_insert_default();
        if queue.waiting.is_empty() {
            queue.gate = Gate::Closed(None);
            return None;
        }
        let (done, is_done) = oneshot::channel();
        queue.gate = Gate::Closed(Some(done));
        Some(is_done)
    }

    /// Executes commands again: the client stays.
    pub(super) fn continue_commands(self: &Arc<Self>) {
        let first = {
            let mut control = self.control.lock();
            let Some(queue) = control.as_deref_mut() else {
                return;
            };
            if !matches!(queue.gate, Gate::Closed(_)) {
                return;
            }
            let gate = std::mem::take(&mut queue.gate);
            let first = queue.waiting.front().cloned();
            // A running command has not been waited for: its task goes on.
            let runs = matches!(gate, Gate::Closed(Some(_)));
            if control.as_deref().is_some_and(ControlQueue::is_idle) {
                *control = None;
            }
            first.filter(|_| !runs)
        };
        if let Some(first) = first {
            let running = Arc::clone(self).run_commands(first);
            self.clients.background_tasks.spawn(running);
        }
    }

    /// Disconnects the client if a command that was held back does so.
    pub(super) fn disconnect_as_commanded(&self) {
        let control = self.control.lock();
        let waiting = control.iter().flat_map(|control| &control.waiting);
        for command in waiting {
            match command {
                ControlCommand::Disconnect { code, reason } => {
                    let reason = reason.clone();
                    let message = DisconnectMessage::by_application(*code, reason);
                    self.member.close(message);
                }
                ControlCommand::Refresh(Lifetime::Expired) => {
                    self.member.close(Disconnect::EXPIRED);
                }
                _ => {}
            }
        }
    }

    /// Passes commands on to `controls`, those that were held back first: the client is handed off.
    pub(super) fn pass_commands_on(&self, controls: &Arc<dyn ClientControl>) {
        let mut control = self.control.lock();
        let queue = control.get_or_insert_default();
        queue.gate = Gate::Moved(Arc::clone(controls));
        // Under the lock: a command that comes now has to follow them.
        for command in std::mem::take(&mut queue.waiting) {
            let _ = Arc::clone(controls).command(&command); // It takes as many as there can be here.
        }
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
