//! The state machine of one backend: what moves it from one state to the next.
//!
//! A plain type: probes, failed dials and the time come in, changes come out. Choosing by state is the
//! pool's, probing the health checks'.
//!
//! | | good probe | "draining" | bad answer | no answer, failed dial | end of the grace |
//! |---|---|---|---|---|---|
//! | unknown, up | up | draining | suspect | suspect, with a grace | |
//! | suspect | up | draining | down after `fall` | suspect | down |
//! | down | up after `rise` | draining | down | down | |
//! | draining | up | draining | down after `fall` | down after `fall` probes | |
//! | maintenance | | | | | |
//!
//! The grace is what a restart in place may take: until it ends, clients of the backend wait for it. It counts from the first
//! sign that nobody is there, and is as long as the most hopeful of the signs since then allows: a refused connection is what a
//! restart looks like, silence is not. While it runs, nothing but a good probe ends it, since a program that starts may answer
//! badly at first. Without a grace (a setting of 0) failed probes count by `fall`.
//!
//! What answers do to requests moves nothing: a client chooses what it asks for. A backend that has said lately that it is
//! stopping, and then cannot be reached, is not restarting in place: it drains, and no grace is given.
//!
//! A new configuration moves a backend from and to maintenance, and one that it does not name any more to draining for good.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use crate::balancer::pool::state::{Change, DialFailure, ProbeResult, State};

/// A backend that goes down again so soon after it rose is flapping.
const STEADY: Duration = Duration::from_secs(60);

/// What `/backends` says of states that no probe has brought about.
const BY_CONFIGURATION: &str = "by configuration";
const NOT_PROBED: &str = "not probed yet";
const REMOVED: &str = "the configuration does not name it any more";

/// How long after a backend has said that it is stopping its end is a planned one.
const STOPS_WITHIN: Duration = Duration::from_secs(15);

/// How often `rise` is doubled at most for a flapping backend.
const DOUBLED_MAX: u32 = 3;

/// How much it takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct MachineConfig {
    /// Good probes in a row that bring a backend that is down up again.
    pub(super) rise: u32,
    /// Failed probes in a row that take a backend down, where no grace runs.
    pub(super) fall: u32,
    /// How long a backend that refuses connections stays suspect; zero is no grace.
    pub(super) hold: Duration,
    /// The same, for one that says nothing.
    pub(super) hold_timeout: Duration,
}

/// The state and how it came about.
///
/// Invariant: `grace` is only there while the state is suspect.
#[derive(Debug)]
pub(super) struct Machine {
    config: MachineConfig,
    state: State,
    since: Instant,
    why: Cow<'static, str>,
    /// Probes in a row that speak for leaving the state.
    streak: u32,
    grace: Option<Grace>,
    /// When it last said that it is stopping.
    stop_announced: Option<Instant>,
    /// Whether the last probe was at least answered.
    responds: bool,
    /// Whether a probe has ever passed.
    has_passed: bool,
    /// When it last came up after it had been down.
    rose: Option<Instant>,
    /// How many times in a row it went down less than [`STEADY`] after it rose.
    flaps: u32,
    /// Whether the configuration does not name it any more: it drains until it is forgotten.
    removed: bool,
}

/// For how long a backend is given the chance to come back.
#[derive(Debug, Clone, Copy)]
struct Grace {
    began: Instant,
    length: Duration,
}

impl Machine {
    pub(super) fn new(state: State, config: MachineConfig, now: Instant) -> Self {
        debug_assert!(matches!(state, State::Unknown | State::Maintenance));
        let why = match state {
            State::Maintenance => BY_CONFIGURATION,
            _ => NOT_PROBED,
        };
        Self {
            config,
            state,
            since: now,
            why: Cow::Borrowed(why),
            streak: 0,
            grace: None,
            stop_announced: None,
            responds: false,
            has_passed: false,
            rose: None,
            flaps: 0,
            removed: false,
        }
    }

    /// Goes by `config` from now on, in service or not. A backend that was leaving begins anew.
    pub(super) fn configure(
        &mut self,
        config: MachineConfig,
        maintenance: bool,
        now: Instant,
    ) -> Option<Change> {
        self.config = config;
        let removed = std::mem::take(&mut self.removed);
        match (maintenance, self.state) {
            (true, State::Maintenance) => None,
            (true, _) => Some(self.enter(State::Maintenance, BY_CONFIGURATION.into(), now)),
            (false, State::Maintenance) => Some(self.enter(State::Unknown, NOT_PROBED.into(), now)),
            (false, _) if removed => Some(self.enter(State::Unknown, NOT_PROBED.into(), now)),
            (false, _) => None,
        }
    }

    /// Drains from now on, whatever probes say.
    pub(super) fn remove(&mut self, now: Instant) -> Option<Change> {
        if std::mem::replace(&mut self.removed, true) {
            return None;
        }
        if self.state == State::Draining {
            self.why = REMOVED.into();
            return None;
        }
        Some(self.enter(State::Draining, REMOVED.into(), now))
    }

    /// Whether the configuration does not name it any more.
    pub(super) fn is_removed(&self) -> bool {
        self.removed
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// Whether the backend is down only by what it answers: better than one that does not answer at all.
    pub(super) fn responds(&self) -> bool {
        self.responds
    }

    /// Whether it was found good at least once.
    pub(super) fn has_passed(&self) -> bool {
        self.has_passed
    }

    /// When the grace ends: then [`Machine::tick`] is due. `None` if none runs.
    pub(super) fn grace_end(&self) -> Option<Instant> {
        self.grace.map(|grace| grace.began + grace.length)
    }

    /// Takes in what a probe found.
    pub(super) fn probe(&mut self, result: ProbeResult, now: Instant) -> Option<Change> {
        if self.state == State::Maintenance || self.removed {
            return None;
        }
        self.responds = result.is_response();
        match result {
            ProbeResult::Good => self.passed(now),
            ProbeResult::Draining if self.state == State::Draining => {
                self.streak = 0;
                None
            }
            ProbeResult::Draining => {
                Some(self.enter(State::Draining, "its probe says so".into(), now))
            }
            ProbeResult::UnexpectedResponse(why) => self.failed(why, Duration::ZERO, now),
            ProbeResult::Unreachable(why) | ProbeResult::NoResponse(why)
                if self.is_stopping(now) =>
            {
                Some(self.stopped(&why, now))
            }
            ProbeResult::Unreachable(why) => self.failed(why, self.config.hold, now),
            ProbeResult::NoResponse(why) => self.failed(why, self.config.hold_timeout, now),
        }
    }

    /// Takes in that a request could not reach the backend.
    pub(super) fn dial_failed(&mut self, dial: DialFailure, now: Instant) -> Option<Change> {
        let (why, grace) = match dial {
            DialFailure::Refused => ("it cannot be reached", self.config.hold),
            DialFailure::TimedOut => ("a dial took too long", self.config.hold_timeout),
            DialFailure::TlsFailed => ("its TLS handshake failed", self.config.hold_timeout),
        };
        if dial != DialFailure::TlsFailed && self.is_stopping(now) {
            return Some(self.stopped(why, now));
        }
        match self.state {
            State::Up | State::Unknown => {
                let change = self.enter(State::Suspect, why.into(), now);
                self.give(grace, now);
                Some(change)
            }
            State::Suspect => {
                self.give(grace, now);
                None
            }
            State::Down | State::Draining | State::Maintenance => None,
        }
    }

    /// Takes in that the backend says to be stopping. Whether it does is for probes to find out; but one that cannot be
    /// reached already is waited for no longer.
    pub(super) fn announced_stop(&mut self, now: Instant) -> Option<Change> {
        self.stop_announced = Some(now);
        let is_gone = self.grace.is_some();
        (is_gone && self.is_stopping(now)).then(|| {
            let why = self.why.clone();
            self.stopped(&why, now)
        })
    }

    /// Whether it has said so lately, and is not taken for stopped yet.
    fn is_stopping(&self, now: Instant) -> bool {
        let is_recent = |at| now.saturating_duration_since(at) < STOPS_WITHIN;
        self.state.keeps_clients() && !self.removed && self.stop_announced.is_some_and(is_recent)
    }

    fn stopped(&mut self, why: &str, now: Instant) -> Change {
        let why = format!("it said that it is stopping, and {why}");
        self.enter(State::Draining, why.into(), now)
    }

    /// Takes in what time it is: a grace may be over.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Change> {
        let grace = self.grace.filter(|grace| grace.is_over(now))?;
        let why = format!(
            "{}, and no probe passed within {:?}",
            self.why, grace.length
        );
        Some(self.enter(State::Down, why.into(), now))
    }

    fn passed(&mut self, now: Instant) -> Option<Change> {
        self.has_passed = true;
        match self.state {
            State::Up => None,
            State::Down => {
                self.streak += 1;
                if self.streak < self.rise() {
                    return None;
                }
                self.rose = Some(now);
                Some(self.enter(State::Up, "its probes pass".into(), now))
            }
            // One good probe says that it lives; a drain that was called off is over.
            _ => Some(self.enter(State::Up, "its probe passes".into(), now)),
        }
    }

    fn failed(&mut self, why: String, grace: Duration, now: Instant) -> Option<Change> {
        let why = Cow::Owned(why);
        match self.state {
            State::Maintenance => None,
            State::Down => {
                self.streak = 0;
                self.why = why;
                None
            }
            State::Draining => {
                self.streak += 1;
                (self.config.fall <= self.streak).then(|| self.enter(State::Down, why, now))
            }
            State::Up | State::Unknown if grace.is_zero() && self.config.fall == 1 => {
                Some(self.enter(State::Down, why, now))
            }
            State::Up | State::Unknown => {
                let change = self.enter(State::Suspect, why, now);
                self.streak = 1;
                self.give(grace, now);
                Some(change)
            }
            State::Suspect => {
                self.streak += 1;
                self.why = why.clone();
                self.give(grace, now);
                match self.grace {
                    Some(_) => self.tick(now),
                    None if self.config.fall <= self.streak => {
                        Some(self.enter(State::Down, why, now))
                    }
                    None => None,
                }
            }
        }
    }

    /// How many good probes in a row it takes now: more for a backend that keeps falling.
    fn rise(&self) -> u32 {
        let factor = 1 << self.flaps.min(DOUBLED_MAX);
        self.config.rise.saturating_mul(factor)
    }

    /// Lets a grace run for at least `length` after it began.
    fn give(&mut self, length: Duration, now: Instant) {
        debug_assert_eq!(self.state, State::Suspect);
        if length.is_zero() {
            return;
        }
        let grace = self.grace.get_or_insert(Grace { began: now, length });
        grace.length = grace.length.max(length);
    }

    fn enter(&mut self, state: State, why: Cow<'static, str>, now: Instant) -> Change {
        debug_assert_ne!(self.state, state);
        if state == State::Down {
            let soon = |rose| now.saturating_duration_since(rose) < STEADY;
            let planned = self.state == State::Draining;
            self.flaps = if !planned && self.rose.take().is_some_and(soon) {
                self.flaps.saturating_add(1)
            } else {
                0
            };
        }
        let change = Change {
            from: self.state,
            to: state,
            why: why.clone(),
            lasted: now.saturating_duration_since(self.since),
        };
        self.state = state;
        self.since = now;
        self.why = why;
        self.streak = 0;
        self.grace = None;
        if state == State::Draining {
            self.stop_announced = None;
        }
        change
    }
}

impl Grace {
    fn is_over(&self, now: Instant) -> bool {
        self.length <= now.saturating_duration_since(self.began)
    }
}

#[cfg(test)]
mod tests;
