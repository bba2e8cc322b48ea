//! Handoff: a client moves from this node to another one while its edge keeps the client's connection open.
//!
//! A drain of this node is what mostly starts it. The edge opens a connection to the other node (B), which replies with a
//! [`Token`](crate::protocol::handoff::Token); it stops to read from the client at a message boundary, and gives the
//! token to this node (A) as its last frame. Then:
//!
//! 1. A has handled all that the client has sent. It sends a [snapshot](Snapshot) of the client to B over the control
//!    channel, and B prepares the client ([`Arrivals`]).
//! 2. A publishes a *mark* ([`marks`]) behind all that the client has published, on the server that carries its channel.
//!    Every node receives the publications of a server in one order, so the mark cuts the channel at the same place on
//!    both nodes: A delivers exactly what comes before it, B exactly what comes after it.
//! 3. A tells the edge that it is done and forgets the client. The edge continues over the connection to B.
//!
//! Nothing is delivered twice or lost, and B's output waits in its connection until the edge reads it.
//!
//! If anything fails before the mark is published, the client stays at A ([`HandoffError::Kept`](crate::client::relay::HandoffError::Kept)). After that A no longer
//! knows whether B has the client, and closes the connection with 1012 ([`HandoffError::Lost`](crate::client::relay::HandoffError::Lost)), so that the client
//! connects again. Two nodes never write to one client: the edge reads from B only after A is done.
//!
//! A channel client has any number of channels, on any number of servers, each with a mark of its own. A node may be ahead
//! or behind with the history of a channel, so after the marks A tells B how far it has delivered each of them:
//!
//! 1. A holds control commands, pings and expiry of the client back, and sends the snapshot. B subscribes the channels
//!    and holds back what is published without an offset.
//! 2. A publishes the marks. At each, A ends the deliveries and notes the positions, and B begins to hold back.
//! 3. A tells B the positions. B recovers what comes after them out of its cache or the history, adds what it has held
//!    back, takes over the client's presence and its entry in the directory, and responds.
//! 4. A gives up the presence without a leave. For some time it passes control commands on to B ([`forward`]), which may
//!    be on their way to A.
//!
//! Until the first mark is published the client stays at A if anything fails.
//!
//! A SockJS session over HTTP has no connection to keep, only requests. The edge holds its requests back and asks this node to
//! hand it off ([`SESSION`](crate::protocol::handoff::SESSION)):
//!
//! 1. A waits until the messages of its client are published and its receiver has ended, and sends the snapshot.
//! 2. At the mark A ends the deliveries and B begins to queue. A then sends B the messages that no receiver has taken.
//! 3. A responds to the edge, which sends all further requests of the session to B. A request that was under way to A is told to ask
//!    again if it is a receiver's; messages in it are published by A before it responds.
//!
//! Channel clients over HTTP are not handed off: a drain disconnects them, and they recover.

mod arrivals;
mod departure;
mod forward;
mod marks;
#[cfg(debug_assertions)]
mod sabotage;
mod session;
mod snapshot;

pub(crate) use arrivals::Arrivals;
pub(crate) use arrivals::Arrived;
pub(crate) use arrivals::ArrivedClient;
pub(crate) use arrivals::Components as ArrivalComponents;
pub(crate) use departure::Departures;
pub(crate) use marks::Marks;
pub(crate) use snapshot::Kind;
pub(crate) use snapshot::SessionState;
pub(crate) use snapshot::Snapshot;
