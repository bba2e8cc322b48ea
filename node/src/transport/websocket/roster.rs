//! Every WebSocket of the node in one list: for the pings, and for sending everyone away.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Endpoint;
use crate::hub::outbox::Queued;
use crate::hub::outbox::SocketOutbox;
use crate::hub::roster::Place;
use crate::hub::roster::Roster;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::websocket;
use crate::transport::websocket::pulse::Pulse;
use crate::transport::websocket::pulse::Verdict;

/// A WebSocket on the list.
pub(super) struct Entry {
    outbox: Arc<SocketOutbox>,
    endpoint: Arc<Endpoint>,
    pulse: Pulse,
}

impl Roster<Entry> {
    /// Adds a client. Who comes while the node drains is sent away at once.
    pub(super) fn add(
        self: &Arc<Self>,
        outbox: Arc<SocketOutbox>,
        endpoint: Arc<Endpoint>,
    ) -> Place<Entry> {
        let entry = Entry {
            outbox,
            endpoint,
            pulse: Pulse::new(Instant::now()),
        };
        self.enter(entry, |entry| entry.outbox.close(Disconnect::RESTART))
    }

    /// Pings those that have been silent, and gives up those that did not answer.
    pub(super) async fn sweep(&self, now: Instant) {
        let look = |entry: &mut Entry| {
            let heard = entry.outbox.take_heard();
            let verdict = entry.pulse.check(&entry.endpoint.ping, heard, now);
            (verdict != Verdict::Fine).then(|| (Arc::clone(&entry.outbox), verdict))
        };
        self.visit(look, |(outbox, verdict)| match verdict {
            Verdict::Fine => {}
            Verdict::Ask => outbox.send(&websocket::PING),
            Verdict::GiveUp => outbox.close(Disconnect::NO_PONG),
        })
        .await;
    }

    /// Clients for which something waits.
    pub(super) fn queued(&self) -> Vec<Arc<dyn Queued>> {
        self.collect(|entry| {
            let queued = !entry.outbox.is_idle();
            queued.then(|| Arc::clone(&entry.outbox) as Arc<dyn Queued>)
        })
    }

    /// Sends everyone away, evenly over `spread`.
    pub(super) async fn send_all_away(&self, spread: Duration) {
        let outbox = |entry: &Entry| Arc::clone(&entry.outbox);
        self.drain(spread, outbox, |outbox| outbox.close(Disconnect::RESTART))
            .await;
    }
}
