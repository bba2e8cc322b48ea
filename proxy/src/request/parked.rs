//! Parked requests: how many may wait for a backend that cannot be reached, and how long each.
//!
//! A client whose session lives on one backend is not bound elsewhere when a dial of that backend fails: a restart in place
//! takes seconds. The request is parked and dials again. Nothing sleeps here: plain types get the time, and return what is due.
//!
//! Invariant: there are never more than `limits.waiting` [`ParkedRequest`]s, and none returns [`Step::Wait`] or [`Step::Dial`] after
//! its deadline, or while its backend does not keep its clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::AffinityConfig;
use crate::config::Config;

/// The longest time between two dials of a parked request, whatever the probes find: they may be wrong, or slow.
const REDIAL: Duration = Duration::from_secs(1);

/// The shortest time between a failed dial and the next. It doubles with each, up to [`REDIAL`].
const REDIAL_MIN: Duration = Duration::from_millis(125);

/// Over how long the dials of all parked requests are spread when their backend responds to a probe, so that they do not fill
/// its accept queue.
const SPREAD: Duration = Duration::from_millis(250);

/// The bounds of parking.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ParkConfig {
    /// How long one request waits for a backend that refuses connections. Zero disables it.
    pub(crate) refused: Duration,
    /// The same, for one that does not respond to a dial.
    pub(crate) timed_out: Duration,
    /// How many requests are parked at a time.
    pub(crate) requests_max: usize,
}

/// Why a request is parked: how the dial failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParkReason {
    /// The connection was refused, as during a restart.
    Refused,
    /// There was no reply.
    TimedOut,
}

/// Counts the parked requests against their limit.
#[derive(Debug)]
pub(crate) struct ParkedRequests {
    /// Locked briefly: when a dial has failed, and when it changes.
    config: Mutex<ParkConfig>,
    count: Arc<AtomicUsize>,
}

/// Why a request is not parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotParked {
    /// Parking is disabled for failures of this kind.
    Disabled,
    /// The limit is reached.
    Full,
}

impl ParkedRequests {
    pub(crate) fn new(config: ParkConfig) -> Self {
        Self {
            config: Mutex::new(config),
            count: Arc::default(),
        }
    }

    /// Applies `config` to requests that are parked from now on.
    pub(crate) fn change(&self, config: ParkConfig) {
        *self.config.lock() = config;
    }

    /// Parks a request whose first dial failed at `now`.
    ///
    /// # Errors
    ///
    /// [`NotParked`]: another backend is to be tried.
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
    /// The largest durations that can be configured.
    pub(crate) const LONGEST: Self = Self {
        refused: AffinityConfig::HOLD_MAX,
        timed_out: AffinityConfig::HOLD_MAX,
        requests_max: 0,
    };

    /// The bounds in `config`.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            refused: config.affinity.hold,
            timed_out: config.affinity.hold_timeout,
            requests_max: config.limits.waiting,
        }
    }

    /// How often one request dials at most while it is parked.
    pub(crate) fn dials_max(&self) -> usize {
        // Three follow faster (`pause`), and the others may be a fifth earlier than REDIAL.
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

/// One parked request and its times. Counted until it is dropped.
#[derive(Debug)]
pub(crate) struct ParkedRequest {
    config: ParkConfig,
    count: Arc<AtomicUsize>,
    /// When its first dial failed.
    since: Instant,
    until: Instant,
    /// When its last dial failed.
    failed_at: Instant,
    /// The shortest time from that to the next dial.
    pause: Duration,
    dial_at: Instant,
}

/// What is due for a parked request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing until then, unless the health status of the backend changes.
    Wait(Instant),
    /// Dial the backend.
    Dial,
    /// Try another backend: the time is up, or the backend no longer keeps its clients.
    GiveUp,
}

impl ParkedRequest {
    /// What is due at `now`, given whether the backend still keeps its clients.
    pub(crate) fn step(&self, keeps_clients: bool, now: Instant) -> Step {
        if !keeps_clients || self.until <= now {
            Step::GiveUp
        } else if self.dial_at <= now {
            Step::Dial
        } else {
            Step::Wait(self.dial_at.min(self.until))
        }
    }

    /// Brings the next dial forward: the backend has responded to a probe.
    pub(crate) fn probe_answered(&mut self, now: Instant) {
        let soon = now.max(self.failed_at + self.pause) + SPREAD.mul_f64(fastrand::f64());
        self.dial_at = self.dial_at.min(soon);
    }

    /// Schedules the next dial after another one has failed.
    ///
    /// A refused connection extends the deadline to `refused` after the first failure. A timeout never extends it, and limits it to
    /// `timed_out` from now.
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
        debug_assert!(0 < before, "a parked request is counted once");
    }
}

/// `pause`, up to a fifth shorter or longer, so that parked requests do not dial in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests;
