//! What the application's backend is asked, and how.

use std::time::Duration;

use causeway_conf::Secret;
use http::HeaderName;
use http::Uri;
use rustls::pki_types::CertificateDer;

/// What is asked about clients; `None`: not asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hooks {
    /// Whether a client without a token may connect, and as which user.
    pub(crate) connect: Option<Hook>,
    /// Whether such a client may stay.
    pub(crate) refresh: Option<Hook>,
    /// Whether a client may subscribe to a channel.
    pub(crate) subscribe: Option<Hook>,
    /// Whether it may stay subscribed.
    pub(crate) sub_refresh: Option<Hook>,
    /// Whether a client may publish in a channel.
    pub(crate) publish: Option<Hook>,
    /// What a client wants to know.
    pub(crate) rpc: Option<Hook>,
    /// Where lifecycle events are sent.
    pub(crate) lifecycle: Option<Hook>,
    /// The largest response.
    pub(crate) response_bytes_max: usize,
    /// Headers of the client's request that go along.
    pub(crate) forward_headers: Vec<HeaderName>,
    /// Headers that the client names in its `connect` and that go along.
    pub(crate) emulated_headers: Vec<HeaderName>,
    /// Names of session values that go along, of the user and of the client.
    pub(crate) values: Vec<String>,
    /// Headers by which the backend knows the node.
    pub(crate) headers: Vec<(HeaderName, Secret)>,
    /// The trusted CAs for the backend over https; empty: those of the system.
    pub(crate) ca: Vec<CertificateDer<'static>>,
}

/// One hook. Its limits are its own, so that a slow one holds up no other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hook {
    /// Where it is asked.
    pub(crate) address: Uri,
    /// For a request and its response, including the wait for a free slot.
    pub(crate) timeout: Duration,
    /// Questions at a time; further ones wait.
    pub(crate) open_max: usize,
}

impl Hooks {
    /// Every hook that is asked.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Hook> {
        [
            &self.connect,
            &self.refresh,
            &self.subscribe,
            &self.sub_refresh,
            &self.publish,
            &self.rpc,
            &self.lifecycle,
        ]
        .into_iter()
        .flatten()
    }
}
