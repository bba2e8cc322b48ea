//! Where the clients of a scenario go, and what they speak there.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;

use crate::bench::dialect::Dialect;

/// Where the clients go, and how.
pub(crate) struct Plan {
    /// They take turns with these; there is one at least.
    addresses: Vec<SocketAddr>,
    pub(super) dialect: Dialect,
    /// How they speak TLS, if they do.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// How many channels they share.
    pub(super) channels: usize,
}

impl Plan {
    /// Clients of one server that share one channel, if there are any.
    pub(crate) fn new(address: SocketAddr, dialect: Dialect) -> Self {
        Self {
            addresses: vec![address],
            dialect,
            tls: None,
            channels: 1,
        }
    }

    /// The same clients, who speak `dialect`.
    pub(crate) fn speaking(self, dialect: Dialect) -> Self {
        Self { dialect, ..self }
    }

    /// The same clients, who take turns with this server too.
    pub(crate) fn and(mut self, address: SocketAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// The same clients, over TLS.
    pub(crate) fn over_tls(self, config: &Arc<ClientConfig>) -> Self {
        Self {
            tls: Some(Arc::clone(config)),
            ..self
        }
    }

    /// The same clients, each of them on one of `channels`, in turn.
    pub(crate) fn with_channels(self, channels: usize) -> Self {
        Self { channels, ..self }
    }

    /// Where the client of this number connects.
    pub(super) fn address(&self, client: usize) -> SocketAddr {
        self.addresses[client % self.addresses.len()]
    }

    /// What the client of this number is on.
    pub(super) fn channel(&self, client: usize) -> usize {
        client % self.channels
    }
}
