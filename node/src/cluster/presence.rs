//! Who is in which channel: for whoever asks, and for whoever wants to hear of coming and going.
//!
//! A client enters when it subscribes and leaves when its guard is dropped; the registry keeps the list, and
//! tells when somebody is on it or off it, also if that somebody's node was killed. So joins and leaves are
//! told by nobody else, and always agree with the list.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::cluster::registry::Announce;
use crate::cluster::registry::Away;
use crate::cluster::registry::Entered;
use crate::cluster::registry::Registry;
use crate::cluster::registry::Slot;
use crate::cluster::registry::Value;
use crate::protocol::ClientInfo;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;

/// The lists of all channels.
pub(crate) struct Presence {
    registry: Arc<Registry>,
}

/// How many are in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Clients.
    pub(crate) clients: usize,
    /// Different users among them.
    pub(crate) users: usize,
}

/// A client on the list of a channel, until it is dropped.
pub(crate) struct Present {
    entered: Entered,
    announce: Announce,
}

impl Presence {
    pub(crate) fn new(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self { registry })
    }

    /// Puts a client on the list of `channel`, where it is until as many have been dropped as were returned.
    pub(crate) fn enter(
        &self,
        channel: &ChannelName,
        client: ClientId,
        info: &ClientInfo,
        announce: Announce,
    ) -> Present {
        let slot = Slot::Member(channel.clone(), client);
        let entered = self.registry.enter(slot, value(info, announce));
        Present { entered, announce }
    }

    /// Everybody in `channel`, by client.
    ///
    /// # Errors
    ///
    /// [`Away`]: nobody knows now.
    pub(crate) async fn list(
        &self,
        channel: &ChannelName,
    ) -> Result<BTreeMap<String, ClientInfo>, Away> {
        let members = self.registry.members(channel).await?.into_iter();
        let known = members.filter_map(|(client, info)| {
            // What no node has written is nobody.
            Some((client.to_string(), ClientInfo::decode(info).ok()?))
        });
        Ok(known.collect())
    }

    /// How many are in `channel`.
    ///
    /// # Errors
    ///
    /// [`Away`]: nobody knows now.
    pub(crate) async fn stats(&self, channel: &ChannelName) -> Result<Stats, Away> {
        let list = self.list(channel).await?;
        let users: HashSet<&str> = list.values().map(|info| info.user.as_str()).collect();
        Ok(Stats {
            clients: list.len(),
            users: users.len(),
        })
    }
}

impl Present {
    /// Says something else of the client; nobody is told.
    pub(crate) fn change(&mut self, info: &ClientInfo) {
        self.entered.change(value(info, self.announce));
    }

    /// Waits until others can see it on the list, or for as long as `patience`; whether they can.
    pub(crate) fn seen(&self, patience: Duration) -> impl Future<Output = bool> + Send + use<> {
        self.entered.seen(patience)
    }
}

fn value(info: &ClientInfo, announce: Announce) -> Value {
    Value {
        info: Bytes::from(info.encode_to_vec()),
        announce,
    }
}
