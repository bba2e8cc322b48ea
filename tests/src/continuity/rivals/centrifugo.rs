//! Centrifugo with channels that have a history, which clients recover from.

use std::fs;

use anyhow::Result;
use serde_json::json;
use tokio::process::Command;

use crate::{
    bench::installed::program,
    chaos::scene::KEY,
    continuity::rivals::servers::{Place, Store},
    harness::programs,
};

const PROGRAM: &str = "bin/centrifugo";

pub(super) fn version() -> Result<String> {
    programs::version_line(&program(PROGRAM)?, "version")
}

/// A node, which is started with this.
pub(super) fn command(place: &Place<'_>) -> Result<Command> {
    let redis = match place.store {
        Store::One(redis) => json!({ "address": format!("redis://{redis}") }),
        Store::Sentinels { master, servers } => {
            let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
            // Addresses of one shard have commas between them.
            json!({ "sentinel_address": [servers.join(",")], "sentinel_master_name": master })
        }
    };
    let settings = json!({
        "http_server": {
            "address": place.address.ip().to_string(), "port": place.address.port().to_string(),
        },
        "http_api": { "key": KEY },
        "health": { "enabled": true },
        "client": { "allowed_origins": ["*"], "allow_anonymous_connect_without_token": true },
        "channel": {
            "namespaces": [{
                "name": "past",
                "allow_subscribe_for_client": true,
                "allow_subscribe_for_anonymous": true,
                "history_size": 1_000,
                "history_ttl": "300s",
                "force_recovery": true,
            }],
        },
        "engine": { "type": "redis", "redis": redis },
        "usage_stats": { "disabled": true },
    });
    let file = place.directory.join(format!("{}.json", place.id));
    fs::write(&file, format!("{settings:#}"))?;
    let mut command = Command::new(program(PROGRAM)?);
    command.arg("--config").arg(file);
    Ok(command)
}
