//! The list of all WebSockets of the node: for pings, and for the disconnects of a drain.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Endpoint;
use crate::hub::outbox::Queued;
use crate::hub::outbox::SocketOutbox;
use crate::hub::roster::Roster;
use crate::hub::roster::RosterGuard;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::websocket;
use crate::protocol::handoff::Notice;
use crate::transport::websocket::keepalive::Keepalive;
use crate::transport::websocket::keepalive::Verdict;

/// A WebSocket on the list.
pub(super) struct Entry {
    outbox: Arc<SocketOutbox>,
    endpoint: Arc<Endpoint>,
    keepalive: Keepalive,
}

impl Roster<Entry> {
    /// Adds a client. While the node drains, it is disconnected at once.
    pub(super) fn add(
        self: &Arc<Self>,
        outbox: Arc<SocketOutbox>,
        endpoint: Arc<Endpoint>,
    ) -> RosterGuard<Entry> {
        let entry = Entry {
            outbox,
            endpoint,
            keepalive: Keepalive::new(Instant::now()),
        };
        self.enter(entry, |entry| entry.outbox.close(Disconnect::RESTART))
    }

    /// Pings silent clients, and disconnects those that did not respond.
    pub(super) async fn sweep(&self, now: Instant) {
        let look = |entry: &mut Entry| {
            let received = entry.outbox.take_received();
            let verdict = entry.keepalive.check(&entry.endpoint.ping, received, now);
            (verdict != Verdict::Keep).then(|| (Arc::clone(&entry.outbox), verdict))
        };
        self.visit(look, |(outbox, verdict)| match verdict {
            Verdict::Keep => {}
            Verdict::Ping => outbox.send(&websocket::PING),
            Verdict::Disconnect => outbox.close(Disconnect::NO_PONG),
        })
        .await;
    }

    /// Clients with queued output.
    pub(super) fn queued(&self) -> Vec<Arc<dyn Queued>> {
        self.collect(|entry| {
            let queued = !entry.outbox.is_idle();
            queued.then(|| Arc::clone(&entry.outbox) as Arc<dyn Queued>)
        })
    }

    /// Tells the edges of all clients that can be handed off that the node leaves, and disconnects the others, evenly over
    /// `spread`.
    pub(super) async fn drain_or_hand_off(&self, spread: Duration) {
        let outbox = |entry: &Entry| Arc::clone(&entry.outbox);
        let leaving = Notice::Leaving.frame();
        self.drain(spread, outbox, |outbox| match outbox.can_hand_off() {
            true => outbox.send(&leaving),
            false => outbox.close(Disconnect::RESTART),
        })
        .await;
    }

    /// Waits for clients to be handed off, as long as they are, and for `max` at most.
    pub(super) async fn wait_for_handoffs(&self, max: Duration) {
        self.wait_while_clients_leave(|_| true, max).await;
    }

    /// Disconnects all clients, evenly over `spread`.
    pub(super) async fn disconnect_all(&self, spread: Duration) {
        let outbox = |entry: &Entry| Arc::clone(&entry.outbox);
        self.drain(spread, outbox, |outbox| outbox.close(Disconnect::RESTART))
            .await;
    }
}
