//! The client behind a connection, whatever its transport: what it may send, what it receives, and when it is disconnected.
//!
//! [`relay`] is a client of a relay or echo endpoint; [`channels`] a channel client with its commands, subscriptions and tokens;
//! [`session`] a SockJS session, which keeps one client over many HTTP requests; [`rate`] limits how fast a client may send.
//!
//! Owns no socket and no transport: a transport passes on what it receives, and sends what is queued in the client's outbox.

pub(crate) mod channels;
pub(crate) mod rate;
pub(crate) mod relay;
pub(crate) mod session;
