//! `causeway-node` with channels that have a history.

use std::fs;

use anyhow::Result;
use serde_json::json;
use tokio::process::Command;

use crate::{
    chaos::scene::KEY,
    continuity::rivals::servers::{Place, Store},
    harness::{node, programs},
};

pub(super) fn version() -> Result<String> {
    programs::version_line(&programs::ours("causeway-node")?, "--version")
}

/// A node, which is started with this.
pub(super) fn command(place: &Place<'_>) -> Result<Command> {
    let settings = match place.store {
        Store::One(redis) => node::settings_with_redis(&format!("redis://{redis}")),
        Store::Sentinels { master, servers } => {
            let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
            let sentinel = json!({ "master": master, "servers": servers });
            let broker = json!({ "kind": "redis", "sentinel": sentinel });
            node::settings().with("broker", broker)
        }
    };
    let namespace = json!({
        "name": "past", "subscribe": "anyone", "recovery": true,
        "history": { "size": 1_000, "lifetime": "5m" },
    });
    let endpoint = json!({ "path": "/connection", "mode": "channels" });
    let settings = settings
        .with("node.id", json!(place.id))
        .with("listen", json!(place.address))
        .with("trusted_proxies", json!(["127.0.0.0/8"]))
        .with("auth.anonymous", json!(true))
        .with("endpoints", json!([endpoint]))
        .with("channels.namespaces", json!([namespace]))
        .with("api.keys", json!([KEY]));
    let file = place.directory.join(format!("{}.yaml", place.id));
    fs::write(&file, settings.text())?;
    let mut command = Command::new(programs::ours("causeway-node")?);
    command.arg("--config").arg(file);
    Ok(command)
}
