//! Lifecycle events.

use std::time::Duration;

/// Which events the application gets, and for how long they are kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lifecycle {
    /// Whether clients have events.
    pub(crate) connections: bool,
    /// Whether channels of some namespace have events.
    pub(crate) channels: bool,
    /// How long an end waits for a reconnect, with which neither has an event; zero: not at all.
    pub(crate) coalesce: Duration,
    /// Events that are kept for the application.
    pub(crate) keep: usize,
}

impl Lifecycle {
    /// Whether there are events at all.
    pub(crate) fn is_wanted(&self) -> bool {
        self.connections || self.channels
    }
}
