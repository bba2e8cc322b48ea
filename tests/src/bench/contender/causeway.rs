//! Our two programs.

use anyhow::Result;
use serde_json::json;
use tokio::process::Command;

use crate::bench::contender::{Place, Running, accepting, free_address, version_line};
use crate::bench::scenario::sessions;
use crate::harness::process::Process;
use crate::harness::settings::Settings;
use crate::harness::{edge, node, programs};

pub(super) const EDGE_SETTINGS: &str =
    "threads as given, affinity cookie, health check, X-Forwarded-*, no access log";
pub(super) const NODE_SETTINGS: &str = "memory broker, default limits but the publish rate and sessions per address, endpoints for WebSocket and SockJS";

pub(super) fn version(program: &str) -> Result<String> {
    version_line(&programs::ours(program)?, "--version")
}

pub(super) async fn start_edge(place: &Place<'_>) -> Result<Running> {
    let tls_address = free_address()?;
    let tls = json!({ "folder": place.tls()?.folder });
    let listeners = json!([
        { "address": "127.0.0.1:0" },
        { "address": tls_address.to_string(), "tls": tls },
    ]);
    let settings = edge::settings(&[("n1", place.backend()?)])
        .with("listeners", listeners)
        .with("threads", json!(place.threads))
        .with("log.access", json!("off"));
    let mut process = spawn("causeway-proxy", &settings, place)?;
    let address = process.listening("edge").await?;
    accepting(&mut process, tls_address).await?;
    Ok(Running::new(process, address).with_tls(tls_address))
}

pub(super) async fn start_node(place: &Place<'_>) -> Result<Running> {
    let rate = json!({ "per_second": 1_000_000, "burst": 1_000_000 });
    let relay = json!({
        "path": "/ws", "protocol": "websocket", "mode": "relay", "channel": "global", "publish_rate": rate,
    });
    let echo =
        json!({ "path": "/echo", "protocol": "websocket", "mode": "echo", "publish_rate": rate });
    let sockjs =
        json!({ "path": "/sockjs", "protocol": "sockjs", "mode": "echo", "publish_rate": rate });
    let polling = json!({
        "path": sessions::LASTING, "protocol": "sockjs", "mode": "echo",
        "disconnect_delay": "1h", "heartbeat": "1h",
    });
    let abandoned = json!({
        "path": sessions::BRIEF, "protocol": "sockjs", "mode": "echo", "disconnect_delay": "5s",
    });
    let settings = node::settings()
        .with("node.id", json!("bench"))
        .with("limits.sessions_per_address", json!(50_000))
        .with("threads", json!(place.threads))
        .with("page", json!(false))
        .with(
            "endpoints",
            json!([relay, echo, sockjs, polling, abandoned]),
        );
    let mut process = spawn("causeway-node", &settings, place)?;
    let address = process.listening("node").await?;
    Ok(Running::new(process, address))
}

fn spawn(program: &str, settings: &Settings, place: &Place<'_>) -> Result<Process> {
    let file = place.directory.join(format!("{program}.yaml"));
    std::fs::write(&file, settings.text())?;
    let mut command = Command::new(programs::ours(program)?);
    command.arg("--config").arg(&file);
    Process::spawn(program, command, place.directory)
}
