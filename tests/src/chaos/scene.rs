//! Three nodes, each with wires of its own to the Redis servers, and what else they need.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    chaos::{servers::Servers, topology::Topology},
    harness::{
        application::Application,
        loopback,
        node::{self, Node},
        scratch::Scratch,
        settings::Settings,
    },
};

/// How many nodes there are.
pub const NODES: usize = 3;

/// How long a node waits for the application.
const HOOK_TIMEOUT: Duration = Duration::from_millis(700);

/// The key of the API.
pub const KEY: &str = "the key of the publishers";

/// Publications that a channel of the namespaces `deep` and `rare` keeps: more than anybody misses.
pub const DEEP: usize = 100_000;

/// Those of `shallow`: who is away for a while cannot recover.
pub const SHALLOW: usize = 60;

/// All processes. The fields are dropped in this order.
#[derive(Debug)]
pub struct Scene {
    /// By number.
    pub nodes: Vec<Node>,
    /// Where they write.
    pub servers: Servers,
    /// Whether hooks get their response too late.
    pub slow_hook: Arc<AtomicBool>,
    /// The hook that nodes call when clients connect.
    _application: Application,
    scratch: Scratch,
}

impl Scene {
    /// Starts everything and waits until it is ready. Each node does wrong what `sabotage` says of it, by turns.
    ///
    /// # Errors
    ///
    /// Something does not start.
    pub async fn start(name: &str, topology: Topology, sabotage: &[String]) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let servers = Servers::start(topology, NODES, scratch.path()).await?;
        let slow_hook = Arc::new(AtomicBool::new(false));
        let is_slow = Arc::clone(&slow_hook);
        let application = Application::start(move |_| {
            let pause = if is_slow.load(Ordering::Relaxed) {
                2 * HOOK_TIMEOUT
            } else {
                Duration::ZERO
            };
            async move {
                sleep(pause).await;
                json!({ "result": { "user": "" } })
            }
        })
        .await?;
        let mut nodes = Vec::new();
        for number in 0..NODES {
            let settings = settings_with(servers.broker(number))
                .with("hooks.connect", application.hook("connect"))
                .with(
                    "hooks.timeout",
                    json!(format!("{}ms", HOOK_TIMEOUT.as_millis())),
                );
            let deed = sabotage.iter().cycle().nth(number);
            let variables = deed.map(|deed| ("CAUSEWAY_SABOTAGE", deed.as_str()));
            let variables: Vec<_> = variables.into_iter().collect();
            let id = format!("n{}", number + 1);
            nodes.push(Node::start_with(&id, settings, scratch.path(), &variables).await?);
        }
        for node in &nodes {
            node.ready().await?;
        }
        Ok(Self {
            nodes,
            servers,
            slow_hook,
            _application: application,
            scratch,
        })
    }

    /// Ends all processes; their files go with the value.
    #[must_use]
    pub fn end(self) -> Scratch {
        let Self { scratch, .. } = self;
        scratch
    }

    /// What the nodes logged as errors, or panicked with.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let mut errors = Vec::new();
        for node in &self.nodes {
            let log = node.process.log();
            let lines = log
                .lines()
                .filter(|line| line.contains("\"level\":\"ERROR\"") || line.contains("panicked"));
            errors.extend(lines.map(|line| format!("{}: {line}", node.id)));
        }
        errors
    }
}

/// Channels that anyone may hear, outboxes that are soon full, and pings by which a silent node shows.
#[must_use]
pub fn settings(redis: &str) -> Settings {
    settings_with(json!({ "kind": "redis", "url": redis }))
}

/// The same with this `broker`.
fn settings_with(broker: Value) -> Settings {
    let namespace = |name: &str, size: usize| -> Value {
        json!({
            "name": name, "subscribe": "anyone", "recovery": true,
            "history": { "size": size, "lifetime": "1h" },
        })
    };
    let endpoint = json!({
        "path": "/connection", "mode": "channels", "outbox": "48KiB",
        "ping": { "interval": "2s", "timeout": "2s" },
    });
    node::settings()
        .with("broker", broker)
        .with("listen", json!(loopback::own_any_port()))
        .with("auth.anonymous", json!(true))
        .with("endpoints", json!([endpoint]))
        .with(
            "channels.namespaces",
            json!([
                namespace("deep", DEEP),
                namespace("rare", DEEP),
                namespace("shallow", SHALLOW),
            ]),
        )
        .with("tcp.send_buffer", json!("4KiB"))
        .with("api.keys", json!([KEY]))
}

/// How long a client waits for anything from its node before it takes it for dead: pings come every 2 s.
pub const SILENCE: Duration = Duration::from_secs(4);
