//! Redis, three nodes with a wire to it each, the edge before them, and a node of the application.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    handoff_faults::tap::Tap,
    harness::{
        edge::{self, Edge},
        http, loopback,
        node::{self, Node},
        process::{Process, Signal},
        redis::Redis,
        scratch::Scratch,
        server_api,
        settings::Settings,
        wait,
    },
};

/// Of the server API.
pub const KEY: &str = "the key of the application";

/// The relay channel.
pub const RELAY: &str = "relay";

/// A relay channel for large messages, and one whose clients may not be slow.
pub const LARGE: &str = "large";
/// See [`LARGE`].
pub const NARROW: &str = "narrow";

/// Of the edge's admin listener.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// How many nodes the edge has.
pub const NODES: usize = 3;

/// All processes. The fields are dropped in this order.
#[derive(Debug)]
pub struct Scene {
    /// What clients connect to.
    pub edge: Edge,
    /// Those behind the edge.
    pub nodes: Vec<Node>,
    /// The application's own.
    pub own: Node,
    /// The wire of each node.
    pub taps: Vec<Tap>,
    /// What the nodes share.
    pub redis: Redis,
    address: SocketAddr,
    /// Errors of processes that have ended.
    errors: Vec<String>,
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
        let redis = Redis::start(loopback::own(), scratch.path()).await?;
        let variables = sabotage.map(|deed| ("CAUSEWAY_SABOTAGE", deed));
        let variables: Vec<_> = variables.into_iter().collect();
        let mut taps = Vec::new();
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            let tap = Tap::start(redis.address()).await?;
            let settings = node_settings(&tap.url());
            let id = format!("n{number}");
            nodes.push(Node::start_with(&id, settings, scratch.path(), &variables).await?);
            taps.push(tap);
        }
        let own = node_settings(&redis.url());
        let own = Node::start("own", own, scratch.path()).await?;
        for node in nodes.iter().chain([&own]) {
            node.ready().await?;
        }
        let address = TcpListener::bind(loopback::own_any_port())?.local_addr()?;
        let edge = Edge::start(&edge_settings(address, &nodes), scratch.path()).await?;
        let scene = Self {
            edge,
            nodes,
            own,
            taps,
            redis,
            address,
            errors: Vec::new(),
            scratch,
        };
        scene.all_up().await?;
        Ok(scene)
    }

    /// Waits until the edge sends clients to all nodes.
    ///
    /// # Errors
    ///
    /// It does not soon.
    pub async fn all_up(&self) -> Result<()> {
        for node in &self.nodes {
            self.edge.backend_in_state(&node.id, "up").await?;
        }
        Ok(())
    }

    /// Has the edge do something with a node: `drain` or `ready`.
    ///
    /// # Errors
    ///
    /// It refuses.
    pub async fn act(&self, node: usize, action: &str) -> Result<()> {
        let path = format!("/backends/{}/{action}", self.nodes[node].id);
        let bearer = format!("Bearer {TOKEN}");
        let headers = [
            ("Authorization", &*bearer),
            ("Content-Type", "application/json"),
        ];
        let body = match action {
            "drain" => r#"{"spread":"0s","force":true}"#,
            _ => "{}",
        };
        let done = http::request(self.edge.admin, "POST", &path, &headers, body.as_bytes()).await?;
        ensure!(done.status == 200, "{action}: {}", done.text());
        Ok(())
    }

    /// Ends a node at once.
    ///
    /// # Errors
    ///
    /// The system cannot tell whether it ended.
    pub async fn kill_node(&mut self, node: usize) -> Result<()> {
        self.note_errors(node);
        self.nodes[node].kill().await
    }

    /// Keeps what a node has logged.
    pub fn note_errors(&mut self, node: usize) {
        let node = &self.nodes[node];
        self.errors.extend(errors(&node.id, &node.process));
    }

    /// Starts those nodes again that do not run.
    ///
    /// # Errors
    ///
    /// One does not start.
    pub async fn restart_nodes(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if !node.process.is_running() {
                node.restart().await?;
                node.ready().await?;
            }
        }
        Ok(())
    }

    /// Ends the edge at once and starts another one.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn replace_edge(&mut self) -> Result<()> {
        self.errors.extend(errors("edge", &self.edge.process));
        self.edge.process.kill().await?;
        let settings = edge_settings(self.address, &self.nodes);
        self.edge = Edge::start(&settings, self.scratch.path()).await?;
        Ok(())
    }

    /// What the processes have logged as errors since the last call, and which of them have ended.
    pub fn take_errors(&mut self) -> Vec<String> {
        let mut all = std::mem::take(&mut self.errors);
        let nodes = self.nodes.iter_mut().chain([&mut self.own]);
        for node in nodes {
            all.extend(errors(&node.id, &node.process));
            if !node.process.is_running() {
                all.push(format!(
                    "{} has ended: {}",
                    node.id,
                    node.process.log_path().display()
                ));
            }
        }
        all.extend(errors("edge", &self.edge.process));
        all
    }

    /// How many clients the nodes count, all together, of each transport; and sessions.
    ///
    /// # Errors
    ///
    /// One does not respond.
    pub async fn clients(&self) -> Result<u64> {
        let mut clients = 0;
        for node in &self.nodes {
            let page = http::get(node.admin, "/metrics").await?.text();
            clients += sum(&page, "causeway_node_clients{");
        }
        Ok(clients)
    }

    /// The sum of a metric over the nodes.
    ///
    /// # Errors
    ///
    /// One does not respond.
    pub async fn of_nodes(&self, name: &str) -> Result<u64> {
        let mut total = 0;
        for node in &self.nodes {
            let page = http::get(node.admin, "/metrics").await?.text();
            total += sum(&page, name);
        }
        Ok(total)
    }

    /// Metrics of one node, each over its labels.
    ///
    /// # Errors
    ///
    /// It does not respond.
    pub async fn of_node<const N: usize>(node: &Node, names: [&str; N]) -> Result<[u64; N]> {
        let page = http::get(node.admin, "/metrics").await?.text();
        Ok(names.map(|name| sum(&page, name)))
    }

    /// The sum of a metric of the edge.
    ///
    /// # Errors
    ///
    /// It does not respond.
    pub async fn of_edge(&self, name: &str) -> Result<u64> {
        let page = http::get(self.edge.admin, "/metrics").await?.text();
        Ok(sum(&page, name))
    }

    /// How many tunnels the edge has.
    ///
    /// # Errors
    ///
    /// It does not say.
    pub async fn tunnels(&self) -> Result<u64> {
        let backends = self.edge.backends().await?;
        let backends = backends.as_array().context("a list of backends")?;
        let tunnels = backends.iter().map(|backend| backend["tunnels"].as_u64());
        let tunnels: Option<Vec<u64>> = tunnels.collect();
        Ok(tunnels.context("tunnels")?.iter().sum())
    }

    /// The ids of the channel clients that presence lists.
    ///
    /// # Errors
    ///
    /// The application's node refuses.
    pub async fn present(&self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for channel in ["past:1", "room:1"] {
            let request = json!({ "channel": channel });
            let listed = server_api::call(self.own.address, KEY, "presence", &request).await?;
            let listed = listed["presence"].as_object().context("a list")?;
            all.extend(listed.keys().cloned());
        }
        Ok(all)
    }

    /// The keys in Redis of clients that are there, by kind. Streams and leases are there all the time.
    ///
    /// # Errors
    ///
    /// Redis does not say.
    pub async fn keys(&self) -> Result<Vec<String>> {
        let keys = self.redis.cli(&["KEYS", "causeway:*"]).await?;
        let stay = ["causeway:st:", "causeway:me:", "causeway:{no}:"];
        let keys = keys.lines().map(str::to_owned);
        Ok(keys
            .filter(|key| !stay.iter().any(|stay| key.starts_with(stay)))
            .collect())
    }

    /// Open files of the nodes and the edge, in this order.
    #[must_use]
    pub fn files(&self) -> Vec<usize> {
        let nodes = self.nodes.iter().map(|node| node.process.pid());
        let all = nodes.chain([self.edge.process.pid()]);
        all.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count))
            .collect()
    }

    /// Sends a signal to a node.
    pub fn signal(&mut self, node: usize, signal: Signal) {
        self.nodes[node].process.signal(signal);
    }

    /// Waits until a node that drains has ended.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn exit(&mut self, node: usize) -> Result<()> {
        self.nodes[node].process.exit(wait::SOON).await?;
        self.note_errors(node);
        Ok(())
    }

    /// Ends all processes; their files go with the value.
    #[must_use]
    pub fn end(self) -> Scratch {
        self.scratch
    }
}

/// The sum of the values of a metric, whose name or the beginning of it is given.
fn sum(page: &str, name: &str) -> u64 {
    let lines = page.lines().filter(|line| line.starts_with(name));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

/// Lines of a log that no run may have.
fn errors(name: &str, process: &Process) -> Vec<String> {
    let log = process.log();
    let lines = log.lines().filter(|line| {
        let is_error = line.contains("\"level\":\"ERROR\"") || line.contains("panicked");
        is_error && !line.contains("CAUSEWAY_SABOTAGE")
    });
    lines.map(|line| format!("{name}: {line}")).collect()
}

fn edge_settings(address: SocketAddr, nodes: &[Node]) -> Settings {
    let backends: Vec<_> = { nodes.iter() }
        .map(|node| (node.id.as_str(), node.address))
        .collect();
    edge::settings(&backends)
        .with("listeners", json!([{ "address": address.to_string() }]))
        .with("admin.token", json!(TOKEN))
        .with("log.access", json!("off"))
        .with("affinity.sockjs_path", json!(true))
        .with(
            "health",
            json!({
                "interval": "300ms", "fast_interval": "100ms", "down_interval": "100ms", "rise": 1,
                "slow_start": "0s",
            }),
        )
}

fn node_settings(redis: &str) -> Settings {
    let relay = |path: &str, protocol: &str, channel: &str| -> Value {
        json!({ "path": path, "protocol": protocol, "mode": "relay", "channel": channel })
    };
    let mut large = relay("/large", "websocket", LARGE);
    large["message_size"] = json!("12MiB");
    large["outbox"] = json!("48MiB");
    let mut narrow = relay("/narrow", "websocket", NARROW);
    narrow["outbox"] = json!("64KiB");
    let mut sockjs = relay("/sockjs", "sockjs", RELAY);
    sockjs["disconnect_delay"] = json!("4s");
    let endpoints = json!([
        relay("/ws", "websocket", RELAY),
        sockjs,
        large,
        narrow,
        { "path": "/connection", "mode": "channels" },
    ]);
    let namespace = |name: &str| {
        json!({
            "name": name, "subscribe": "anyone", "publish": "anyone", "presence": true, "join_leave": true,
        })
    };
    let mut past = namespace("past");
    past["recovery"] = json!(true);
    past["history"] = json!({ "size": 2_000, "lifetime": "1h" });
    node::settings_with_redis(redis)
        .with("listen", json!(loopback::own_any_port()))
        .with("trusted_proxies", json!(["127.0.0.0/8"]))
        .with("auth.anonymous", json!(true))
        .with("endpoints", json!(endpoints))
        .with(
            "channels.namespaces",
            json!([
                past,
                namespace("room"),
                { "name": "wide", "subscribe": "anyone" },
            ]),
        )
        .with("channels.limits.channels_per_client", json!(2_000))
        .with("broker.publish_queue_size", json!("32MiB"))
        .with("broker.message_size", json!("16MiB"))
        .with("tcp.send_buffer", json!("16KiB"))
        .with("registry", json!({ "renew": "500ms", "lease": "3s" }))
        .with(
            "drain",
            json!({ "lead_max": "1s", "spread": "100ms", "timeout": "6s" }),
        )
        .with("api.keys", json!([KEY]))
}

/// A wait that names its condition, for conditions that need a deadline of their own.
pub const SETTLE: Duration = Duration::from_secs(25);
