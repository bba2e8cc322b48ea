//! What a client can be told to do from outside: by the application over the HTTP API, or by another
//! request of its own that came to another node.

use bytes::Bytes;

use crate::auth::grant::Overrides;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;

/// Something that a client has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// It is sent away.
    Disconnect {
        /// The close code; it decides whether the client comes back.
        code: u32,
        /// For people.
        reason: String,
    },
    /// It hears a channel no more.
    Unsubscribe {
        /// Which.
        channel: ChannelName,
        /// From 2500 on, the client subscribes again by itself.
        code: u32,
        /// For people.
        reason: String,
    },
    /// It hears a channel from now on without having asked.
    Subscribe(Box<SubscribeOrder>),
    /// Its connection ends earlier or later than it would have.
    Refresh(Lifetime),
    /// It has sent this, over a request that came to another node.
    Input(Bytes),
}

/// How long a connection lives from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// It has expired: the client is sent away as one whose token was not refreshed.
    Expired,
    /// Until then, in UNIX seconds.
    Until(u64),
    /// It does not expire.
    Endless,
}

/// A server-side subscription, as the application wishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubscribeOrder {
    pub(crate) channel: ChannelName,
    /// What presence and join say of the client in this channel; empty: nothing.
    pub(crate) info: Bytes,
    /// What the client is told with the subscription; empty: nothing.
    pub(crate) data: Bytes,
    /// From where the client is to be given what it missed.
    pub(crate) recover_since: Option<Since>,
    /// What this subscription does differently from its namespace.
    pub(crate) overrides: Overrides,
}

/// A position in a channel's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Since {
    pub(crate) offset: u64,
    pub(crate) epoch: String,
}

/// Whom an order is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// One client, whoever its user is.
    Client(ClientId),
    /// One client, if it is this user's.
    ClientOf {
        /// The user.
        user: String,
        /// The client.
        client: ClientId,
    },
    /// One client, by the secret name that it alone was told, if it is this user's.
    Session {
        /// The user; empty: whoever it is.
        user: String,
        /// The name.
        session: ClientId,
    },
    /// All clients of a user, but for some.
    User {
        /// The user.
        user: String,
        /// Clients that are left alone.
        except: Vec<ClientId>,
    },
}
