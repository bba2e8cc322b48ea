//! An application of a few lines on Socket.IO: a room for each channel, and a route to publish.

use std::{env, fs};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    bench::installed::{npm_folders, npm_version},
    continuity::rivals::servers::{Place, Store},
    harness::programs,
};

/// Which adapter it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Adapter {
    /// `@socket.io/redis-adapter`: Pub/Sub.
    PubSub,
    /// `@socket.io/redis-streams-adapter`, with connection state recovery.
    Streams,
}

pub(super) fn version(adapter: &str) -> Result<String> {
    let [socketio, adapter, ioredis] = ["socket.io", adapter, "ioredis"].map(npm_version);
    Ok(format!("{}, {}, {}", socketio?, adapter?, ioredis?))
}

/// A node, which is started with this.
pub(super) fn command(place: &Place<'_>, adapter: Adapter) -> Result<Command> {
    let redis = match place.store {
        Store::One(redis) => json!({ "host": redis.ip(), "port": redis.port() }),
        Store::Sentinels { master, servers } => {
            let servers = servers.iter();
            let servers: Vec<Value> = servers
                .map(|server| json!({ "host": server.ip(), "port": server.port() }))
                .collect();
            json!({ "sentinels": servers, "name": master })
        }
    };
    let file = place.directory.join("socketio.js");
    fs::write(&file, include_str!("socketio.js"))?;
    let mut command = Command::new(programs::installed(&["node"])?);
    let adapter = match adapter {
        Adapter::PubSub => "pubsub",
        Adapter::Streams => "streams",
    };
    command
        .arg(file)
        .env("NODE_PATH", env::join_paths(npm_folders())?)
        .env("NODE_ENV", "production")
        .env("ADAPTER", adapter)
        .env("HOST", place.address.ip().to_string())
        .env("PORT", place.address.port().to_string())
        .env("REDIS", redis.to_string());
    Ok(command)
}
