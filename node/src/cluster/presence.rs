//! Presence: the members of channels, and their join and leave events.
//!
//! A client enters when it subscribes and leaves when its guard is dropped; the registry keeps the list, and
//! reports when a member is added or removed, also if the member's node was killed. No other code emits joins
//! and leaves, so they always agree with the list.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::cluster::registry::Announce;
use crate::cluster::registry::Registration;
use crate::cluster::registry::Registry;
use crate::cluster::registry::Slot;
use crate::cluster::registry::Unavailable;
use crate::cluster::registry::Value;
use crate::protocol::ClientInfo;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;

/// The member lists of all channels.
pub(crate) struct Presence {
    registry: Arc<Registry>,
}

/// The number of members of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Clients.
    pub(crate) clients: usize,
    /// Different users among them.
    pub(crate) users: usize,
}

/// A client's membership of a channel, until it is dropped.
pub(crate) struct Present {
    registration: Registration,
    announce: Announce,
}

impl Presence {
    pub(crate) fn new(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self { registry })
    }

    /// Adds a client to the list of `channel`, until as many have been dropped as were returned.
    pub(crate) fn enter(
        &self,
        channel: &ChannelName,
        client: ClientId,
        info: &ClientInfo,
        announce: Announce,
    ) -> Present {
        let slot = Slot::Member(channel.clone(), client);
        let registration = self.registry.enter(slot, value(info, announce));
        Present {
            registration,
            announce,
        }
    }

    /// The same for a client that another node hands off to this one: it is on the list already, and neither a join nor a
    /// leave is told.
    pub(crate) fn take_over(
        &self,
        channel: &ChannelName,
        client: ClientId,
        info: &ClientInfo,
        announce: Announce,
    ) -> Present {
        let slot = Slot::Member(channel.clone(), client);
        let registration = self.registry.take_over(slot, value(info, announce));
        Present {
            registration,
            announce,
        }
    }

    /// Keeps `client` registered as one that this node has taken over, until the returned value is dropped.
    pub(crate) fn moved(&self, client: ClientId) -> Registration {
        self.registry.enter(Slot::moved(client), Value::default())
    }

    /// Waits up to `wait_max` until other nodes can see that `user` has a client here; whether they can.
    pub(crate) fn user_seen(
        &self,
        user: &str,
        wait_max: Duration,
    ) -> impl Future<Output = bool> + Send + use<> {
        self.registry.user_seen(user, wait_max)
    }

    /// The members of `channel`, by client.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the registry cannot be read reliably.
    pub(crate) async fn list(
        &self,
        channel: &ChannelName,
    ) -> Result<BTreeMap<String, ClientInfo>, Unavailable> {
        let members = self.registry.members(channel).await?.into_iter();
        let known = members.filter_map(|(client, info)| {
            // Undecodable entries are ignored.
            Some((client.to_string(), ClientInfo::decode(info).ok()?))
        });
        Ok(known.collect())
    }

    /// The number of members of `channel`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the registry cannot be read reliably.
    pub(crate) async fn stats(&self, channel: &ChannelName) -> Result<Stats, Unavailable> {
        let list = self.list(channel).await?;
        let users: HashSet<&str> = list.values().map(|info| info.user.as_str()).collect();
        Ok(Stats {
            clients: list.len(),
            users: users.len(),
        })
    }
}

impl Present {
    /// Replaces the client's info, without an event.
    pub(crate) fn change(&mut self, info: &ClientInfo) {
        self.registration.change(value(info, self.announce));
    }

    /// Whether joins and leaves are told.
    pub(crate) fn announce(&self) -> Announce {
        self.announce
    }

    /// Another node may take it over from now on, or no longer.
    pub(crate) fn set_offered(&self, is_offered: bool) {
        self.registration.set_offered(is_offered);
    }

    /// Ends it after another node has taken it over: no leave is told.
    pub(crate) fn give_up(self) {
        self.registration.give_up();
    }

    /// Waits up to `wait_max` until other nodes can see it on the list; whether they can.
    pub(crate) fn seen(&self, wait_max: Duration) -> impl Future<Output = bool> + Send + use<> {
        self.registration.seen(wait_max)
    }
}

fn value(info: &ClientInfo, announce: Announce) -> Value {
    Value {
        info: Bytes::from(info.encode_to_vec()),
        announce,
    }
}
