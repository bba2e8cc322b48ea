//! Our two programs, and both together.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use serde_json::json;
use tokio::process::Command;

use crate::bench::contender::{
    Contender, Place, Running, accepting, centrifugo, free_address, version_line,
};
use crate::bench::dialect::Dialect;
use crate::bench::scenario::sessions;
use crate::harness::process::Process;
use crate::harness::settings::Settings;
use crate::harness::{edge, node, programs};

/// Names another build of the edge, to be measured beside this one.
const OTHER_BUILD: &str = "CAUSEWAY_OTHER_PROXY";

const EDGE_SETTINGS: &str =
    "threads as given, affinity cookie, health check, X-Forwarded-*, no access log";

/// The edge.
pub(crate) struct Edge;
/// Another build of the edge with the same settings: an earlier commit, or other compiler options.
pub(crate) struct OtherEdge;
/// A node, with clients that publish on an endpoint in relay mode.
pub(crate) struct Node;
/// A node, with clients of its channel endpoint, published to by its server API.
pub(crate) struct Channels;
/// A node behind an edge, which serves TLS for it.
pub(crate) struct Both;

#[async_trait(?Send)]
impl Contender for Edge {
    fn name(&self) -> &'static str {
        "causeway-proxy"
    }

    fn settings(&self) -> &'static str {
        EDGE_SETTINGS
    }

    fn version(&self) -> Result<String> {
        version_line(&programs::ours("causeway-proxy")?, "--version")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        start_edge(&programs::ours("causeway-proxy")?, place).await
    }
}

#[async_trait(?Send)]
impl Contender for OtherEdge {
    fn name(&self) -> &'static str {
        "other-proxy"
    }

    fn settings(&self) -> &'static str {
        EDGE_SETTINGS
    }

    fn version(&self) -> Result<String> {
        version_line(&other_build()?, "--version")
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        start_edge(&other_build()?, place).await
    }
}

#[async_trait(?Send)]
impl Contender for Node {
    fn name(&self) -> &'static str {
        "causeway-node"
    }

    fn settings(&self) -> &'static str {
        "a relay endpoint, default limits but the publish rate and sessions per address; several nodes: the redis broker"
    }

    fn version(&self) -> Result<String> {
        node_version()
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        start_node(place)
            .await
            .map(|running| running.speaking(Dialect::websocket("/ws")))
    }
}

#[async_trait(?Send)]
impl Contender for Channels {
    fn name(&self) -> &'static str {
        "causeway-channels"
    }

    fn settings(&self) -> &'static str {
        "the same node, but its channel endpoint: Centrifugo's protocol in JSON over WebSocket, published to by the server API, anonymous \
         clients, no history or presence"
    }

    fn version(&self) -> Result<String> {
        node_version()
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        Ok(start_node(place).await?.speaking(channels()))
    }
}

#[async_trait(?Send)]
impl Contender for Both {
    fn name(&self) -> &'static str {
        "causeway"
    }

    fn settings(&self) -> &'static str {
        "a node with a relay endpoint behind an edge, which serves TLS for it; the CPU of both"
    }

    fn version(&self) -> Result<String> {
        node_version()
    }

    async fn start(&self, place: &Place<'_>) -> Result<Running> {
        let node = start_node(place).await?;
        let place = Place {
            backend: Some(node.address),
            ..*place
        };
        let edge = Edge.start(&place).await?;
        Ok(edge.speaking(Dialect::websocket("/ws")).before(node))
    }
}

fn other_build() -> Result<PathBuf> {
    let program = env::var_os(OTHER_BUILD);
    let program = program.with_context(|| format!("{OTHER_BUILD} names no build of the edge"))?;
    Ok(program.into())
}

async fn start_edge(program: &Path, place: &Place<'_>) -> Result<Running> {
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
    let mut process = spawn(program, "causeway-proxy", &settings, place)?;
    let address = process.listening("edge").await?;
    accepting(&mut process, tls_address).await?;
    Ok(Running::new(process, address)
        .with_tls(tls_address)
        .speaking(Dialect::websocket("/")))
}

/// How clients of a node's channel endpoint speak.
pub(crate) fn channels() -> Dialect {
    Dialect::centrifugo("/connection/websocket", "/api/publish", centrifugo::KEY)
}

fn node_version() -> Result<String> {
    version_line(&programs::ours("causeway-node")?, "--version")
}

async fn start_node(place: &Place<'_>) -> Result<Running> {
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
    let channels = json!({ "path": "/connection", "mode": "channels" });
    let cluster: Vec<String> = { place.redis_cluster.iter() }
        .map(ToString::to_string)
        .collect();
    let settings = match place.redis {
        Some(redis) => node::settings_with_redis(&format!("redis://{redis}")),
        None if !cluster.is_empty() => {
            let broker = json!({ "kind": "redis", "cluster": { "servers": cluster } });
            node::settings().with("broker", broker)
        }
        None => node::settings().with("node.id", json!("bench")),
    };
    let settings = settings
        .with("limits.sessions_per_address", json!(50_000))
        .with("threads", json!(place.threads))
        .with("page", json!(false))
        .with("auth.anonymous", json!(true))
        .with("api.keys", json!([centrifugo::KEY]))
        .with(
            "channels.namespaces",
            json!([{ "name": "bench", "subscribe": "anyone" }]),
        )
        .with(
            "endpoints",
            json!([relay, echo, sockjs, polling, abandoned, channels]),
        );
    let program = programs::ours("causeway-node")?;
    let mut process = spawn(&program, "causeway-node", &settings, place)?;
    let address = process.listening("node").await?;
    let admin = process.listening("admin").await?;
    Ok(Running::new(process, address).with_admin(admin))
}

fn spawn(program: &Path, name: &str, settings: &Settings, place: &Place<'_>) -> Result<Process> {
    let file = place.directory.join(format!("{name}.yaml"));
    std::fs::write(&file, settings.text())?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&file);
    Process::spawn(name, command, place.directory)
}
