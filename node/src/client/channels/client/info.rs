//! The `ClientInfo` of a client, which other members of a channel see.

use bytes::Bytes;

use crate::client::channels::client::Attachment;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::failure::Failure;
use crate::client::channels::state::Subscription;
use crate::protocol::ClientInfo;
use crate::protocol::channel::ChannelName;

impl ChannelClient {
    /// The client's info in `channel`, for its publications.
    pub(super) fn info_in(&self, channel: &ChannelName) -> Result<ClientInfo, Failure> {
        let mut state = self.state.lock();
        let chan_info = state.subscription(channel).map(|one| one.info.bytes());
        let identity = state.identity()?;
        Ok(ClientInfo {
            user: identity.user.to_string(),
            client: self.id.to_string(),
            conn_info: identity.info.bytes(),
            chan_info: chan_info.unwrap_or_default(),
        })
    }

    /// Changes the info of the connection, also in the presence of its channels. Empty: unchanged.
    pub(super) fn change_info(&self, info: Bytes) {
        let mut state = self.state.lock();
        let Ok(identity) = state.identity() else {
            return;
        };
        if info.is_empty() || identity.info.bytes() == info {
            return;
        }
        identity.info = info.clone().into();
        let mut told = ClientInfo {
            user: identity.user.to_string(),
            client: self.id.to_string(),
            conn_info: info,
            chan_info: Bytes::new(),
        };
        for subscription in state.subscriptions() {
            list(subscription, &mut told);
        }
    }

    /// Changes the info of a subscription. Empty: unchanged.
    pub(super) fn change_info_in(&self, channel: &ChannelName, info: Bytes) {
        let mut state = self.state.lock();
        let Ok(identity) = state.identity() else {
            return;
        };
        let mut told = ClientInfo {
            user: identity.user.to_string(),
            client: self.id.to_string(),
            conn_info: identity.info.bytes(),
            chan_info: Bytes::new(),
        };
        let subscription = state.subscription(channel);
        if let Some(subscription) =
            subscription.filter(|one| !info.is_empty() && one.info.bytes() != info)
        {
            subscription.info = info.into();
            list(subscription, &mut told);
        }
    }
}

/// Updates the client's entry in the presence of a channel.
fn list(subscription: &mut Subscription<Attachment>, told: &mut ClientInfo) {
    if let Some(present) = &mut subscription.attachment.present {
        told.chan_info = subscription.info.bytes();
        present.change(told);
    }
}
