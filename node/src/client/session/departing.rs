//! A session that leaves for another node.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::MutexGuard;
use tokio::time;

use crate::client::relay::Client;
use crate::client::session::Moved;
use crate::client::session::Session;
use crate::client::session::state::NotNow;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::instance::Instance;

/// How long messages that are being passed on, and the receiver, may take to end. A client that reads is done far sooner.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// The most bytes of messages that no receiver has taken, in a handoff: they travel in one message between nodes.
const QUEUED_BYTES_MAX: usize = 256 << 10;

/// A session during its handoff: nothing of its client is being passed on, and no receiver is attached.
///
/// The session continues as before when this is dropped, unless [`moved`](Self::moved) or [`lose`](Self::lose) was called.
pub(crate) struct Departing<'a> {
    session: &'a Session,
    client: Arc<Client>,
    _begun: Begun<'a>,
    /// Messages that come now wait until it is known who has the session.
    _sending: MutexGuard<'a, ()>,
}

/// Has the session continue as before if its handoff is given up; without effect on one that has moved or ended.
struct Begun<'a>(&'a Session);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.state.lock().stay();
        self.0.changed.notify_one();
    }
}

impl Session {
    /// Begins a handoff: waits until the messages of its client are passed on, and until its receiver has taken what is queued
    /// and has ended.
    ///
    /// # Errors
    ///
    /// Why it cannot be handed off now, as text. It continues as before.
    ///
    /// # Cancel safety
    ///
    /// It continues as before.
    pub(crate) async fn depart(&self) -> Result<Departing<'_>, String> {
        self.state.lock().begin_handoff().map_err(text)?;
        let begun = Begun(self);
        self.changed.notify_one();
        let end = time::Instant::now() + SETTLE_MAX;
        let sending = time::timeout_at(end, self.sending.lock()).await;
        let sending = sending.map_err(|_| "messages of the client are being published")?;
        loop {
            let cut = self.state.lock().cut();
            match cut {
                Ok(()) => break,
                Err(NotNow::Attached) => {
                    let detached = time::timeout_at(end, self.detached.notified()).await;
                    detached.map_err(|_| NotNow::Attached.to_string())?;
                }
                Err(not_now) => return Err(text(not_now)),
            }
        }
        if QUEUED_BYTES_MAX / 2 < self.outbox.bytes_queued() {
            return Err("too many messages wait for the client".to_owned());
        }
        let client = self.client.lock().clone();
        let client = client.ok_or_else(|| text(NotNow::NotOpen))?;
        Ok(Departing {
            session: self,
            client,
            _begun: begun,
            _sending: sending,
        })
    }
}

fn text(not_now: NotNow) -> String {
    not_now.to_string()
}

impl Departing<'_> {
    /// Its client.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// The address of its client.
    pub(crate) fn address(&self) -> IpAddr {
        self.session.permit.address()
    }

    /// Takes the messages that no receiver has got, after the client has left its channel. `None` if some are lost, or if they are
    /// more than a handoff carries.
    pub(crate) fn take_queued(&self) -> Option<Vec<Bytes>> {
        let outbox = &self.session.outbox;
        let is_sendable = !outbox.is_slow() && outbox.bytes_queued() <= QUEUED_BYTES_MAX;
        is_sendable.then(|| outbox.take(usize::MAX))
    }

    /// The node `to` continues the session. `false` if it has ended here meanwhile, which its client will be told.
    pub(crate) fn moved(self, to: Instance) -> bool {
        let late = self.client.late_publisher();
        let _ = self.session.moved.set(Moved { to, late }); // Before the state says so; a session moves once.
        let is_moved = self.session.state.lock().moved(Instant::now());
        if is_moved {
            drop(self.session.take_client());
            drop(self.session.counted.lock().take());
        }
        is_moved
    }

    /// Ends the session: it may be at the other node, or at neither, so its client has to connect again.
    pub(crate) fn lose(self) {
        self.session.close(Disconnect::RESTART);
    }
}
