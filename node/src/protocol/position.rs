//! A position in a channel's stream.

use std::fmt;
use std::sync::Arc;

/// One life of a channel's stream: offsets of two epochs have nothing to do with each other.
///
/// What clients name may be anything; it is only ever compared. A clone costs a reference count.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Epoch(Arc<str>);

/// A place in a stream: right behind the publication with this offset, the first of which is 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) epoch: Epoch,
    pub(crate) offset: u64,
}

impl Epoch {
    /// One that has never been and will not be again.
    pub(crate) fn random() -> Self {
        Self(format!("{:016x}", fastrand::u64(..)).into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Epoch {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
