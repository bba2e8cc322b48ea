//! The states of a backend, the results of probes, the evidence of requests, and changes of state.
//!
//! The transitions are in [`machine`](super::machine).

use std::borrow::Cow;
use std::time::Duration;

/// The state of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Its probes pass.
    Up,
    /// Not probed yet.
    Unknown,
    /// A probe or a dial failed. Its clients stay, it gets no new ones, and it is probed faster.
    Suspect,
    /// It does not pass its probes.
    Down,
    /// It announced that it is stopping: it gets no new clients.
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

    /// Whether its clients stay with it, and wait if it cannot be reached.
    pub(crate) fn keeps_clients(self) -> bool {
        matches!(self, Self::Up | Self::Unknown | Self::Suspect)
    }
}

/// What an operator has set for a backend. It holds over the results of probes until the operator lifts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Override {
    /// No new clients; its tunnels are closed, its sessions may end.
    Drain,
    /// No clients; its tunnels stay.
    Maintenance,
}

impl Override {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::Drain, Self::Maintenance];

    /// The name in the admin pages, logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
        }
    }

    /// The state that it puts a backend into.
    pub(super) fn state(self) -> State {
        match self {
            Self::Drain => State::Draining,
            Self::Maintenance => State::Maintenance,
        }
    }
}

/// The result of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProbeResult {
    Good,
    /// The response says that the backend is draining.
    Draining,
    /// The backend responded, but not as expected.
    UnexpectedResponse(String),
    /// The connection was refused, or there is no route, as during a restart in place.
    Unreachable(String),
    /// There was no response in time, or the connection broke, as when a machine is down or a program hangs.
    NoResponse(String),
}

impl ProbeResult {
    /// The same, with `prefix` before the reason of a failure.
    pub(crate) fn with_prefix(self, prefix: &str) -> Self {
        let why = |why| format!("{prefix}{why}");
        match self {
            Self::Good | Self::Draining => self,
            Self::UnexpectedResponse(text) => Self::UnexpectedResponse(why(text)),
            Self::Unreachable(text) => Self::Unreachable(why(text)),
            Self::NoResponse(text) => Self::NoResponse(why(text)),
        }
    }

    /// Whether the backend responded.
    pub(crate) fn is_response(&self) -> bool {
        !matches!(self, Self::Unreachable(_) | Self::NoResponse(_))
    }
}

/// What a request observed of its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// The connection was refused, the name did not resolve, or the network reported it as unreachable.
    ConnectRefused,
    /// The dial took longer than `timeouts.connect`.
    ConnectTimeout,
    /// The certificate of the backend was rejected, or the TLS handshake failed.
    TlsFailed,
    /// The backend responded to a request.
    Responded(http::StatusCode),
    /// The backend rejected an upgrade.
    UpgradeRejected(http::StatusCode),
    /// The connection ended before the response, and not because of the client.
    ConnectionLost,
    /// The backend received the request and did not respond in time.
    TimedOut,
    /// The backend announced that it is stopping: in a header, by close code 1012, or in the registry.
    Stopping,
}

/// How a dial failed. Only this evidence of requests changes the state of a backend, since clients cannot provoke it.
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
    /// How long the previous state lasted.
    pub(crate) lasted: Duration,
}

/// The health of a backend, as published to parked requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HealthStatus {
    pub(crate) state: State,
    /// How many probes it has responded to: after each, a dial may succeed.
    pub(crate) responses: u64,
}
