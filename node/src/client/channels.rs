//! Channel clients, for every transport: their commands, subscriptions, replies and expiry.
//!
//! ```text
//! transport ─ bytes ─▶ Commands ─▶ ChannelClient ─▶ state, access (decide) ─▶ streams, presence, hooks (wait)
//!           ◀─ member ◀─ replies ◀──────┘                            hub ◀─ stream
//! ```
//! A transport creates a client with the [`Member`](crate::hub::Member) that receives its output, passes on the bytes that
//! the client sends ([`Commands::push`]) and drops [`Admitted`] when the connection has ended. One task
//! ([`ChannelClients::run`]) visits all clients: it pings them, and ends connections and subscriptions that have expired.
//!
//! Owns no transport. Decisions are plain types ([`state`], [`access`], [`keepalive`]), with the asynchronous work around
//! them.
//!
//! Invariant: the commands of one client about one channel are executed one after the other, in order; others run
//! concurrently, within a limit ([`Commands`]).

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Verifier;
use crate::client::relay::HandoffError;
use crate::cluster::directory::Directory;
use crate::cluster::presence::Presence;
use crate::cluster::values::Values;
use crate::config;
use crate::config::Live;
use crate::hooks::Hooks;
use crate::hub::outbox::Queued;
use crate::hub::roster::Roster;
use crate::lifecycle::Lifecycle;
use crate::logging::Throttle;
use crate::metrics::Metrics;
use crate::protocol::handoff::Target;
use crate::protocol::instance::Instance;
use crate::stream::ChannelStreams;

mod access;
mod channel_map;
mod client;
mod command_rate;
mod failure;
mod for_hooks;
mod join_leave;
mod keepalive;
mod snapshot;
mod state;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use client::Admitted;
pub(crate) use client::ArrivingClient;
pub(crate) use client::Commands;
pub(crate) use client::Departing;
pub(crate) use client::Origin;
pub(crate) use join_leave::join_leave_queue;
pub(crate) use keepalive::Direction;
pub(crate) use snapshot::ClientState;

use state::AuthSource;

/// The components that all channel clients of this node share.
pub(crate) struct ChannelClients {
    config: Live<config::Channels>,
    streams: Arc<ChannelStreams>,
    instance: Instance,
    presence: Arc<Presence>,
    directory: Arc<Directory>,
    verifier: Arc<Verifier>,
    hooks: Arc<Hooks>,
    values: Arc<Values>,
    lifecycle: Option<Arc<Lifecycle>>,
    metrics: Arc<Metrics>,
    roster: Arc<Roster<client::RosterEntry>>,
    /// Throttles the log line about rejected tokens.
    refused_tokens: Throttle,
    /// Runs control commands, messages of HTTP clients, and the handling of expiry.
    background_tasks: TaskTracker,
    /// The start of the clock for the clients' rate limits.
    started: Instant,
    /// Missing in a node without a broker for several.
    hand_off: OnceLock<Arc<dyn HandOff>>,
    /// Cancelled when the clients are disconnected or handed off.
    draining: CancellationToken,
}

/// Hands clients off to other nodes.
#[async_trait]
pub(crate) trait HandOff: Send + Sync + 'static {
    /// Hands a client off. Afterwards it gets nothing from this node any more.
    ///
    /// # Errors
    ///
    /// [`HandoffError`]: whether it stays or has to connect again.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future the client must be disconnected.
    async fn hand_off(&self, departing: Departing, target: Target) -> Result<(), HandoffError>;
}

/// The arguments of [`ChannelClients::new`].
pub(crate) struct Components {
    pub(crate) config: config::Channels,
    pub(crate) streams: Arc<ChannelStreams>,
    pub(crate) instance: Instance,
    pub(crate) presence: Arc<Presence>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) hooks: Arc<Hooks>,
    pub(crate) values: Arc<Values>,
    /// `None`: lifecycle events are off.
    pub(crate) lifecycle: Option<Arc<Lifecycle>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl ChannelClients {
    /// Creates the shared state, without clients.
    pub(crate) fn new(components: Components) -> Arc<Self> {
        Arc::new(Self {
            config: Live::new(components.config),
            streams: components.streams,
            instance: components.instance,
            presence: components.presence,
            directory: components.directory,
            verifier: components.verifier,
            hooks: components.hooks,
            values: components.values,
            lifecycle: components.lifecycle,
            metrics: components.metrics,
            roster: Roster::new(),
            refused_tokens: Throttle::default(),
            background_tasks: TaskTracker::new(),
            started: Instant::now(),
            hand_off: OnceLock::new(),
            draining: CancellationToken::new(),
        })
    }

    /// Lets clients be handed off. Called once, before there are any.
    pub(crate) fn set_hand_off(&self, hand_off: Arc<dyn HandOff>) {
        let _ = self.hand_off.set(hand_off);
    }

    /// Replaces the settings; existing subscriptions keep the earlier ones.
    pub(crate) fn reload(&self, config: config::Channels) {
        self.config.set(config);
    }

    /// Pings clients and ends what has expired. After `shutdown`, has the edges hand clients off to other nodes, disconnects
    /// those that are left over `drain.spread`, waits for background tasks, and returns.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future disconnects no client: they are no longer pinged, and nothing expires.
    pub(crate) async fn run(
        self: Arc<Self>,
        pings: Vec<config::Ping>,
        drain: config::Drain,
        shutdown: CancellationToken,
    ) {
        client::sweep(&self, &pings, shutdown).await;
        self.draining.cancel();
        self.roster.drain_or_hand_off(drain.spread).await;
        self.roster.wait_for_handoffs(drain.handoffs_max()).await;
        self.roster.disconnect_all(drain.spread).await;
        self.background_tasks.close();
        self.background_tasks.wait().await;
    }

    /// What runs tasks of clients, which have ended when [`run`](Self::run) returns.
    pub(crate) fn background_tasks(&self) -> &TaskTracker {
        &self.background_tasks
    }

    /// Clients with queued output.
    pub(crate) fn queued(&self) -> Vec<Arc<dyn Queued>> {
        self.roster.queued()
    }

    /// The clients with most queued output, the slowest first.
    pub(crate) fn slowest(&self, count: usize) -> Vec<Slowness> {
        self.roster.slowest(count)
    }
}

/// The backlog of a slow client.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Slowness {
    pub(crate) client: String,
    pub(crate) user: String,
    pub(crate) transport: &'static str,
    /// What is queued for it.
    pub(crate) bytes_queued: usize,
}

/// The system clock, in UNIX seconds.
fn unix_seconds() -> u64 {
    unix_time().as_secs()
}

/// The system clock, in UNIX milliseconds.
fn unix_milliseconds() -> i64 {
    i64::try_from(unix_time().as_millis()).unwrap_or(i64::MAX)
}

fn unix_time() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

/// The fields `expires` and `ttl` of a reply: whether the client has to send a newer token, and within how many seconds.
///
/// What a hook has granted is renewed by the node, so its client is told of no expiry: an SDK that is told of one but
/// cannot get a token would disconnect for good.
fn time_left(expire_at: Option<u64>, auth_source: AuthSource) -> (bool, u32) {
    match (expire_at, auth_source) {
        (None, _) | (_, AuthSource::Hook) => (false, 0),
        (Some(at), AuthSource::Token) => {
            let left = at.saturating_sub(unix_seconds());
            (true, u32::try_from(left).unwrap_or(u32::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_of_the_expiry_of_tokens_only() {
        for (expire_at, auth_source, expected) in [
            (None, AuthSource::Token, (false, 0)),
            (None, AuthSource::Hook, (false, 0)),
            (Some(u64::MAX), AuthSource::Token, (true, u32::MAX)),
            (Some(u64::MAX), AuthSource::Hook, (false, 0)),
            (Some(1), AuthSource::Token, (true, 0)),
        ] {
            assert_eq!(
                time_left(expire_at, auth_source),
                expected,
                "{expire_at:?} {auth_source:?}"
            );
        }
    }
}
