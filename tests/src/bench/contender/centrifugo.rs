//! Centrifugo, with its JSON protocol over WebSocket and published to by its server API.

use std::fs;

use anyhow::Result;
use async_trait::async_trait;
use serde_json::json;
use tokio::process::Command;

use crate::bench::contender::{
    Contender, Place, Running, accepting, free_address, installed, version_line,
};
use crate::bench::dialect::Dialect;
use crate::harness::process::Process;

/// The key of the server API, ours too.
pub(super) const KEY: &str = "bench-key-0123456789";

/// Centrifugo.
pub(crate) struct Centrifugo;

#[async_trait(?Send)]
impl Contender for Centrifugo {
    fn name(&self) -> &'static str {
        "centrifugo"
    }

    fn settings(&self) -> &'static str {
        "GOMAXPROCS as the threads, JSON over WebSocket, published to by its server API, anonymous clients, no history, presence or \
         compression, 512 B read and pooled write buffers, errors alone logged; several nodes: its Redis broker. Paid only (Centrifugo PRO): sharded Pub/Sub of Redis Cluster, \
         batching of a channel's messages"
    }

    fn version(&self) -> Result<String> {
        version_line(&installed::program("bin/centrifugo")?, "version")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let address = free_address()?;
        let mut settings = json!({
            "http_server": { "address": "127.0.0.1", "port": address.port().to_string() },
            "http_api": { "key": KEY },
            "client": { "allowed_origins": ["*"], "allow_anonymous_connect_without_token": true },
            "channel": {
                "namespaces": [{
                    "name": "bench",
                    "allow_subscribe_for_client": true,
                    "allow_subscribe_for_anonymous": true,
                }],
            },
            "websocket": { "read_buffer_size": 512, "use_write_buffer_pool": true },
            "log": { "level": "error" },
            "usage_stats": { "disabled": true },
        });
        if let Some(redis) = place.redis {
            settings["engine"] = json!({
                "type": "redis", "redis": { "address": format!("redis://{redis}") },
            });
        }
        if !place.redis_cluster.is_empty() {
            let addresses = place.redis_cluster.iter();
            let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
            // Addresses of one cluster have commas between them.
            settings["engine"] = json!({
                "type": "redis", "redis": { "cluster_address": [addresses.join(",")] },
            });
        }
        if let Some(tls) = place.tls {
            settings["http_server"]["tls"] = json!({
                "enabled": true, "cert_pem": tls.certificate, "key_pem": tls.key,
            });
        }
        let file = place.directory.join("centrifugo.json");
        fs::write(&file, format!("{settings:#}"))?;
        let mut command = Command::new(installed::program("bin/centrifugo")?);
        command
            .arg("--config")
            .arg(&file)
            .env("GOMAXPROCS", place.threads.to_string());
        let mut process = Process::spawn("centrifugo", command, place.directory)?;
        accepting(&mut process, address).await?;
        let dialect = Dialect::centrifugo("/connection/websocket", "/api/publish", KEY);
        let running = Running::new(process, address).speaking(dialect);
        Ok(match place.tls {
            Some(_) => running.with_tls(address),
            None => running,
        })
    }
}
