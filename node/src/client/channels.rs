//! Channel clients, whatever their transport: what they ask for, what they are told, and for how long.
//!
//! ```text
//! transport ─ bytes ─▶ Commands ─▶ ChannelClient ─▶ state, access (decide) ─▶ feeds, presence, hooks (wait)
//!           ◀─ member ◀─ replies ◀──────┘                            hub ◀─ feed
//! ```
//! A transport makes a client with the [`Member`](crate::hub::Member) that takes what it is sent, hands in the bytes that it
//! sends ([`Commands::push`]) and drops [`Admitted`] when the connection is gone. One task
//! ([`ChannelClients::run`]) looks at all clients: it pings them, and ends what has expired.
//!
//! Owns no wire. What decides is plain ([`state`], [`access`], [`beat`]); what waits is around it.
//!
//! Invariant: the commands of one client about one channel are carried out one after the other, in their order; others run
//! at the same time, within a limit ([`Commands`]).

use std::sync::Arc;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Verifier;
use crate::cluster::directory::Directory;
use crate::cluster::presence::Presence;
use crate::cluster::values::Values;
use crate::config;
use crate::config::Live;
use crate::hooks::Hooks;
use crate::hub::outbox::Queued;
use crate::hub::roster::Roster;
use crate::lifecycle::Lifecycle;
use crate::logging::Pace;
use crate::metrics::Metrics;
use crate::protocol::instance::Instance;
use crate::stream::Feeds;

mod access;
mod beat;
mod client;
mod command_rate;
mod failure;
mod for_hooks;
mod news;
mod places;
mod state;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use beat::Direction;
pub(crate) use client::Admitted;
pub(crate) use client::Commands;
pub(crate) use client::Origin;
pub(crate) use news::news;

use state::Word;

/// What every channel client of this node shares.
pub(crate) struct ChannelClients {
    config: Live<config::Channels>,
    feeds: Arc<Feeds>,
    instance: Instance,
    presence: Arc<Presence>,
    directory: Arc<Directory>,
    verifier: Arc<Verifier>,
    hooks: Arc<Hooks>,
    values: Arc<Values>,
    lifecycle: Option<Arc<Lifecycle>>,
    metrics: Arc<Metrics>,
    roster: Arc<Roster<client::RosterEntry>>,
    /// For the log lines about tokens that are refused.
    refused_tokens: Pace,
    /// Orders that are carried out, and what was asked for because something expired.
    errands: TaskTracker,
    /// What the clients' rates are counted from.
    started: Instant,
}

/// What they share, in order of the flow.
pub(crate) struct Parts {
    pub(crate) config: config::Channels,
    pub(crate) feeds: Arc<Feeds>,
    pub(crate) instance: Instance,
    pub(crate) presence: Arc<Presence>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) hooks: Arc<Hooks>,
    pub(crate) values: Arc<Values>,
    /// `None`: there are no lifecycle events.
    pub(crate) lifecycle: Option<Arc<Lifecycle>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl ChannelClients {
    /// Nobody yet.
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            config: Live::new(parts.config),
            feeds: parts.feeds,
            instance: parts.instance,
            presence: parts.presence,
            directory: parts.directory,
            verifier: parts.verifier,
            hooks: parts.hooks,
            values: parts.values,
            lifecycle: parts.lifecycle,
            metrics: parts.metrics,
            roster: Roster::new(),
            refused_tokens: Pace::default(),
            errands: TaskTracker::new(),
            started: Instant::now(),
        })
    }

    /// Replaces the settings; existing subscriptions keep those they began with.
    pub(crate) fn reload(&self, config: config::Channels) {
        self.config.set(config);
    }

    /// Pings clients and ends what has expired. After `shutdown`, sends everyone away over `spread`, waits
    /// for what is being done for them, and returns.
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends nothing: clients are no longer looked at.
    pub(crate) async fn run(
        self: Arc<Self>,
        pings: Vec<config::Ping>,
        spread: std::time::Duration,
        shutdown: CancellationToken,
    ) {
        client::sweep(&self, &pings, shutdown).await;
        self.roster.send_all_away(spread).await;
        self.errands.close();
        self.errands.wait().await;
    }

    /// Clients for which something waits.
    pub(crate) fn queued(&self) -> Vec<Arc<dyn Queued>> {
        self.roster.queued()
    }

    /// The clients for which most waits, the slowest first.
    pub(crate) fn slowest(&self, count: usize) -> Vec<Slowness> {
        self.roster.slowest(count)
    }
}

/// How far a client is behind.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Slowness {
    pub(crate) client: String,
    pub(crate) user: String,
    pub(crate) transport: &'static str,
    /// What waits for it.
    pub(crate) bytes_queued: usize,
}

/// This machine's clock, in UNIX seconds.
fn unix_seconds() -> u64 {
    unix_time().as_secs()
}

/// This machine's clock, in UNIX milliseconds.
fn unix_milliseconds() -> i64 {
    i64::try_from(unix_time().as_millis()).unwrap_or(i64::MAX)
}

fn unix_time() -> std::time::Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

/// What a reply says of `expire_at`: whether the client has to bring a newer token, and within how many seconds.
///
/// What a hook granted is prolonged by the node: its client is told of no end. An SDK that was told of one and has no
/// way to get a token would end for good.
fn time_left(expire_at: Option<u64>, word: Word) -> (bool, u32) {
    match (expire_at, word) {
        (None, _) | (_, Word::Hook) => (false, 0),
        (Some(at), Word::Token) => {
            let left = at.saturating_sub(unix_seconds());
            (true, u32::try_from(left).unwrap_or(u32::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_of_the_end_of_what_it_has_a_token_for_alone() {
        for (expire_at, word, expected) in [
            (None, Word::Token, (false, 0)),
            (None, Word::Hook, (false, 0)),
            (Some(u64::MAX), Word::Token, (true, u32::MAX)),
            (Some(u64::MAX), Word::Hook, (false, 0)),
            (Some(1), Word::Token, (true, 0)),
        ] {
            assert_eq!(
                time_left(expire_at, word),
                expected,
                "{expire_at:?} {word:?}"
            );
        }
    }
}
