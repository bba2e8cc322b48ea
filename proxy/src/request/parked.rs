//! Waiting for a backend that may come back: how many requests may, and for how long each.
//!
//! A client whose session lives on one backend is not bound elsewhere when a dial of that backend fails: a restart in place
//! takes seconds. It waits and dials again. Nothing waits here: plain types are given the time, and answer what is due.
//!
//! Invariant: there are never more than `limits.waiting` [`ParkedRequest`]s, and none says [`Step::Wait`] or [`Step::Dial`] after its
//! deadline, or while its backend does not keep its clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::AffinityConfig;
use crate::config::Config;

/// How long a waiting request goes without a dial, whatever the probes say: they may be wrong, or slow.
const REDIAL: Duration = Duration::from_secs(1);

/// How soon a dial may follow on one that failed, after the first. It doubles up to [`REDIAL`].
const REDIAL_MIN: Duration = Duration::from_millis(125);

/// Over how long the dials of all who wait are spread when their backend answers a probe, so that they do not fill its queue.
const SPREAD: Duration = Duration::from_millis(250);

/// How much waiting there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ParkConfig {
    /// How long one request waits for a backend that refuses connections. Zero is not at all.
    pub(crate) refused: Duration,
    /// The same, for one that does not answer a dial.
    pub(crate) timed_out: Duration,
    /// How many wait at a time.
    pub(crate) requests_max: usize,
}

/// How a dial failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParkReason {
    /// Nobody is there: so it looks during a restart.
    Refused,
    /// Nobody says anything.
    TimedOut,
}

/// The places for requests that wait.
#[derive(Debug)]
pub(crate) struct ParkedRequests {
    /// Locked for a moment when a dial has failed, or when it changes.
    config: Mutex<ParkConfig>,
    count: Arc<AtomicUsize>,
}

/// Why a request does not get to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotParked {
    /// Waiting is switched off for failures of this kind.
    Disabled,
    /// Too many wait already.
    Full,
}

impl ParkedRequests {
    pub(crate) fn new(config: ParkConfig) -> Self {
        Self {
            config: Mutex::new(config),
            count: Arc::default(),
        }
    }

    /// Goes by `config` for requests that come to wait from now on.
    pub(crate) fn change(&self, config: ParkConfig) {
        *self.config.lock() = config;
    }

    /// A place for a request whose first dial failed at `now`.
    ///
    /// # Errors
    ///
    /// [`NotParked`]: it is to go elsewhere.
    pub(crate) fn park(&self, dial: ParkReason, now: Instant) -> Result<ParkedRequest, NotParked> {
        let config = *self.config.lock();
        let until = now + config.max_wait(dial);
        if until == now {
            return Err(NotParked::Disabled);
        }
        let more = |count: usize| (count < config.requests_max).then_some(count + 1);
        self.count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| NotParked::Full)?;
        Ok(ParkedRequest {
            config,
            count: Arc::clone(&self.count),
            since: now,
            until,
            failed_at: now,
            pause: REDIAL_MIN,
            dial_at: now + jittered(REDIAL),
        })
    }
}

impl ParkConfig {
    /// The most that can be asked for.
    pub(crate) const LONGEST: Self = Self {
        refused: AffinityConfig::HOLD_MAX,
        timed_out: AffinityConfig::HOLD_MAX,
        requests_max: 0,
    };

    /// What `config` says about it.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            refused: config.affinity.hold,
            timed_out: config.affinity.hold_timeout,
            requests_max: config.limits.waiting,
        }
    }

    /// How often one request dials at most while it waits.
    pub(crate) fn dials_max(&self) -> usize {
        // Three follow on each other faster than the others (`pause`), and those may be a fifth faster than REDIAL.
        let rest = self.refused.max(self.timed_out).as_millis() / REDIAL.mul_f64(0.8).as_millis();
        4 + usize::try_from(rest).unwrap_or(usize::MAX - 4)
    }

    fn max_wait(&self, dial: ParkReason) -> Duration {
        match dial {
            ParkReason::Refused => self.refused,
            ParkReason::TimedOut => self.timed_out,
        }
    }
}

/// One request that waits: its place in the room, given back on drop, and its times.
#[derive(Debug)]
pub(crate) struct ParkedRequest {
    config: ParkConfig,
    count: Arc<AtomicUsize>,
    /// When its first dial failed.
    since: Instant,
    until: Instant,
    /// When its last one failed.
    failed_at: Instant,
    /// How long the next follows on that at least.
    pause: Duration,
    dial_at: Instant,
}

/// What is due for a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing until then, unless something becomes known about the backend.
    Wait(Instant),
    /// To dial.
    Dial,
    /// To go elsewhere: the time is up, or the backend is given up.
    GiveUp,
}

impl ParkedRequest {
    /// What is due at `now`, given whether the backend keeps its clients still.
    pub(crate) fn step(&self, keeps_clients: bool, now: Instant) -> Step {
        if !keeps_clients || self.until <= now {
            Step::GiveUp
        } else if self.dial_at <= now {
            Step::Dial
        } else {
            Step::Wait(self.dial_at.min(self.until))
        }
    }

    /// Takes note that the backend has answered a probe: a dial may succeed now.
    pub(crate) fn answered(&mut self, now: Instant) {
        let soon = now.max(self.failed_at + self.pause) + SPREAD.mul_f64(fastrand::f64());
        self.dial_at = self.dial_at.min(soon);
    }

    /// Takes note that another dial has failed.
    ///
    /// A refusal means hope for as long as one means it from the start; a timeout for no longer than there was, nor than one
    /// means it by itself.
    pub(crate) fn failed(&mut self, dial: ParkReason, now: Instant) {
        self.until = match dial {
            ParkReason::Refused => self.since + self.config.refused,
            ParkReason::TimedOut => self.until.min(now + self.config.timed_out),
        };
        self.failed_at = now;
        self.pause = (self.pause * 2).min(REDIAL);
        self.dial_at = now + jittered(REDIAL);
    }
}

impl Drop for ParkedRequest {
    fn drop(&mut self) {
        let before = self.count.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(0 < before, "a place is given back once");
    }
}

/// `pause`, up to a fifth shorter or longer, so that those who wait do not dial in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests;
