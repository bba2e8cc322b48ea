//! Three nodes, each with a wire of its own to Redis; and a replica, with a wire to its primary.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    chaos::wire::{Condition, Wire},
    harness::{
        application::Application,
        loopback,
        node::{self, Node},
        redis::{Keeps, Redis},
        scratch::Scratch,
        settings::Settings,
        wait,
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
    /// The way of each node to Redis.
    pub wires: Vec<Wire>,
    /// Where nodes write.
    pub primary: Redis,
    /// What follows it.
    pub replica: Redis,
    /// The replica's way to its primary.
    pub replication: Wire,
    /// Whether hooks get their response too late.
    pub slow_hook: Arc<AtomicBool>,
    /// The hook that nodes call when clients connect.
    _application: Application,
    /// How many servers have been started.
    servers: usize,
    scratch: Scratch,
}

impl Scene {
    /// Starts everything and waits until it is ready. Nodes do wrong what `sabotage` says.
    ///
    /// # Errors
    ///
    /// Something does not start.
    pub async fn start(name: &str, sabotage: Option<&str>) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let mut servers = 0;
        let primary = server(&scratch, &mut servers).await?;
        let replica = server(&scratch, &mut servers).await?;
        let replication = Wire::start(primary.address()).await?;
        follow(&replica, &replication).await?;
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
        let (mut nodes, mut wires) = (Vec::new(), Vec::new());
        for number in 1..=NODES {
            let wire = Wire::start(primary.address()).await?;
            let settings = settings(&wire.url())
                .with("hooks.connect", application.hook("connect"))
                .with(
                    "hooks.timeout",
                    json!(format!("{}ms", HOOK_TIMEOUT.as_millis())),
                );
            let variables = sabotage.map(|deed| ("CAUSEWAY_SABOTAGE", deed));
            let variables: Vec<_> = variables.into_iter().collect();
            let id = format!("n{number}");
            nodes.push(Node::start_with(&id, settings, scratch.path(), &variables).await?);
            wires.push(wire);
        }
        for node in &nodes {
            node.ready().await?;
        }
        Ok(Self {
            nodes,
            wires,
            primary,
            replica,
            replication,
            slow_hook,
            _application: application,
            servers,
            scratch,
        })
    }

    /// Has the replica fall behind from now on.
    pub fn hold_replication(&self) {
        self.replication.set(Condition::Held);
    }

    /// Ends the primary at once, and all that was under way from and to it.
    ///
    /// # Errors
    ///
    /// The system cannot tell.
    pub async fn lose_primary(&mut self) -> Result<()> {
        self.replication.set(Condition::Cut);
        self.primary.kill().await?;
        for wire in &self.wires {
            wire.set(Condition::Cut);
        }
        Ok(())
    }

    /// Makes the replica the primary, and lets the nodes reach it.
    ///
    /// # Errors
    ///
    /// It does not obey.
    pub async fn promote_replica(&mut self) -> Result<()> {
        self.replica.cli(&["REPLICAOF", "NO", "ONE"]).await?;
        std::mem::swap(&mut self.primary, &mut self.replica);
        for wire in &self.wires {
            wire.lead_to(self.primary.address());
            wire.set(Condition::Whole);
        }
        Ok(())
    }

    /// Makes the replica the primary, and has the old one follow it, without hearing it for as long as `link_down`: connections
    /// that lead to that one stay.
    ///
    /// # Errors
    ///
    /// One of them does not obey.
    pub async fn demote_primary(&mut self, link_down: Duration) -> Result<()> {
        self.replica.cli(&["REPLICAOF", "NO", "ONE"]).await?;
        std::mem::swap(&mut self.primary, &mut self.replica);
        for wire in &self.wires {
            wire.lead_to(self.primary.address());
        }
        self.replication = Wire::start(self.primary.address()).await?;
        let (host, port) = (
            self.replication.address.ip(),
            self.replication.address.port(),
        );
        let arguments = ["REPLICAOF", &host.to_string(), &port.to_string()];
        // For a moment it takes no writes any more, and brings nothing of what its new primary takes.
        self.replication.set(Condition::Held);
        self.replica.cli(&arguments).await?;
        sleep(link_down).await;
        self.replication.set(Condition::Whole);
        Ok(())
    }

    /// Starts another replica, and waits until it has everything.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn replace_replica(&mut self) -> Result<()> {
        self.replica = server(&self.scratch, &mut self.servers).await?;
        self.replication = Wire::start(self.primary.address()).await?;
        follow(&self.replica, &self.replication).await
    }

    /// Waits until the replica follows the primary again, after the primary was away.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn replicating(&self) -> Result<()> {
        linked(&self.replica).await
    }

    /// Sets `maxmemory` of the primary, in bytes; 0: none.
    ///
    /// # Errors
    ///
    /// It does not obey.
    pub async fn limit_memory(&self, bytes: usize) -> Result<()> {
        let set = ["CONFIG", "SET", "maxmemory", &bytes.to_string()];
        self.primary.cli(&set).await.map(drop)
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

async fn server(scratch: &Scratch, servers: &mut usize) -> Result<Redis> {
    *servers += 1;
    let directory = scratch.path().join(format!("redis-{servers}"));
    std::fs::create_dir_all(&directory)?;
    Redis::start_that(Keeps::Everything, loopback::own(), &directory).await
}

async fn follow(replica: &Redis, replication: &Wire) -> Result<()> {
    let (host, port) = (replication.address.ip(), replication.address.port());
    replica
        .cli(&["REPLICAOF", &host.to_string(), &port.to_string()])
        .await?;
    linked(replica).await
}

async fn linked(replica: &Redis) -> Result<()> {
    wait::until("the replica to follow", wait::SOON, async || {
        let info = replica.cli(&["INFO", "replication"]).await.ok()?;
        info.contains("master_link_status:up").then_some(())
    })
    .await
    .context("the replica does not follow")
}

/// Channels that anyone may hear, outboxes that are soon full, and pings by which a silent node shows.
#[must_use]
pub fn settings(redis: &str) -> Settings {
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
    node::settings_with_redis(redis)
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
