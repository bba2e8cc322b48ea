//! The commands `publish` and `rpc`.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::debug;

use crate::client::channels;
use crate::client::channels::access;
use crate::client::channels::access::Decision;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::failure::Failure;
use crate::hooks::PublishGrant;
use crate::protocol::ErrorCode;
use crate::protocol::Outcome;
use crate::protocol::Publication;
use crate::protocol::PublishRequest;
use crate::protocol::PublishResult;
use crate::protocol::RpcRequest;
use crate::protocol::RpcResult;
use crate::stream::PublishFailed;
use crate::stream::PublishOptions;

impl ChannelClient {
    pub(super) async fn publish(&self, id: u32, request: PublishRequest) -> Result<(), Failure> {
        let (channel, options) = self.options(&request.channel)?;
        let decision = self.decide(&channel, |subject| access::publish(&options, subject))??;
        access::codec(&options, self.member.codec())?;
        access::is_publishable(&options, &request)?;
        if !self.is_within_rate(Instant::now()) {
            return Err(ErrorCode::TooManyRequests.into());
        }
        let info = self.info_in(&channel)?;
        let granted = match decision {
            Decision::Hook => {
                let (user, for_hooks) = {
                    let mut state = self.state.lock();
                    let identity = state.identity()?;
                    (Arc::clone(&identity.user), identity.for_hooks.clone())
                };
                let context = self.hook_context(user, for_hooks).await?;
                let asker = self.asker(&context);
                let hooks = &self.clients.hooks;
                hooks
                    .publish(&asker, channel.as_str(), &request.data, options.data)
                    .await?
            }
            Decision::Allowed | Decision::Token => PublishGrant::default(),
        };
        let publication = Publication {
            data: granted.data.unwrap_or(request.data),
            info: Some(info),
            time: channels::unix_milliseconds(),
            ..Publication::default()
        };
        let publish_options = PublishOptions::of(&options, granted.skip_history);
        let published = self
            .clients
            .streams
            .publish(&channel, publication, publish_options)
            .await;
        published.map_err(|error| {
            debug!(client = %self.id, %channel, %error, "publication failed");
            of_publish(&error)
        })?;
        self.reply(id, Outcome::Publish(PublishResult {}));
        Ok(())
    }

    /// Passes an RPC to the application, if there is a hook for it.
    pub(super) async fn rpc(&self, id: u32, request: &RpcRequest) -> Result<(), Failure> {
        let (user, for_hooks) = {
            let mut state = self.state.lock();
            let identity = state.identity()?;
            (Arc::clone(&identity.user), identity.for_hooks.clone())
        };
        let hooks = &self.clients.hooks;
        if !hooks.has_rpc() {
            return Err(ErrorCode::NotAvailable.into());
        }
        access::is_readable(self.member.codec(), &request.data)?;
        let context = self.hook_context(user, for_hooks).await?;
        let asker = self.asker(&context);
        let data = hooks.rpc(&asker, &request.method, &request.data).await?;
        self.reply(id, Outcome::Rpc(RpcResult { data }));
        Ok(())
    }
}

fn of_publish(failed: &PublishFailed) -> ErrorCode {
    if failed.is_too_large() {
        ErrorCode::LimitExceeded
    } else {
        ErrorCode::Internal
    }
}
