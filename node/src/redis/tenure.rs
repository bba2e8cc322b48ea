//! The primary that is in use, as connections see it: which server it is, and for how long.
//!
//! A connection to a server that was the primary may go on working, and what is written there is lost. So it has a [`Tenure`]:
//! its users leave it at once when another server is the primary, also in the middle of a command.

use std::fmt;
use std::future;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use tokio::sync::watch;
use tokio::time;
use tokio::time::Instant;

use super::primary::Primary;
use crate::config::RedisAddress;

/// Whether there is a primary.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) primary: Option<Primary>,
    /// Why there is none.
    pub(super) why: String,
}

/// The primary of the moment. Whoever follows it writes it here; connections are made to it.
pub(super) struct CurrentPrimary {
    /// What Sentinels call it, or which part of a cluster it has.
    pub(super) master: String,
    named_by: NamedBy,
    state: watch::Sender<State>,
    /// Counts failed connections to it.
    failures: watch::Sender<u64>,
    /// A server was reached at its address.
    is_reached: AtomicBool,
}

/// What says which server is the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NamedBy {
    Sentinels,
    Cluster,
}

/// The time for which the server of a connection is the primary.
#[derive(Clone)]
pub(crate) struct Tenure(Option<(watch::Receiver<State>, Term)>);

/// What a tenure is of.
#[derive(Clone, Copy)]
struct Term {
    /// Counts the primaries of this process.
    number: u64,
    /// Counts the failovers of this primary's Sentinels.
    failover: u64,
}

impl CurrentPrimary {
    /// There is none yet.
    pub(super) fn new(master: String) -> Self {
        Self::named(master, NamedBy::Sentinels, "no sentinel has responded yet")
    }

    /// There is none yet of this part of a cluster.
    pub(super) fn in_cluster(master: String) -> Self {
        Self::named(master, NamedBy::Cluster, "it has no slots yet")
    }

    fn named(master: String, named_by: NamedBy, why: &str) -> Self {
        let why = why.to_owned();
        Self {
            master,
            named_by,
            state: watch::Sender::new(State { primary: None, why }),
            failures: watch::Sender::new(0),
            is_reached: AtomicBool::new(false),
        }
    }

    pub(super) fn get(&self) -> Option<Primary> {
        self.state.borrow().primary.clone()
    }

    pub(super) fn set(&self, primary: Primary) {
        self.is_reached.store(false, Ordering::Relaxed);
        self.state.send_replace(State {
            primary: Some(primary),
            why: String::new(),
        });
    }

    /// There is none any more, for this reason.
    pub(super) fn clear(&self, why: String) {
        self.state.send_replace(State { primary: None, why });
    }

    /// The address of the primary, once there is one, and for how long it is that.
    ///
    /// # Errors
    ///
    /// Why there is none by `deadline`.
    pub(super) async fn wait(&self, deadline: Instant) -> Result<(RedisAddress, Tenure), String> {
        let mut state = self.state.subscribe();
        let found = time::timeout_at(deadline, state.wait_for(|state| state.primary.is_some()));
        let found = found.await.ok().and_then(Result::ok);
        let primary = found.and_then(|state| state.primary.clone());
        match primary {
            Some(primary) => {
                let term = Term {
                    number: primary.number,
                    failover: primary.epoch,
                };
                Ok((primary.address, Tenure(Some((state, term)))))
            }
            None => Err(self.state.borrow().why.clone()),
        }
    }

    /// A connection to the primary failed.
    pub(super) fn note_failure(&self) {
        self.failures.send_modify(|failures| *failures += 1);
    }

    /// A connection to the primary was made.
    pub(super) fn note_reached(&self) {
        self.is_reached.store(true, Ordering::Relaxed);
    }

    /// Whether Sentinels name it, which count failovers from 0 on.
    pub(super) fn is_named_by_sentinels(&self) -> bool {
        self.named_by == NamedBy::Sentinels
    }

    /// Whether a cluster names its address, at which nothing has been reached yet.
    pub(super) fn is_only_announced(&self) -> bool {
        self.named_by == NamedBy::Cluster && !self.is_reached.load(Ordering::Relaxed)
    }

    /// Notified when a connection to the primary fails.
    pub(super) fn failures(&self) -> watch::Receiver<u64> {
        self.failures.subscribe()
    }
}

impl fmt::Display for CurrentPrimary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.state.borrow().primary, self.named_by) {
            (Some(primary), NamedBy::Sentinels) => {
                write!(f, "{} (sentinel:{})", primary.address, self.master)
            }
            (None, NamedBy::Sentinels) => write!(f, "sentinel:{}", self.master),
            (Some(primary), NamedBy::Cluster) => primary.address.fmt(f),
            (None, NamedBy::Cluster) => f.write_str(&self.master),
        }
    }
}

impl State {
    /// The number of the primary, if there is one.
    fn number(&self) -> Option<u64> {
        self.primary.as_ref().map(|primary| primary.number)
    }
}

impl Tenure {
    /// Of a server that is the only one.
    pub(super) fn endless() -> Self {
        Self(None)
    }

    pub(crate) fn is_over(&self) -> bool {
        let is_other = |(state, term): &(watch::Receiver<State>, Term)| {
            state.borrow().number() != Some(term.number)
        };
        self.0.as_ref().is_some_and(is_other)
    }

    /// The number of the failover with which it began, of which each has a higher one than all before it; 0 if nothing counts
    /// them.
    pub(super) fn failover(&self) -> u64 {
        self.0.as_ref().map_or(0, |(_, term)| term.failover)
    }

    /// Waits until it is over.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(crate) async fn over(&mut self) {
        if let Some((state, term)) = &mut self.0 {
            let ended = state.wait_for(|state| state.number() != Some(term.number));
            // An error says that nobody follows the primary any more: the node is stopping.
            if ended.await.is_ok() {
                return;
            }
        }
        future::pending().await
    }
}
