//! SockJS sessions over HTTP: one client behind many requests.
//!
//! [`State`] decides, [`Session`] binds it to an outbox and a client, [`Sessions`] finds them by
//! their id. A transport asks a [`Receiver`] for frames and knows nothing else of a session. One
//! sweeper looks after the delays of all sessions; none has a timer of its own.
//!
//! A session's id is its client's choice, and nothing else tells who speaks. Whoever knows one may send as
//! that client, and between two receivers take its messages or end it; while a receiver is attached, another
//! one hears nothing. sockjs-client draws from 2^40 ids, an id is of one endpoint alone, and a guess at a
//! receiver's URL that misses opens a session, of which an address has not many (`quota`).
//!
//! Invariant: a session that takes no more messages has left the hub, or does so as soon as it has handed
//! on those that it took before.

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
use quota::Place;
use state::Attach;
use state::Detach;
use state::Inbound;
use state::Next;
use state::State;
use state::Tick;

/// One client over HTTP, with or without a receiver.
pub(crate) struct Session {
    state: Mutex<State>,
    place: Place,
    outbox: Arc<QueueOutbox>,
    /// What holds the client in the hub; taken when the session ends.
    client: Mutex<Option<Arc<Client>>>,
    /// Held by the request whose messages are being handed on, so that requests do not mix.
    sending: tokio::sync::Mutex<()>,
    /// Tells the receiver that the state changed; the outbox tells of messages itself.
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
    /// The session is over; nothing comes after it.
    Close(Disconnect),
}

/// What became of messages that a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// They were handed on, or dropped because a close frame waits for the client.
    Taken,
    /// There is no such session.
    Unknown,
}

impl Session {
    fn new(
        config: &SessionsConfig,
        place: Place,
        outbox: Arc<QueueOutbox>,
        client: Arc<Client>,
        now: Instant,
    ) -> Self {
        Self {
            state: Mutex::new(State::new(config.delays, now)),
            place,
            outbox,
            client: Mutex::new(Some(client)),
            sending: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            metrics: Arc::clone(&config.metrics),
        }
    }

    /// Closes the session, the first reason stays: its receiver gets what is queued and the reason.
    pub(crate) fn close(&self, disconnect: Disconnect) {
        let disconnect = {
            // Both under the lock, so that what is queued is known to the receiver that meets the reason.
            let mut state = self.state.lock();
            let disconnect = match self.outbox.close() {
                Closed::Whole => disconnect,
                Closed::Slow => Disconnect::SLOW, // Whoever closes it: messages are lost.
            };
            state.close(disconnect);
            disconnect
        };
        if let Some(client) = self.take_client() {
            if let Some(bytes_queued) = self.outbox.slow_bytes() {
                logging::slow_client(&SlowClient {
                    client: &self.place.address().to_string(),
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

    /// Hands messages of the client on, in order, and waits while the broker has no room, until it gives
    /// one up.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the messages that were not handed on yet.
    async fn send(&self, messages: Vec<String>) -> Sent {
        let _turn = self.sending.lock().await;
        match self.state.lock().inbound() {
            Inbound::Taken => {}
            Inbound::Dropped => return Sent::Taken,
            Inbound::Unknown => return Sent::Unknown,
        }
        let Some(client) = self.client.lock().clone() else {
            return Sent::Taken; // It closes at this moment.
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

    /// Looks at the clock and at the outbox; `true` when the session is over.
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
                // It has become slow at this moment, and what was queued is gone.
                none if none.is_empty() => self.next(now),
                messages => Some(Frame::Messages(messages)),
            },
            Next::Heartbeat => Some(Frame::Heartbeat),
            Next::Close(disconnect) => Some(Frame::Close(disconnect)),
            Next::Wait => {
                self.place.receiver_waits();
                None
            }
        }
    }

    fn detach(&self, how: Detach, now: Instant) {
        self.place.receiver_left();
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
    fn each_queued(&self, look: &mut dyn FnMut(&Bytes)) {
        self.outbox.each_queued(look);
    }

    fn shed(&self) {
        self.outbox.give_up();
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
                // Both keep a wake-up that comes between the look above and here.
                () = self.session.changed.notified() => {}
                () = self.session.outbox.wait() => {}
            }
        }
    }

    /// Ends the answer in order: the client will come for more.
    pub(crate) fn finish(mut self) {
        self.finished = true;
        self.session.detach(Detach::Answered, Instant::now());
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
