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
//! A draining node hands sessions off ([`departing`]): at the request of an edge, which sends the session's requests to the other
//! node afterwards. What is under way to this node nevertheless is passed on or told to ask again.
//!
//! Invariant: a session that accepts no more messages has left the hub, or does so as soon as it has passed on those that it
//! accepted before.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::client::relay::Client;
use crate::client::relay::LatePublisher;
use crate::hub::outbox::Closed;
use crate::hub::outbox::QueueOutbox;
use crate::hub::outbox::Queued;
use crate::logging;
use crate::logging::SlowClient;
use crate::metrics::Counted;
use crate::metrics::Metrics;
use crate::metrics::Transport;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::instance::Instance;

mod departing;
mod quota;
mod state;
mod table;

pub(crate) use quota::Quota;
pub(crate) use quota::QuotaConfig;
pub(crate) use state::Delays;
pub(crate) use table::Arriving;
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
    /// Notifies a handoff that the receiver has ended.
    detached: Notify,
    /// Whether its client's last receiver came by an edge that can continue the session on another node.
    is_by_edge: AtomicBool,
    /// Where another node continues it, and how messages that come here late are published.
    moved: OnceLock<Moved>,
    /// Until it has moved: then the other node counts it.
    counted: Mutex<Option<Counted>>,
    metrics: Arc<Metrics>,
}

/// A session that was handed off.
struct Moved {
    to: Instance,
    late: LatePublisher,
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
    /// The same, as the last frame of the response: the next request may go to another node.
    Leave,
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
        state: State,
    ) -> Self {
        Self {
            state: Mutex::new(state),
            permit,
            outbox,
            client: Mutex::new(Some(client)),
            sending: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            detached: Notify::new(),
            is_by_edge: AtomicBool::new(false),
            moved: OnceLock::new(),
            counted: Mutex::new(Some(config.metrics.session())),
            metrics: Arc::clone(&config.metrics),
        }
    }

    /// Has receivers end after a frame, or soon, so that an edge can have the session handed off.
    pub(crate) fn send_away(&self) {
        self.state.lock().send_away();
        self.changed.notify_one();
    }

    /// Has its receiver end behind what is queued, as at the end of any response: its client sends the next request.
    pub(crate) fn end_receiver(&self) {
        self.state.lock().end_receiver();
        self.changed.notify_one();
    }

    /// Whether it may still be handed off: it is open, and its client comes by an edge.
    pub(crate) fn can_be_handed_off(&self) -> bool {
        self.is_by_edge.load(Ordering::Relaxed) && self.state.lock().is_open()
    }

    /// The metrics that count it.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The node that it was handed off to, if it was.
    pub(crate) fn moved_to(&self) -> Option<Instance> {
        self.moved.get().map(|moved| moved.to)
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
        let inbound = self.state.lock().inbound();
        match inbound {
            Inbound::Taken => {}
            Inbound::Dropped => return Sent::Taken,
            Inbound::Unknown => return Sent::Unknown,
            Inbound::Late => {
                if let Some(moved) = self.moved.get() {
                    moved.late.publish(messages).await;
                }
                return Sent::Taken;
            }
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
            Next::Leave => Some(Frame::Leave),
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
        let is_interrupted = state.is_interrupted();
        drop(state);
        self.detached.notify_one();
        if is_interrupted {
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
