//! Data that a connection stores for the hooks.

use std::sync::Arc;
use std::sync::LazyLock;

use bytes::Bytes;

use crate::hooks::ClientHeaders;

/// Data that a connection stores for the hooks only; usually empty, and then nothing is allocated.
#[derive(Debug, Clone, Default)]
pub(super) struct ForHooks(Option<Arc<Data>>);

#[derive(Debug, Default)]
struct Data {
    /// The application's `meta` for the connection.
    meta: Bytes,
    /// Headers of the client's `connect`.
    emulated: ClientHeaders,
}

static NOTHING: LazyLock<Data> = LazyLock::new(Data::default);

impl ForHooks {
    pub(super) fn new(meta: Bytes, emulated: ClientHeaders) -> Self {
        let is_something = !meta.is_empty() || !emulated.is_empty();
        Self(is_something.then(|| Arc::new(Data { meta, emulated })))
    }

    /// Returns the same with other `meta`, unless that is empty.
    pub(super) fn with_meta(&self, meta: Bytes) -> Self {
        if meta.is_empty() {
            return self.clone();
        }
        Self::new(meta, self.data().emulated.clone())
    }

    /// `meta`, and the headers of the client's `connect`.
    pub(super) fn parts(&self) -> (&Bytes, &ClientHeaders) {
        let Data { meta, emulated } = self.data();
        (meta, emulated)
    }

    fn data(&self) -> &Data {
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}
