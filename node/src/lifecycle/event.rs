//! The encoding of an event for the application.

use std::collections::BTreeMap;

use serde::Serialize;

/// An event of one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Event {
    /// Unique, and the same each time the event is delivered.
    pub(super) id: String,
    /// Its position in its log: a gap means that an event was dropped before it was delivered.
    pub(super) number: u64,
    /// In UNIX milliseconds.
    pub(super) time: u64,
    /// `type`, then `client`, `user`, `session`, `transport` and `node`, or `channel`.
    #[serde(flatten)]
    pub(super) fields: BTreeMap<String, String>,
}

/// The body of one request to the application.
#[derive(Debug, Serialize)]
pub(super) struct Batch<'a> {
    pub(super) events: &'a [Event],
}
