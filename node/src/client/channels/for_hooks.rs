//! What a connection keeps for the hooks.

use std::sync::Arc;
use std::sync::LazyLock;

use bytes::Bytes;

use crate::hooks::ClientHeaders;

/// What a connection keeps for the hooks and for nobody else; mostly that is nothing, and then nothing is allocated.
#[derive(Debug, Clone, Default)]
pub(super) struct ForHooks(Option<Arc<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// What the application said of the connection.
    meta: Bytes,
    /// Headers of the client's `connect`.
    emulated: ClientHeaders,
}

static NOTHING: LazyLock<Kept> = LazyLock::new(Kept::default);

impl ForHooks {
    pub(super) fn new(meta: Bytes, emulated: ClientHeaders) -> Self {
        let is_something = !meta.is_empty() || !emulated.is_empty();
        Self(is_something.then(|| Arc::new(Kept { meta, emulated })))
    }

    /// The same with other `meta`, unless that is empty.
    pub(super) fn with_meta(&self, meta: Bytes) -> Self {
        if meta.is_empty() {
            return self.clone();
        }
        Self::new(meta, self.kept().emulated.clone())
    }

    /// `meta`, and the headers of the client's `connect`.
    pub(super) fn parts(&self) -> (&Bytes, &ClientHeaders) {
        let Kept { meta, emulated } = self.kept();
        (meta, emulated)
    }

    fn kept(&self) -> &Kept {
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}
