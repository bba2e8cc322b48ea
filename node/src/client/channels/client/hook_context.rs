//! The description of a client in each call of a hook.

use std::sync::Arc;
use std::sync::LazyLock;

use bytes::Bytes;

use crate::client::channels::client::ChannelClient;
use crate::client::channels::failure::Failure;
use crate::client::channels::for_hooks::ForHooks;
use crate::hooks::ClientHeaders;
use crate::hooks::HookClient;

/// The description of one client.
pub(super) struct HookContext {
    client: String,
    user: Arc<str>,
    for_hooks: ForHooks,
    /// Session values by name, in JSON.
    values: Vec<(String, Bytes)>,
}

impl ChannelClient {
    /// This client while it connects, before it has a user.
    pub(super) fn newcomer(&self, for_hooks: ForHooks) -> HookContext {
        HookContext {
            client: self.id.to_string(),
            user: Arc::default(),
            for_hooks,
            values: Vec::new(), // There is no user yet that could have any.
        }
    }

    /// This client, connected as `user`.
    ///
    /// # Errors
    ///
    /// Its session values cannot be read.
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

    /// The caller of a hook, as described by `context`.
    pub(super) fn asker<'a>(&'a self, context: &'a HookContext) -> HookClient<'a> {
        static NO_HEADERS: LazyLock<ClientHeaders> = LazyLock::new(ClientHeaders::default);
        let (meta, emulated) = context.for_hooks.parts();
        HookClient {
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
