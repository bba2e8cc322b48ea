//! Access to Redis below any broker: a connection for subscribing, its replies, backoff, key names.
//!
//! Independent of clients and publications. The subscriber's connection is implemented here: redis-rs's `PubSub`
//! buffers without a bound, copies each message and reports a lost connection only by its end. RESP2 Pub/Sub has
//! three kinds of reply, and parsing them in place costs one allocation for each read instead of
//! several for each message. Commands use redis-rs: publications over the connections of the publish queues,
//! everything else over [`Commands`].

mod backoff;
mod commands;
mod connection;
pub(crate) mod keys;
mod login;
mod reply;
mod shard;
#[cfg(test)]
pub(crate) mod testing;
mod tls;

pub(crate) use backoff::Backoff;
pub(crate) use commands::{CommandError, Commands};
pub(crate) use connection::{ConnectError, Connection, Opening, ReadError};
pub(crate) use keys::{connection_name, probe_channel};
pub(crate) use login::connection_info;
#[cfg(any(fuzzing, test))]
pub(crate) use reply::Parser;
pub(crate) use reply::Reply;
pub(crate) use shard::shard_of;
