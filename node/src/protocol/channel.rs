//! The name of a channel, checked once.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest channel name, in bytes: long enough for any path or topic, short enough to be a map key.
pub(crate) const CHANNEL_NAME_BYTES_MAX: usize = 255;

/// Names that begin so are the node's own (probes, later keys and control channels).
pub(crate) const RESERVED_PREFIX: &str = "causeway:";

/// Names of channels' events on the wire begin so; see [`ChannelName::wire`].
const WIRE_PREFIX: &str = "causeway:ch:";

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

    /// What Redis knows the events of `channel` by, so that no relay channel clashes with it. The braces
    /// make all that belongs to one channel stay together on one server.
    ///
    /// Such a name may be longer than others.
    pub(crate) fn wire(channel: &Self) -> Self {
        Self(format!("{WIRE_PREFIX}{}", tag(channel.as_str())).into())
    }

    /// Whether it is meant for the channel streams.
    pub(crate) fn is_wire(&self) -> bool {
        self.0.starts_with(WIRE_PREFIX)
    }

    /// A name of this node's own for the `number`-th life of this channel.
    pub(crate) fn numbered(&self, number: u64) -> Self {
        Self(format!("{self}#{number}").into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name belongs to the node itself and no client may use it.
    pub(crate) fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED_PREFIX)
    }
}

/// `name` in braces: what stands in them decides on which server of a cluster a key is, so that all keys of one
/// name are together.
///
/// Braces with nothing in them decide nothing, so a name that begins with `}` is put behind a `%`; and so is one
/// that begins with `%`, so that no two names become one.
pub(crate) fn tag(name: &str) -> String {
    let escape = if name.starts_with(['}', '%']) {
        "%"
    } else {
        ""
    };
    format!("{{{escape}{name}}}")
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
    fn a_name_on_the_wire_is_reserved_and_has_room_for_the_longest() {
        let wire = ChannelName::wire(&ChannelName::new(&"a".repeat(255)).unwrap());
        assert!(wire.is_reserved());
        let name = ChannelName::new("chat:1").unwrap();
        let short = ChannelName::wire(&name);
        assert_eq!(short.as_str(), "causeway:ch:{chat:1}");
        assert_ne!(short.numbered(1), short.numbered(2));
    }

    #[test]
    fn the_nodes_own_names_are_reserved() {
        assert!(ChannelName::new("causeway:probe").unwrap().is_reserved());
        assert!(!ChannelName::new("causeway").unwrap().is_reserved());
    }
}
