//! Control commands for a client that was handed off, which are passed on to its new node.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::cluster::control::Control;
use crate::cluster::directory::ClientControl;
use crate::cluster::directory::CommandRejected;
use crate::cluster::directory::ControlCommand;
use crate::protocol::instance::ClientId;
use crate::protocol::instance::Instance;

/// Commands that may wait: those that were held back during the handoff, and as many again.
const COMMANDS_MAX: usize = 256;

/// How often a command is sent. To receive it twice does no harm.
const ATTEMPTS: usize = 3;

const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Passes commands for one client on, one after the other.
pub(super) struct Forward {
    pub(super) control: Arc<Control>,
    pub(super) tasks: TaskTracker,
    pub(super) client: ClientId,
    /// Where the client is.
    pub(super) node: Instance,
    /// A command stays here until it is sent, so that only one task runs.
    pub(super) waiting: Mutex<VecDeque<ControlCommand>>,
}

impl ClientControl for Forward {
    fn command(self: Arc<Self>, command: &ControlCommand) -> Result<(), CommandRejected> {
        let is_first = {
            let mut waiting = self.waiting.lock();
            if COMMANDS_MAX <= waiting.len() {
                return Err(CommandRejected::Busy);
            }
            waiting.push_back(command.clone());
            waiting.len() == 1
        };
        if is_first {
            self.tasks.spawn(Arc::clone(&self).send_all());
        }
        Ok(())
    }
}

impl Forward {
    async fn send_all(self: Arc<Self>) {
        let (client, node) = (self.client, self.node);
        loop {
            let Some(command) = self.waiting.lock().front().cloned() else {
                return;
            };
            for attempt in 1..=ATTEMPTS {
                match self.control.forward(node, client, command.clone()).await {
                    Ok(()) => break,
                    Err(error) if attempt == ATTEMPTS => {
                        warn!(%client, %node, %error, "a command of the server API is lost: the client's new node does not respond");
                    }
                    Err(_) => time::sleep(RETRY_PAUSE).await,
                }
            }
            let mut waiting = self.waiting.lock();
            waiting.pop_front();
            if waiting.is_empty() {
                return;
            }
        }
    }
}
