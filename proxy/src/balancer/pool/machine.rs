//! The state machine of one backend.
//!
//! A plain type: the input is results of probes, failed dials and the time, the output is changes of state. It neither probes nor
//! chooses backends.
//!
//! | | good probe | "draining" | unexpected response | no response, failed dial | end of the grace period |
//! |---|---|---|---|---|---|
//! | unknown, up | up | draining | suspect | suspect, with a grace period | |
//! | suspect | up | draining | down after `fall` | suspect | down |
//! | down | up after `rise` | draining | down | down | |
//! | draining | up | draining | down after `fall` | down after `fall` probes | |
//! | maintenance | | | | | |
//!
//! The grace period is the time for a restart in place: until it ends, clients of the backend wait for it. It starts with the first
//! failure to reach the backend, and is as long as the longest that one of the failures since then allows: `hold` for a refused
//! connection, which is typical of a restart, `hold_timeout` for no response. Only a good probe ends it early, since a program that
//! starts may respond with errors at first. Without a grace period (a setting of 0) failed probes count by `fall`.
//!
//! Responses to requests change no state: clients could provoke them. A backend that has recently announced that it is stopping, and
//! then cannot be reached, is not restarting in place: it drains, without a grace period.
//!
//! A reload moves a backend to and from maintenance, and a removed one to draining for good.
//!
//! An operator's drain or maintenance ([`Override`]) holds over all of this: probes go on, and their results are only remembered, for
//! the state that follows when the operator lifts it.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use crate::balancer::pool::state::{Change, DialFailure, Override, ProbeResult, State};

/// A backend that goes down again within this time after it came up is flapping.
const STEADY: Duration = Duration::from_secs(60);

/// The reasons of states that do not follow from a probe.
const BY_CONFIGURATION: &str = "by configuration";
const NOT_PROBED: &str = "not probed yet";
const REMOVED: &str = "removed from the configuration";
const BY_OPERATOR: &str = "by an operator";
const PROBE_PASSES: &str = "the probe passes";
const PROBE_DRAINING: &str = "the probe reports draining";

/// How long an announcement that a backend is stopping is valid.
const STOPS_WITHIN: Duration = Duration::from_secs(15);

/// How many times `rise` is doubled at most for a flapping backend.
const DOUBLED_MAX: u32 = 3;

/// The thresholds.
#[derive(Debug, Clone, Copy)]
pub(super) struct MachineConfig {
    /// Consecutive good probes that bring a backend up again.
    pub(super) rise: u32,
    /// Consecutive failed probes that take a backend down, without a grace period.
    pub(super) fall: u32,
    /// The grace period of a backend that refuses connections; zero is none.
    pub(super) hold: Duration,
    /// The same, for one that does not respond.
    pub(super) hold_timeout: Duration,
}

/// The state and its history.
///
/// Invariant: `grace` is `None` unless the state is suspect. `last_probe` is `None` without an override.
#[derive(Debug)]
pub(super) struct Machine {
    config: MachineConfig,
    state: State,
    since: Instant,
    why: Cow<'static, str>,
    /// Consecutive probes towards the next state.
    streak: u32,
    grace: Option<Grace>,
    /// When it last announced that it is stopping.
    stop_announced: Option<Instant>,
    /// Whether it responded to the last probe.
    responds: bool,
    /// Whether a probe has ever passed.
    has_passed: bool,
    /// When it last came up after it was down.
    rose: Option<Instant>,
    /// How many times in a row it went down less than [`STEADY`] after it came up.
    flaps: u32,
    /// Whether it was removed from the configuration: it drains until it is deleted.
    removed: bool,
    /// Whether the configuration has it in maintenance.
    maintenance: bool,
    /// What an operator has set.
    operator: Option<Override>,
    /// The last result under `operator`.
    last_probe: Option<ProbeResult>,
}

/// The grace period of a backend.
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
            maintenance: state == State::Maintenance,
            operator: None,
            last_probe: None,
        }
    }

    /// Applies new settings. A backend that was removed starts again as unknown.
    pub(super) fn configure(
        &mut self,
        config: MachineConfig,
        maintenance: bool,
        now: Instant,
    ) -> Option<Change> {
        self.config = config;
        let was_removed = std::mem::take(&mut self.removed);
        let was_in_maintenance = std::mem::replace(&mut self.maintenance, maintenance);
        let (state, why) = match self.operator {
            _ if maintenance => (State::Maintenance, BY_CONFIGURATION),
            Some(operator) => (operator.state(), BY_OPERATOR),
            None if was_removed || was_in_maintenance => (State::Unknown, NOT_PROBED),
            None => return None,
        };
        self.settle(state, why.into(), now)
    }

    /// Sets what an operator wants, or lifts it: then the state follows from the last probe.
    ///
    /// While the configuration has it in maintenance, or it is removed, that decides; the override is kept for later.
    pub(super) fn set_override(
        &mut self,
        operator: Option<Override>,
        now: Instant,
    ) -> Option<Change> {
        if self.operator == operator {
            return None;
        }
        let before = std::mem::replace(&mut self.operator, operator);
        if before.is_none() {
            self.last_probe = match self.state {
                State::Up => Some(ProbeResult::Good),
                State::Draining if !self.removed => Some(ProbeResult::Draining),
                State::Down => Some(ProbeResult::NoResponse(self.why.clone().into_owned())),
                State::Unknown | State::Suspect | State::Maintenance | State::Draining => None,
            };
            let was_down = self.state == State::Down;
            self.streak = if was_down { self.config.fall } else { 0 };
        }
        let (state, why) = match operator {
            Some(operator) => (operator.state(), Cow::Borrowed(BY_OPERATOR)),
            None => match self.last_probe.take() {
                Some(ProbeResult::Good) => (State::Up, PROBE_PASSES.into()),
                Some(ProbeResult::Draining) => (State::Draining, PROBE_DRAINING.into()),
                Some(
                    ProbeResult::UnexpectedResponse(why)
                    | ProbeResult::Unreachable(why)
                    | ProbeResult::NoResponse(why),
                ) if self.config.fall <= self.streak => (State::Down, why.into()),
                _ => (State::Unknown, NOT_PROBED.into()),
            },
        };
        if self.removed || self.maintenance {
            return None;
        }
        self.settle(state, why, now)
    }

    /// What an operator has set.
    pub(super) fn operator(&self) -> Option<Override> {
        self.operator
    }

    /// Whether it is probed: not if the configuration takes it out of service.
    pub(super) fn is_probed(&self) -> bool {
        !self.maintenance && !self.removed
    }

    /// Whether an operator has drained it, and it has not responded to `fall` probes: not even its sessions can continue.
    pub(super) fn is_lost(&self) -> bool {
        self.operator.is_some() && !self.responds && self.config.fall <= self.streak
    }

    /// Drains for good, whatever the probes find.
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

    /// Whether it was removed from the configuration.
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

    /// Whether it responded to the last probe: a backend that is down but responds is better than one that does not.
    pub(super) fn responds(&self) -> bool {
        self.responds
    }

    /// Whether a probe has ever passed.
    pub(super) fn has_passed(&self) -> bool {
        self.has_passed
    }

    /// When the grace period ends: then [`Machine::tick`] is due. `None` without one.
    pub(super) fn grace_end(&self) -> Option<Instant> {
        self.grace.map(|grace| grace.began + grace.length)
    }

    /// Evaluates the result of a probe.
    pub(super) fn probe(&mut self, result: ProbeResult, now: Instant) -> Option<Change> {
        if !self.is_probed() {
            return None;
        }
        self.responds = result.is_response();
        if self.operator.is_some() {
            self.remember(result);
            return None;
        }
        match result {
            ProbeResult::Good => self.passed(now),
            ProbeResult::Draining if self.state == State::Draining => {
                self.streak = 0;
                None
            }
            ProbeResult::Draining => Some(self.enter(State::Draining, PROBE_DRAINING.into(), now)),
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

    /// Handles a failed dial of a request.
    pub(super) fn dial_failed(&mut self, dial: DialFailure, now: Instant) -> Option<Change> {
        let (why, grace) = match dial {
            DialFailure::Refused => ("the backend is unreachable", self.config.hold),
            DialFailure::TimedOut => ("connecting timed out", self.config.hold_timeout),
            DialFailure::TlsFailed => ("the TLS handshake failed", self.config.hold_timeout),
        };
        if dial != DialFailure::TlsFailed && self.is_stopping(now) {
            return Some(self.stopped(why, now));
        }
        match self.state {
            State::Up | State::Unknown => {
                let change = self.enter(State::Suspect, why.into(), now);
                self.extend_grace(grace, now);
                Some(change)
            }
            State::Suspect => {
                self.extend_grace(grace, now);
                None
            }
            State::Down | State::Draining | State::Maintenance => None,
        }
    }

    /// Handles an announcement that the backend is stopping. Probes find out when it does; but if it is unreachable already, it
    /// drains at once.
    pub(super) fn announced_stop(&mut self, now: Instant) -> Option<Change> {
        self.stop_announced = Some(now);
        let is_unreachable = self.grace.is_some();
        (is_unreachable && self.is_stopping(now)).then(|| {
            let why = self.why.clone();
            self.stopped(&why, now)
        })
    }

    /// Whether it has announced that recently, and is not draining yet.
    fn is_stopping(&self, now: Instant) -> bool {
        let is_recent = |at| now.saturating_duration_since(at) < STOPS_WITHIN;
        self.state.keeps_clients() && !self.removed && self.stop_announced.is_some_and(is_recent)
    }

    fn stopped(&mut self, why: &str, now: Instant) -> Change {
        let why = format!("it announced that it is stopping, then: {why}");
        self.enter(State::Draining, why.into(), now)
    }

    /// Ends the grace period if it has expired at `now`.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Change> {
        let grace = self.grace.filter(|grace| grace.has_expired(now))?;
        let why = format!(
            "{}, and no probe passed within {:?}",
            self.why, grace.length
        );
        Some(self.enter(State::Down, why.into(), now))
    }

    /// Remembers the result of a probe for when the override is lifted.
    fn remember(&mut self, result: ProbeResult) {
        let has_failed = !matches!(result, ProbeResult::Good | ProbeResult::Draining);
        self.has_passed |= result == ProbeResult::Good;
        self.streak = if has_failed {
            self.streak.saturating_add(1)
        } else {
            0
        };
        self.last_probe = Some(result);
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
                Some(self.enter(State::Up, "probes pass".into(), now))
            }
            // One good probe is enough; it also ends a drain that was called off.
            _ => Some(self.enter(State::Up, PROBE_PASSES.into(), now)),
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
                self.extend_grace(grace, now);
                Some(change)
            }
            State::Suspect => {
                self.streak += 1;
                self.why = why.clone();
                self.extend_grace(grace, now);
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

    /// How many consecutive good probes are needed now: more for a flapping backend.
    fn rise(&self) -> u32 {
        let factor = 1 << self.flaps.min(DOUBLED_MAX);
        self.config.rise.saturating_mul(factor)
    }

    /// Starts a grace period of `length`, or extends the current one to that.
    fn extend_grace(&mut self, length: Duration, now: Instant) {
        debug_assert_eq!(self.state, State::Suspect);
        if length.is_zero() {
            return;
        }
        let grace = self.grace.get_or_insert(Grace { began: now, length });
        grace.length = grace.length.max(length);
    }

    /// Enters `state`, or changes only the reason if it is in that state already.
    fn settle(&mut self, state: State, why: Cow<'static, str>, now: Instant) -> Option<Change> {
        if self.state == state {
            self.why = why;
            return None;
        }
        let streak = self.streak;
        let change = self.enter(state, why, now);
        if self.operator.is_some() {
            self.streak = streak; // Of failed probes, not of this state.
        }
        Some(change)
    }

    fn enter(&mut self, state: State, why: Cow<'static, str>, now: Instant) -> Change {
        debug_assert_ne!(self.state, state);
        if state == State::Down {
            let is_recent = |rose| now.saturating_duration_since(rose) < STEADY;
            let planned = self.state == State::Draining;
            self.flaps = if !planned && self.rose.take().is_some_and(is_recent) {
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
    fn has_expired(&self, now: Instant) -> bool {
        self.length <= now.saturating_duration_since(self.began)
    }
}

#[cfg(test)]
mod tests;
