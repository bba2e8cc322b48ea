//! The words for what is known about a backend: states, findings of probes and requests, changes.
//!
//! What moves a backend from one state to the next is [`machine`](super::machine).

use std::borrow::Cow;
use std::time::Duration;

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

    /// Whether its clients stay with it, and wait for it if need be.
    pub(crate) fn keeps_clients(self) -> bool {
        matches!(self, Self::Up | Self::Unknown | Self::Suspect)
    }
}

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProbeResult {
    Good,
    /// The backend answered, and the answer says that it drains.
    Draining,
    /// The backend answered, but not as expected.
    UnexpectedResponse(String),
    /// Nobody is there: the connection was refused, or there is no way to it. So it looks during a restart in place.
    Unreachable(String),
    /// There was no answer in time, or the connection broke off. So it looks when a machine is gone, or a program hangs.
    NoResponse(String),
}

impl ProbeResult {
    /// The same, with these words before what it says of a failure.
    pub(crate) fn but(self, words: &str) -> Self {
        let why = |why| format!("{words}{why}");
        match self {
            Self::Good | Self::Draining => self,
            Self::UnexpectedResponse(text) => Self::UnexpectedResponse(why(text)),
            Self::Unreachable(text) => Self::Unreachable(why(text)),
            Self::NoResponse(text) => Self::NoResponse(why(text)),
        }
    }

    /// Whether the backend said anything.
    pub(crate) fn is_response(&self) -> bool {
        !matches!(self, Self::Unreachable(_) | Self::NoResponse(_))
    }
}

/// What a request found out about its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Nothing listens there, or the name does not resolve, or the network says that it cannot be reached.
    ConnectRefused,
    /// The dial took longer than `timeouts.connect`.
    ConnectTimeout,
    /// The backend is there, but is not who it should be, or does not speak TLS as it should.
    TlsFailed,
    /// The backend answered a request.
    Responded(http::StatusCode),
    /// The backend answered a request for an upgrade with something else.
    UpgradeRejected(http::StatusCode),
    /// The connection ended before the answer, and not because of the client.
    ConnectionLost,
    /// The backend took the request and did not answer in time.
    TimedOut,
    /// The backend said that it is stopping: in a header, by close code 1012, or in the registry.
    Stopping,
}

/// A dial that failed: what alone among the findings of requests moves a backend, since a client does not choose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DialFailure {
    Refused,
    TimedOut,
    TlsFailed,
}

/// A change of state, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) why: Cow<'static, str>,
    /// How long the state before lasted.
    pub(crate) lasted: Duration,
}

/// What is known about a backend, for those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HealthStatus {
    pub(crate) state: State,
    /// Probes that were answered so far: after each, a dial may succeed.
    pub(crate) responses: u64,
}
