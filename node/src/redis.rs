//! Access to Redis below any broker: one way to connect, to send commands, to run scripts, to subscribe; key names.
//!
//! ```text
//! sentinel: which server is the primary; cluster: which primary has which slot
//!    │
//! Connector (tcp, tls, unix; login, name) ─┬─▶ Connection: the subscriber's, Pub/Sub replies parsed in place
//!                                          └─▶ Link: pipelined commands and scripts ─┬─▶ Commands: shared, replaced when it fails
//!                                                                                     └─▶ LinkPool: a publish queue keeps one
//! ```
//! Independent of clients and publications. Nothing else connects to Redis. The subscriber's connection is implemented here:
//! redis-rs's `PubSub` buffers without a bound, copies each message and reports a lost connection only by its end. RESP2 Pub/Sub
//! has three kinds of reply, and parsing them in place costs one allocation for each read instead of several for each message.
//! Commands use redis-rs over a stream that is logged in.
//!
//! Invariants: when a connection for commands replaces another one to the same server, Redis executes nothing more that was sent
//! over the old one ([`Fence`]); a connection is used only while its server is the primary, as far as that is known ([`tenure::Tenure`]).

mod backoff;
mod cluster;
mod commands;
mod connect;
mod connection;
mod fence;
pub(crate) mod keys;
mod link;
mod login_reply;
mod pool;
mod primary;
mod reply;
mod routed;
mod script;
mod sentinel;
mod server;
mod shard;
mod slot;
mod tenure;
#[cfg(test)]
pub(crate) mod testing;
mod tls;

pub(crate) use backoff::Backoff;
pub(crate) use cluster::Cluster;
pub(crate) use cluster::redirect::Redirect;
pub(crate) use cluster::topology::Topology;
pub(crate) use commands::CommandError;
pub(crate) use connect::{ConnectError, Connector, ReadError};
pub(crate) use connection::Connection;
pub(crate) use fence::Fence;
pub(crate) use keys::{Keys, PubSub, probe_channel};
pub(crate) use link::{Batch, Link};
pub(crate) use pool::{LinkPool, PooledLink};
#[cfg(any(fuzzing, test))]
pub(crate) use reply::Parser;
pub(crate) use reply::Reply;
pub(crate) use routed::Commands;
pub(crate) use script::Script;
pub(crate) use server::{Access, Server, start};
pub(crate) use shard::shard_of;
pub(crate) use slot::{SLOTS, Slot};

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
