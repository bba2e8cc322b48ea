//! The state of one backend: what moves it from one to the next.
//!
//! A plain type: probes and evidence come in with the time, changes come out. Choosing by state is the
//! pool's, probing the health checks'.
//!
//! From every state but maintenance, `rise` good probes in a row lead to [`State::Up`].

use std::borrow::Cow;
use std::time::Instant;

/// What is believed about a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Probed and found good.
    Up,
    /// Not probed yet.
    Unknown,
    /// Something failed. Known clients stay, new ones go elsewhere, and it is probed fast.
    Suspect,
    /// It does not pass its probes.
    Down,
    /// It said that it is going away: it ends what it has and gets nothing new.
    Draining,
    /// Out of service by configuration.
    Maintenance,
}

impl State {
    /// The names of all states.
    pub(crate) const NAMES: [&str; 6] = [
        "up",
        "unknown",
        "suspect",
        "down",
        "draining",
        "maintenance",
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProbeResult {
    Good,
    /// The backend answered, and the answer says that it drains.
    Draining,
    /// The backend answered, but not as expected.
    BadAnswer(String),
    /// There was no answer.
    NoAnswer(String),
}

/// What a request found out about its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Nothing listens there, or the name does not resolve, or the network says that it cannot be reached.
    ConnectRefused,
    /// The dial took longer than `timeouts.connect`.
    ConnectTimeout,
    /// The backend answered a request.
    Answered(http::StatusCode),
    /// The backend answered a request for an upgrade with something else.
    UpgradeRefused(http::StatusCode),
    /// The connection ended before the answer, and not because of the client.
    Died,
    /// The backend took the request and did not answer in time.
    TimedOut,
}

/// A change of state, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) why: Cow<'static, str>,
}

/// How many probes decide.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thresholds {
    pub(crate) rise: u32,
    pub(crate) fall: u32,
}

/// The state and how it came about.
#[derive(Debug)]
pub(crate) struct Machine {
    thresholds: Thresholds,
    state: State,
    since: Instant,
    why: Cow<'static, str>,
    /// Probes in a row that speak for leaving the state.
    streak: u32,
    /// Whether the last failed probe was at least answered.
    answers: bool,
}

impl Machine {
    pub(crate) fn new(state: State, thresholds: Thresholds, now: Instant) -> Self {
        debug_assert!(matches!(state, State::Unknown | State::Maintenance));
        let why = match state {
            State::Maintenance => "by configuration",
            _ => "not probed yet",
        };
        Self {
            thresholds,
            state,
            since: now,
            why: Cow::Borrowed(why),
            streak: 0,
            answers: false,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    /// Whether the backend is down only by what it answers: better than one that does not answer at all.
    pub(crate) fn answers(&self) -> bool {
        self.answers
    }

    /// Takes in what a probe found.
    pub(crate) fn probe(&mut self, result: ProbeResult, now: Instant) -> Option<Change> {
        if self.state == State::Maintenance {
            return None;
        }
        self.answers = !matches!(result, ProbeResult::NoAnswer(_));
        match result {
            ProbeResult::Good => self.passed(now),
            ProbeResult::Draining if self.state == State::Draining => {
                self.streak = 0;
                None
            }
            ProbeResult::Draining => self.enter(State::Draining, "its probe says so".into(), now),
            ProbeResult::BadAnswer(why) | ProbeResult::NoAnswer(why) => self.failed(why, now),
        }
    }

    fn passed(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            State::Up => {
                self.streak = 0;
                None
            }
            State::Down => {
                self.streak += 1;
                (self.thresholds.rise <= self.streak)
                    .then(|| self.enter(State::Up, "its probes pass".into(), now))?
            }
            // One good probe says that it lives; a drain that was called off is over.
            _ => self.enter(State::Up, "its probe passes".into(), now),
        }
    }

    fn failed(&mut self, why: String, now: Instant) -> Option<Change> {
        match self.state {
            State::Down => {
                self.streak = 0;
                self.why = Cow::Owned(why);
                None
            }
            // It never passed one, so there is nothing to wait for.
            State::Unknown => self.enter(State::Down, why.into(), now),
            _ => {
                let streak = match self.state {
                    State::Up => 1,
                    _ => self.streak + 1,
                };
                if self.thresholds.fall <= streak {
                    return self.enter(State::Down, why.into(), now);
                }
                let change = match self.state {
                    State::Up => self.enter(State::Suspect, why.into(), now),
                    _ => None,
                };
                self.streak = streak;
                change
            }
        }
    }

    /// Takes in that a request found the backend failing.
    pub(crate) fn suspect(&mut self, why: &'static str, now: Instant) -> Option<Change> {
        match self.state {
            State::Up | State::Unknown => self.enter(State::Suspect, why.into(), now),
            _ => None,
        }
    }

    fn enter(&mut self, state: State, why: Cow<'static, str>, now: Instant) -> Option<Change> {
        debug_assert_ne!(self.state, state);
        let from = self.state;
        self.state = state;
        self.since = now;
        self.why = why.clone();
        self.streak = 0;
        Some(Change {
            from,
            to: state,
            why,
        })
    }
}

#[cfg(test)]
mod tests;
