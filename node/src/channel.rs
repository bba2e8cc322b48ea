//! The name of a channel, checked once.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest channel name, in bytes: long enough for any path or topic, short enough to be a map key.
pub(crate) const CHANNEL_NAME_BYTES_MAX: usize = 255;

/// Names that begin so are the node's own (probes, later keys and control channels).
pub(crate) const RESERVED_PREFIX: &str = "causeway:";

/// The name of a channel: what Redis knows it by, byte for byte.
///
/// Invariant: 1 to 255 bytes of UTF-8. A clone costs a reference count.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChannelName(Arc<str>);

/// The text cannot name a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a channel name of 1 to {CHANNEL_NAME_BYTES_MAX} bytes")]
pub(crate) struct BadChannelName;

impl ChannelName {
    /// Takes `name` if it can name a channel.
    ///
    /// # Errors
    ///
    /// [`BadChannelName`] if it is empty or longer than [`CHANNEL_NAME_BYTES_MAX`].
    pub(crate) fn new(name: &str) -> Result<Self, BadChannelName> {
        if name.is_empty() || CHANNEL_NAME_BYTES_MAX < name.len() {
            return Err(BadChannelName);
        }
        Ok(Self(name.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name belongs to the node itself and no client may use it.
    pub(crate) fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED_PREFIX)
    }
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_to_255_bytes() {
        assert_eq!(ChannelName::new(""), Err(BadChannelName));
        assert!(ChannelName::new("a").is_ok());
        assert!(ChannelName::new(&"a".repeat(255)).is_ok());
        assert_eq!(ChannelName::new(&"a".repeat(256)), Err(BadChannelName));
        assert_eq!(ChannelName::new(&"ä".repeat(128)), Err(BadChannelName));
    }

    #[test]
    fn the_nodes_own_names_are_reserved() {
        assert!(ChannelName::new("causeway:probe").unwrap().is_reserved());
        assert!(!ChannelName::new("causeway").unwrap().is_reserved());
    }
}
