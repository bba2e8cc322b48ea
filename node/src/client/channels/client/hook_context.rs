//! What the backend is told of a client with each question.

use std::sync::Arc;
use std::sync::LazyLock;

use bytes::Bytes;

use crate::client::channels::client::ChannelClient;
use crate::client::channels::failure::Failure;
use crate::client::channels::for_hooks::ForHooks;
use crate::hooks::Asker;
use crate::hooks::ClientHeaders;

/// A client as a question describes it.
pub(super) struct HookContext {
    client: String,
    user: Arc<str>,
    for_hooks: ForHooks,
    /// Session values, in JSON, by their names.
    values: Vec<(String, Bytes)>,
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
        let (meta, emulated) = context.for_hooks.parts();
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
