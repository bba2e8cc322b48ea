//! The sessions of one endpoint by id, and the sweeper for all endpoints.
//!
//! Invariant: a session is in the table from its first receiver until it expires.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::time;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::client::relay::Client;
use crate::client::session::Attach;
use crate::client::session::Delays;
use crate::client::session::Full;
use crate::client::session::Permit;
use crate::client::session::Quota;
use crate::client::session::Receiver;
use crate::client::session::Sent;
use crate::client::session::Session;
use crate::client::session::State;
use crate::hub::outbox::QueueOutbox;
use crate::hub::outbox::Queued;
use crate::metrics::Metrics;
use crate::metrics::RefuseReason;
use crate::protocol::disconnect::Disconnect;

/// The number of parts of a table, each with its own lock, to avoid contention.
const SHARDS: usize = 16;

/// The shortest and the longest interval of the sweeper.
const SWEEP_INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The spare capacity that a shard always keeps, in sessions.
const CAPACITY_MIN: usize = 64;

/// The configuration of a table of sessions.
pub(crate) struct SessionsConfig {
    /// The delays of each session.
    pub(crate) delays: Delays,
    /// The limits for sessions, shared by all tables.
    pub(crate) quota: Arc<Quota>,
    /// Why each session is closed as soon as it is open, if it is.
    pub(crate) close_on_open: Option<Disconnect>,
    /// The metrics that count sessions.
    pub(crate) metrics: Arc<Metrics>,
}

/// Why a client cannot receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// Another receiver of this session is attached, and stays.
    #[error("the session has a receiver")]
    Busy,
    /// The node has its maximum of sessions; retry later.
    #[error("the node has too many sessions")]
    NodeFull,
    /// The client's address has too many sessions without a receiver.
    #[error("the address has too many sessions")]
    AddressFull,
}

/// The sessions of one endpoint.
pub(crate) struct Sessions {
    config: SessionsConfig,
    /// Why each session is closed as soon as it is open, if it is.
    close_on_open: OnceLock<Disconnect>,
    /// Whether receivers end soon: the node drains.
    is_sent_away: AtomicBool,
    hasher: RandomState,
    shards: [Mutex<HashMap<Box<str>, Entry>>; SHARDS],
}

struct Entry {
    session: Arc<Session>,
}

/// The place of a session that another node hands off.
pub(crate) struct Arriving {
    sessions: Arc<Sessions>,
    id: String,
    permit: Permit,
}

impl Arriving {
    /// Continues the session. Its client's messages wait in `outbox`.
    ///
    /// # Errors
    ///
    /// Why not, as text.
    pub(crate) fn arrive(
        self,
        outbox: Arc<QueueOutbox>,
        client: Arc<Client>,
        now: Instant,
    ) -> Result<(), String> {
        let Self {
            sessions,
            id,
            permit,
        } = self;
        let state = State::continued(sessions.config.delays, now);
        let session = Session::new(&sessions.config, permit, outbox, client, state);
        let mut shard = sessions.shard(&id).lock();
        let known = shard.get(&*id);
        let is_known = known.is_some_and(|entry| entry.session.moved_to().is_none());
        if is_known || sessions.close_on_open.get().is_some() {
            drop(shard); // Before the client, which leaves the hub.
            return Err("the other node cannot continue the session".to_owned());
        }
        let session = Arc::new(session);
        shard.insert(id.into(), Entry { session });
        Ok(())
    }
}

impl Sessions {
    /// An empty table.
    pub(crate) fn new(config: SessionsConfig) -> Self {
        Self {
            close_on_open: config
                .close_on_open
                .map_or_else(OnceLock::new, OnceLock::from),
            config,
            is_sent_away: AtomicBool::new(false),
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Attaches a receiver to the session `id`, which `connect` opens for a client at `address` if there
    /// is none. `is_by_edge` says whether it comes by an edge that can continue the session on another node.
    ///
    /// # Errors
    ///
    /// [`ReceiveError`]; the session, if there is one, goes on as it was.
    pub(crate) fn receive(
        &self,
        id: &str,
        address: IpAddr,
        is_by_edge: bool,
        now: Instant,
        connect: impl FnOnce() -> (Arc<QueueOutbox>, Arc<Client>),
    ) -> Result<Receiver, ReceiveError> {
        let mut shard = self.shard(id).lock();
        if let Some(entry) = shard.get(id) {
            // An expired session may still be in the table, until the next sweep.
            if !entry.session.is_over(now) {
                let session = &entry.session;
                session.is_by_edge.store(is_by_edge, Ordering::Relaxed);
                return match session.state.lock().attach(now) {
                    Attach::Attached => Ok(Receiver::new(Arc::clone(&entry.session))),
                    Attach::Busy => Err(ReceiveError::Busy),
                };
            }
            shard.remove(id);
        }
        let permit = match self.config.quota.take(address) {
            Ok(permit) => permit,
            Err(full) => return Err(self.refuse(full, address, now)),
        };
        let (outbox, client) = connect();
        let state = State::new(self.config.delays, now);
        let session = Session::new(&self.config, permit, outbox, client, state);
        let session = Arc::new(session);
        session.is_by_edge.store(is_by_edge, Ordering::Relaxed);
        if self.is_sent_away.load(Ordering::Relaxed) {
            session.send_away();
        }
        if let Some(disconnect) = self.close_on_open.get() {
            session.close(*disconnect);
        }
        let receiver = Receiver::new(Arc::clone(&session));
        shard.insert(id.into(), Entry { session });
        Ok(receiver)
    }

    /// The session `id`, if there is one.
    pub(crate) fn get(&self, id: &str, now: Instant) -> Option<Arc<Session>> {
        let shard = self.shard(id).lock();
        let session = shard.get(id).map(|entry| Arc::clone(&entry.session))?;
        (!session.is_over(now)).then_some(session)
    }

    /// Makes room for the session `id` of a client at `address`, which another node hands off to this one.
    ///
    /// # Errors
    ///
    /// Why it cannot come, as text.
    pub(crate) fn expect(
        self: &Arc<Self>,
        id: String,
        address: IpAddr,
        now: Instant,
    ) -> Result<Arriving, String> {
        if self.close_on_open.get().is_some() {
            return Err("the other node closes its sessions".to_owned());
        }
        // One that was handed off before may come back.
        let known = self.get(&id, now);
        if known.is_some_and(|session| session.moved_to().is_none()) {
            return Err("the other node has such a session".to_owned());
        }
        let permit = self.config.quota.take(address);
        let permit = permit.map_err(|full| self.refuse(full, address, now).to_string())?;
        Ok(Arriving {
            sessions: Arc::clone(self),
            id,
            permit,
        })
    }

    /// Passes messages on to the session `id`.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the messages that were not passed on yet.
    pub(crate) async fn send(&self, id: &str, messages: Vec<String>) -> Sent {
        let session = self
            .shard(id)
            .lock()
            .get(id)
            .map(|entry| Arc::clone(&entry.session));
        match session {
            Some(session) => session.send(messages).await,
            None => Sent::Unknown,
        }
    }

    /// Whether the session `id` exists, closed or not.
    pub(crate) fn contains(&self, id: &str, now: Instant) -> bool {
        let shard = self.shard(id).lock();
        shard
            .get(id)
            .is_some_and(|entry| !entry.session.is_over(now))
    }

    /// Whether messages can be sent to the session `id`.
    pub(crate) fn knows(&self, id: &str) -> bool {
        let shard = self.shard(id).lock();
        shard
            .get(id)
            .is_some_and(|entry| !entry.session.state.lock().is_interrupted())
    }

    /// Sends each session [away](Session::send_away) that is opened from now on.
    pub(crate) fn send_new_away(&self) {
        self.is_sent_away.store(true, Ordering::Relaxed);
    }

    /// Closes each session that is opened from now on as soon as it is open.
    pub(crate) fn close_new(&self, disconnect: Disconnect) {
        // Set once: the first reason stays, as with a session.
        let _ = self.close_on_open.set(disconnect);
    }

    /// Whether a closing session has not sent its close frame to any receiver yet.
    pub(crate) fn has_unsent_close(&self) -> bool {
        self.shards.iter().any(|shard| {
            let shard = shard.lock();
            shard
                .values()
                .any(|entry| entry.session.state.lock().has_unsent_close())
        })
    }

    /// All sessions that there are now.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            all.extend(shard.values().map(|entry| Arc::clone(&entry.session)));
        }
        all
    }

    /// Sessions with queued messages.
    pub(crate) fn queued(&self) -> Vec<Arc<dyn Queued>> {
        let mut queued: Vec<Arc<dyn Queued>> = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let sessions = shard.values().map(|entry| &entry.session);
            let waiting = sessions.filter(|session| !session.outbox.is_empty());
            queued.extend(waiting.map(|session| Arc::clone(session) as Arc<dyn Queued>));
        }
        queued
    }

    /// Removes the sessions that are over and wakes receivers whose heartbeat is due.
    pub(super) fn sweep(&self, now: Instant) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.retain(|_, entry| !entry.session.is_over(now));
            // Frees memory after many sessions have ended.
            if CAPACITY_MIN.max(shard.len() * 4) < shard.capacity() {
                let capacity = shard.len() * 2;
                shard.shrink_to(capacity);
            }
        }
    }

    /// The allocated capacity, in sessions.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        let capacities = self.shards.iter().map(|shard| shard.lock().capacity());
        capacities.sum()
    }

    fn refuse(&self, full: Full, address: IpAddr, now: Instant) -> ReceiveError {
        self.config.quota.log(full, address, now);
        let (reason, error) = match full {
            Full::Node => (RefuseReason::Sessions, ReceiveError::NodeFull),
            Full::Address => (RefuseReason::SessionsPerAddress, ReceiveError::AddressFull),
        };
        self.config.metrics.refused(reason);
        error
    }

    fn shard(&self, id: &str) -> &Mutex<HashMap<Box<str>, Entry>> {
        let hash = self.hasher.hash_one(id);
        &self.shards[(hash % SHARDS as u64) as usize]
    }
}

/// Handles the delays of all sessions until `shutdown`.
pub(crate) async fn sweep(tables: Vec<Arc<Sessions>>, shutdown: CancellationToken) {
    let (shortest, longest) = SWEEP_INTERVALS;
    let delays = tables.iter().map(|table| table.config.delays);
    let delay = delays
        .map(|delays| delays.heartbeat.min(delays.disconnect))
        .min();
    let Some(delay) = delay else {
        return shutdown.cancelled().await; // No endpoint has protocol SockJS.
    };
    // A tenth of the delay: accurate enough, and rare enough to be cheap.
    let mut interval = time::interval((delay / 10).clamp(shortest, longest));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = interval.tick() => {
                for table in &tables {
                    table.sweep(Instant::now());
                }
            }
        }
    }
}
