//! What the backend is told of a client with each question.

use std::sync::Arc;
use std::sync::LazyLock;

use bytes::Bytes;

use crate::channels::client::ChannelClient;
use crate::channels::failure::Failure;
use crate::hooks::Asker;
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

/// A client as a question describes it.
pub(super) struct HookContext {
    client: String,
    user: Arc<str>,
    for_hooks: ForHooks,
    /// Session values, in JSON, by their names.
    values: Vec<(String, Bytes)>,
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

    fn kept(&self) -> &Kept {
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

impl ChannelClient {
    /// This client as it asks to connect, before anything is known of it.
    pub(super) fn newcomer(&self, for_hooks: ForHooks) -> HookContext {
        HookContext {
            client: self.id.to_string(),
            user: Arc::default(),
            for_hooks,
            values: Vec::new(), // Nobody is known yet who could have any.
        }
    }

    /// This client, connected as `user`.
    ///
    /// # Errors
    ///
    /// Its session values cannot be read now.
    pub(super) async fn hook_context(
        &self,
        user: Arc<str>,
        for_hooks: ForHooks,
    ) -> Result<HookContext, Failure> {
        Ok(HookContext {
            client: self.id.to_string(),
            values: self.values(&user).await?,
            user,
            for_hooks,
        })
    }

    /// Lets `context` ask the backend.
    pub(super) fn asker<'a>(&'a self, context: &'a HookContext) -> Asker<'a> {
        static NO_HEADERS: LazyLock<ClientHeaders> = LazyLock::new(ClientHeaders::default);
        let Kept { meta, emulated } = context.for_hooks.kept();
        Asker {
            client: &context.client,
            transport: self.transport.wire(),
            codec: self.member.codec(),
            user: &context.user,
            meta,
            values: &context.values,
            headers: [self.headers.as_deref().unwrap_or(&NO_HEADERS), emulated],
        }
    }
}
