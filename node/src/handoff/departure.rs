//! This node hands a client off to another one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time;
use tracing::debug;

use crate::broker::Broker;
use crate::client::relay::Client;
use crate::client::relay::HandOff;
use crate::client::relay::HandoffError;
use crate::cluster::control::Control;
use crate::handoff::Marks;
use crate::handoff::Snapshot;
use crate::protocol::handoff::Target;
use crate::protocol::handoff::Token;
use crate::redis::keys;

/// How long a mark may take. Longer than a round trip over Redis by far; after it the client has to connect again.
const MARK_WAIT_MAX: Duration = Duration::from_secs(2);

/// Hands clients off.
pub(crate) struct Departures {
    pub(crate) control: Arc<Control>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) marks: Arc<Marks>,
}

#[async_trait]
impl HandOff for Departures {
    async fn hand_off(&self, client: Arc<Client>, target: Target) -> Result<(), HandoffError> {
        let handed_off = self.hand_off(&client, target).await;
        match &handed_off {
            Ok(()) => {
                client.metrics().handoffs.sent.inc();
            }
            Err(HandoffError::Kept(reason)) => {
                debug!(reason, node = %target.instance, "client not handed off, it stays");
                client.metrics().handoffs.kept.inc();
            }
            Err(HandoffError::Lost) => {
                debug!(node = %target.instance, "handoff failed, the client has to connect again");
                client.metrics().handoffs.lost.inc();
            }
        }
        handed_off
    }
}

impl Departures {
    async fn hand_off(&self, client: &Arc<Client>, target: Target) -> Result<(), HandoffError> {
        let token = target.token;
        let snapshot = Snapshot {
            endpoint: client.endpoint().path.clone(),
            transport: client.transport(),
            rate_ahead: client.rate_ahead(),
        };
        let (cut, has_cut) = oneshot::channel();
        self.marks.at(token, {
            let client = Arc::clone(client);
            move || {
                let _ = cut.send(client.leave_here()); // The handoff may have been given up.
            }
        });
        let _forget = Forget {
            marks: &self.marks,
            token,
        };
        let accepted = self
            .control
            .hand_off(target.instance, token, snapshot.encode());
        accepted.await.map_err(HandoffError::Kept)?;

        let mark = keys::handoff_marks();
        let channel = client.channel().unwrap_or(&mark);
        let marked = self.broker.mark(channel, &mark, token.bytes()).await;
        marked.map_err(|error| HandoffError::Kept(error.to_string()))?;

        // From here on the other node may have the client.
        let Ok(Ok(written)) = time::timeout(MARK_WAIT_MAX, has_cut).await else {
            return Err(HandoffError::Lost);
        };
        match written {
            Some(written) => written.await.map_err(|_| HandoffError::Lost),
            None => Ok(()),
        }
    }
}

/// Unregisters from the mark when the handoff ends, however it does.
struct Forget<'a> {
    marks: &'a Marks,
    token: Token,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.marks.forget(self.token);
    }
}
