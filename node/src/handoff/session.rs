//! A SockJS session over HTTP leaves this node.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time;

use crate::client::relay::HandoffError;
use crate::client::session::Session;
use crate::handoff::Departures;
use crate::handoff::Kind;
use crate::handoff::SessionState;
use crate::handoff::Snapshot;
use crate::handoff::departure::Forget;
use crate::handoff::departure::RESUME_WAIT_MAX;
use crate::handoff::departure::count;
use crate::handoff::marks::Mark;
use crate::metrics::Transport;
use crate::protocol::channel::ChannelName;
use crate::protocol::handoff::Target;
use crate::protocol::handoff::Token;
use crate::redis::keys;

/// How long what was published late may take to be delivered, before its sender is told that it is.
const FLUSH_MAX: Duration = Duration::from_secs(2);

impl Departures {
    /// Hands the session `id` off. It goes on even if the caller does not wait for the result.
    ///
    /// # Errors
    ///
    /// [`HandoffError`]: whether the session stays, or has ended.
    pub(crate) async fn hand_off_session(
        self: &Arc<Self>,
        id: String,
        session: Arc<Session>,
        target: Target,
    ) -> Result<(), HandoffError> {
        let this = Arc::clone(self);
        let handing_off = self.tasks.spawn(async move {
            let handed_off = this.session(id, &session, target).await;
            count(session.metrics(), &handed_off, target);
            handed_off
        });
        handing_off.await.unwrap_or(Err(HandoffError::Lost))
    }

    async fn session(
        &self,
        id: String,
        session: &Session,
        target: Target,
    ) -> Result<(), HandoffError> {
        let token = target.token;
        let departing = session.depart().await.map_err(HandoffError::Kept)?;
        let client = Arc::clone(departing.client());
        let snapshot = Snapshot {
            endpoint: client.endpoint().path.clone(),
            transport: Transport::SockjsHttp,
            kind: Kind::Session(SessionState {
                id,
                address: departing.address(),
                rate_ahead: client.rate_ahead(),
            }),
        };
        if let Err(error) = self.leave_at_mark(&client, target, snapshot).await {
            if matches!(error, HandoffError::Lost) {
                departing.lose();
            }
            return Err(error);
        }
        let Some(queued) = departing.take_queued() else {
            departing.lose();
            return Err(HandoffError::Lost);
        };
        // From here on the other node may have the session.
        let resumed = self.control.resume_session(target.instance, token, queued);
        let is_resumed = matches!(time::timeout(RESUME_WAIT_MAX, resumed).await, Ok(Ok(())));
        if !is_resumed {
            departing.lose();
            return Err(HandoffError::Lost);
        }
        match departing.moved(target.instance) {
            true => Ok(()),
            false => Err(HandoffError::Lost),
        }
    }

    /// Waits until all that was published to `channel` is delivered here, so on all nodes.
    pub(super) async fn flushed(&self, channel: &ChannelName) {
        let token = Token::random();
        let (seen, is_seen) = oneshot::channel();
        self.marks.at(Mark::first(token), move || {
            let _ = seen.send(()); // It may be too late.
        });
        let _forget = Forget {
            marks: &self.marks,
            token,
            count: 1,
        };
        let mark = keys::handoff_marks();
        if self
            .broker
            .mark(channel, &mark, token.bytes())
            .await
            .is_ok()
        {
            let _ = time::timeout(FLUSH_MAX, is_seen).await;
        }
    }
}
