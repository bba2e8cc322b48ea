//! SockJS sessions over HTTP: one client behind many requests.
//!
//! [`State`] decides, [`Session`] connects it to an outbox and a client, [`Sessions`] finds sessions by id. A transport
//! takes frames from a [`Receiver`] and uses nothing else of a session. One sweeper handles the delays of all sessions;
//! none has a timer of its own.
//!
//! A session's id is chosen by its client and is the only authentication. A client that knows another one's id can send as
//! that client, and between two receivers take its messages or end the session; while a receiver is attached, another one
//! gets nothing. sockjs-client chooses among 2^40 ids, an id is valid for one endpoint only, and a wrong guess at a
//! receiver's URL opens a session, of which an address may have only a few (`quota`).
//!
//! Invariant: a session that accepts no more messages has left the hub, or does so as soon as it has passed on those that it
//! accepted before.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::client::relay::Client;
use crate::hub::outbox::Closed;
use crate::hub::outbox::QueueOutbox;
use crate::hub::outbox::Queued;
use crate::logging;
use crate::logging::SlowClient;
use crate::metrics::Metrics;
use crate::metrics::Transport;
use crate::protocol::disconnect::Disconnect;

mod quota;
mod state;
mod table;

pub(crate) use quota::Quota;
pub(crate) use quota::QuotaConfig;
pub(crate) use state::Delays;
pub(crate) use table::ReceiveError;
pub(crate) use table::Sessions;
pub(crate) use table::SessionsConfig;
pub(crate) use table::sweep;

use quota::Full;
use quota::Permit;
use state::Attach;
use state::Detach;
use state::Inbound;
use state::Next;
use state::State;
use state::Tick;

/// One client over HTTP, with or without a receiver.
pub(crate) struct Session {
    state: Mutex<State>,
    permit: Permit,
    outbox: Arc<QueueOutbox>,
    /// Keeps the client in the hub; taken when the session ends.
    client: Mutex<Option<Arc<Client>>>,
    /// Held by the request whose messages are being passed on, so that those of several requests do not interleave.
    sending: tokio::sync::Mutex<()>,
    /// Notifies the receiver that the state has changed; the outbox notifies it of messages.
    changed: Notify,
    metrics: Arc<Metrics>,
}

/// What a receiver sends next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The session is open.
    Open,
    /// Messages in order, each a quoted JSON string. Never empty.
    Messages(Vec<Bytes>),
    /// The session is alive.
    Heartbeat,
    /// The session is over; no frame follows.
    Close(Disconnect),
}

/// The result of sending messages to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// They were passed on, or dropped because the session is closing.
    Taken,
    /// There is no such session.
    Unknown,
}

impl Session {
    fn new(
        config: &SessionsConfig,
        permit: Permit,
        outbox: Arc<QueueOutbox>,
        client: Arc<Client>,
        now: Instant,
    ) -> Self {
        Self {
            state: Mutex::new(State::new(config.delays, now)),
            permit,
            outbox,
            client: Mutex::new(Some(client)),
            sending: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            metrics: Arc::clone(&config.metrics),
        }
    }

    /// Closes the session: its receiver gets what is queued, and the reason. The first reason stays.
    pub(crate) fn close(&self, disconnect: Disconnect) {
        let disconnect = {
            // Both under the lock, so that the receiver gets what is queued before the reason.
            let mut state = self.state.lock();
            let disconnect = match self.outbox.close() {
                Closed::Whole => disconnect,
                Closed::Slow => Disconnect::SLOW, // Whatever the reason: messages are lost.
            };
            state.close(disconnect);
            disconnect
        };
        if let Some(client) = self.take_client() {
            if let Some(bytes_queued) = self.outbox.slow_bytes() {
                logging::slow_client(&SlowClient {
                    client: &self.permit.address().to_string(),
                    user: "",
                    endpoint: &client.endpoint().path,
                    transport: Transport::SockjsHttp.as_str(),
                    bytes_queued,
                });
            }
            self.metrics.disconnected(disconnect);
        }
        self.changed.notify_one();
    }

    /// Passes on messages of the client, in order, and waits while the broker's queue is full, until one times out.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the messages that were not passed on yet.
    async fn send(&self, messages: Vec<String>) -> Sent {
        let _turn = self.sending.lock().await;
        match self.state.lock().inbound() {
            Inbound::Taken => {}
            Inbound::Dropped => return Sent::Taken,
            Inbound::Unknown => return Sent::Unknown,
        }
        let Some(client) = self.client.lock().clone() else {
            return Sent::Taken; // The session closes at this moment.
        };
        if let Err(disconnect) = client.on_messages(messages).await {
            if disconnect == Disconnect::TOO_LARGE {
                let endpoint = client.endpoint();
                let bytes_max = endpoint.message_bytes_max;
                logging::too_large(&endpoint.path, "message_size", bytes_max);
            }
            self.close(disconnect);
        }
        Sent::Taken
    }

    /// Handles the delays and a slow client; `true` when the session is over.
    fn is_over(&self, now: Instant) -> bool {
        if self.outbox.is_slow() {
            self.close(Disconnect::SLOW);
        }
        match self.state.lock().tick(now) {
            Tick::Keep => return false,
            Tick::Wake => {
                self.changed.notify_one();
                return false;
            }
            Tick::Expired => {}
        }
        drop(self.take_client());
        true
    }

    fn next(&self, now: Instant) -> Option<Frame> {
        if self.outbox.is_slow() {
            self.close(Disconnect::SLOW);
        }
        let next = {
            let mut state = self.state.lock();
            state.next(!self.outbox.is_empty(), now)
        };
        match next {
            Next::Open => Some(Frame::Open),
            Next::Messages => match self.outbox.take(usize::MAX) {
                // The outbox has become slow at this moment, and its messages are dropped.
                none if none.is_empty() => self.next(now),
                messages => Some(Frame::Messages(messages)),
            },
            Next::Heartbeat => Some(Frame::Heartbeat),
            Next::Close(disconnect) => Some(Frame::Close(disconnect)),
            Next::Wait => {
                self.permit.receiver_waits();
                None
            }
        }
    }

    fn detach(&self, how: Detach, now: Instant) {
        self.permit.receiver_left();
        let mut state = self.state.lock();
        state.detach(how, now);
        if state.is_interrupted() {
            drop(state);
            drop(self.take_client());
        }
    }

    /// Takes the client, which leaves the hub when it is dropped.
    fn take_client(&self) -> Option<Arc<Client>> {
        self.client.lock().take()
    }
}

impl Queued for Session {
    fn each_queued(&self, visit: &mut dyn FnMut(&Bytes)) {
        self.outbox.each_queued(visit);
    }

    fn shed(&self) {
        self.outbox.drop_as_slow();
        self.close(Disconnect::SLOW);
    }
}

/// The one receiver of a session; dropping it before [`Receiver::finish`] interrupts the session.
pub(crate) struct Receiver {
    session: Arc<Session>,
    finished: bool,
}

impl Receiver {
    fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            finished: false,
        }
    }

    /// Waits for the next frame.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: a frame is taken and returned without waiting in between.
    pub(crate) async fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.session.next(Instant::now()) {
                return frame;
            }
            tokio::select! {
                // Both store a notification that arrives after the check above.
                () = self.session.changed.notified() => {}
                () = self.session.outbox.wait() => {}
            }
        }
    }

    /// Ends the response in order: the client will send another request.
    pub(crate) fn finish(mut self) {
        self.finished = true;
        self.session.detach(Detach::Finished, Instant::now());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.finished {
            self.session.detach(Detach::Aborted, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
