//! Session values of a client, which are sent with each call of a hook.

use bytes::Bytes;
use futures_util::future;
use tracing::debug;

use crate::client::channels::client::ChannelClient;
use crate::client::channels::failure::Failure;
use crate::cluster::values::Owner;
use crate::protocol::ErrorCode;

impl ChannelClient {
    /// The values that are configured for the hooks, by name: the client's own, else those of its `user` (empty:
    /// anonymous).
    ///
    /// # Errors
    ///
    /// They cannot be read. The hook must not be called then: the backend would take them for missing.
    pub(super) async fn values(&self, user: &str) -> Result<Vec<(String, Bytes)>, Failure> {
        let names = self.clients.hooks.values();
        let found = names.iter().map(async |name| {
            let value = self.value(user, name).await?;
            Ok::<_, Failure>(value.map(|value| (name.clone(), value)))
        });
        let found = future::try_join_all(found).await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn value(&self, user: &str, name: &str) -> Result<Option<Bytes>, Failure> {
        let owners = [
            Some(Owner::Client(self.id)),
            (!user.is_empty()).then(|| Owner::User(user.to_owned())),
        ];
        for owner in owners.into_iter().flatten() {
            let value = self.clients.values.get(&owner, name).await;
            let value = value.map_err(|error| {
                debug!(client = %self.id, name, %error, "cannot read a session value");
                Failure::from(ErrorCode::Internal)
            })?;
            if value.is_some() {
                return Ok(value);
            }
        }
        Ok(None)
    }
}
