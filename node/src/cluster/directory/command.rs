//! Control commands for clients: from the application over the HTTP API, or the client's own input that
//! arrived at another node.

use bytes::Bytes;

use crate::auth::grant::Overrides;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;

/// A command for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ControlCommand {
    /// Disconnects it.
    Disconnect {
        /// The close code; it decides whether the client reconnects.
        code: u32,
        /// As text.
        reason: String,
    },
    /// Ends its subscription of a channel.
    Unsubscribe {
        /// The channel.
        channel: ChannelName,
        /// From 2500 on, the client subscribes again by itself.
        code: u32,
        /// As text.
        reason: String,
    },
    /// Subscribes it to a channel.
    Subscribe(Box<SubscribeCommand>),
    /// Changes when its connection expires.
    Refresh(Lifetime),
    /// Input of the client, received by another node.
    Input(Bytes),
}

/// How long a connection lives from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// It has expired: the client is disconnected like one whose token was not refreshed.
    Expired,
    /// Until then, in UNIX seconds.
    Until(u64),
    /// It does not expire.
    Endless,
}

/// A server-side subscription requested by the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubscribeCommand {
    pub(crate) channel: ChannelName,
    /// The client's info in presence and join events of this channel; empty: none.
    pub(crate) info: Bytes,
    /// Data for the client with the subscription; empty: none.
    pub(crate) data: Bytes,
    /// The position from which missed publications are recovered.
    pub(crate) recover_since: Option<Since>,
    /// Options that differ from the channel's namespace.
    pub(crate) overrides: Overrides,
}

/// A position in a channel's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Since {
    pub(crate) offset: u64,
    pub(crate) epoch: String,
}

/// The clients that a command is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// One client of any user.
    Client(ClientId),
    /// One client, if it is this user's.
    ClientOf {
        /// The user.
        user: String,
        /// The client.
        client: ClientId,
    },
    /// One client by its secret session id, if it is this user's.
    Session {
        /// The user; empty: any.
        user: String,
        /// The session id.
        session: ClientId,
    },
    /// All clients of a user, with exceptions.
    User {
        /// The user.
        user: String,
        /// Clients that are left out.
        except: Vec<ClientId>,
    },
}
