//! The processes of one run: started in order, watched, ended in order.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures_util::{FutureExt as _, future::select_all};
use serde_json::json;

use crate::{
    harness::{
        edge::{self, Edge},
        http,
        node::{self, Node},
        process::{Process, Signal},
        redis::Redis,
        scratch::Scratch,
        settings::Settings,
        wait,
    },
    runner::{
        Stop,
        options::{Options, RedisChoice},
    },
};

/// How long each process may take to end before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// How long the nodes may take to find their Redis.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// Everything that runs.
///
/// The fields are dropped in this order, so that even an early end goes from the clients' side to Redis.
pub(super) struct Stack {
    edge: Edge,
    nodes: Vec<Node>,
    redis: Option<Redis>,
    /// Names of processes that have ended and have been told of.
    told: Vec<String>,
    scratch: Scratch,
}

/// A process that ended by itself.
pub(super) struct End {
    /// What to tell.
    pub(super) text: String,
    /// Whether it was the edge.
    pub(super) of_edge: bool,
}

impl Stack {
    /// Starts all of it and waits until a client can be served.
    ///
    /// # Errors
    ///
    /// Something is missing or in the way; what had been started is ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future ends what it had started.
    pub(super) async fn start(options: &Options) -> Result<Self> {
        require_free(options.port)?;
        let scratch = Scratch::new("run")?;
        let (redis, node_settings) = match options.redis {
            RedisChoice::Private => {
                let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
                let settings = node::settings_with_redis(&redis.url());
                (Some(redis), settings)
            }
            RedisChoice::Given => {
                let broker = json!({ "kind": "redis", "url": { "env": "REDIS_URL" } });
                (None, node::settings().with("broker", broker))
            }
        };
        let mut nodes = Vec::new();
        for number in 1..=options.nodes {
            let settings = node_settings
                .clone()
                .with("trusted_proxies", json!(["127.0.0.1"]));
            nodes.push(Node::start(&format!("n{number}"), settings, scratch.path()).await?);
        }
        for node in &nodes {
            require_ready(node).await?;
        }
        let edge = Edge::start(&edge_settings(options.port, &nodes), scratch.path()).await?;
        for node in &nodes {
            edge.backend_in_state(&node.id, "up").await?;
        }
        Ok(Self {
            edge,
            nodes,
            redis,
            told: Vec::new(),
            scratch,
        })
    }

    /// What to tell when all of it runs.
    pub(super) fn greeting(&self) -> String {
        let Self {
            edge,
            nodes,
            redis,
            scratch,
            ..
        } = self;
        let nodes: Vec<String> = nodes
            .iter()
            .map(|node| {
                let (id, address, pid) = (&node.id, node.address, node.process.pid());
                format!(
                    "{id} http://{address} (pid {pid}), http://{}/metrics",
                    node.admin
                )
            })
            .collect();
        let redis = match redis {
            Some(redis) => format!(
                "127.0.0.1:{}    try: redis-cli -p {0} PUBLISH global hello",
                redis.address().port()
            ),
            None => "the one of REDIS_URL    try: redis-cli PUBLISH global hello".to_owned(),
        };
        format!(
            "\nCauseway runs. Open the page in two browsers and chat.\n\n  \
             page      http://{at}/\n  \
             SockJS    http://{at}/sockjs    (echo: http://{at}/echo)\n  \
             WebSocket ws://{at}/ws\n  \
             edge      http://{admin}/backends    (also /metrics, /ready)\n  \
             nodes     {nodes}\n  \
             Redis     {redis}\n  \
             logs      {logs}\n\n\
             Stop a node as a deploy does, with kill and its pid: its clients are on another one at once.\n\
             Ctrl-C stops all of it.\n",
            at = edge.address,
            admin = edge.admin,
            nodes = nodes.join("    "),
            logs = scratch.path().display(),
        )
    }

    /// Waits for the end of a process that has not been told of yet.
    ///
    /// # Cancel safety
    ///
    /// An end is told of once, and not lost: a process stays ended.
    pub(super) async fn next_end(&mut self) -> End {
        let told = self.told.clone();
        let waits = self
            .processes()
            .into_iter()
            .filter(|process| !told.contains(&process.name().to_owned()));
        let waits: Vec<_> = waits.map(|process| end_of(process).boxed()).collect();
        if waits.is_empty() {
            // All are told of; only a person ends this.
            return std::future::pending().await;
        }
        let ((name, text), ..) = select_all(waits).await;
        let of_edge = name == "edge";
        self.told.push(name);
        End { text, of_edge }
    }

    /// Ends all of it in order and waits for each. Being asked again to stop ends the rest at once.
    pub(super) async fn stop(mut self, stop: &mut Stop) {
        for process in self.processes() {
            process.signal(Signal::Interrupt);
            tokio::select! {
                biased;
                () = stop.asked() => return,
                ended = process.exit(STOP_DEADLINE) => if ended.is_err() {
                    eprintln!("causeway-run: {} did not stop within {STOP_DEADLINE:?} and is killed", process.name());
                    process.kill().await.ok();
                }
            }
        }
    }

    /// In the order in which they are to end.
    fn processes(&mut self) -> Vec<&mut Process> {
        let mut processes = vec![&mut self.edge.process];
        processes.extend(self.nodes.iter_mut().map(|node| &mut node.process));
        processes.extend(self.redis.iter_mut().map(Redis::process));
        processes
    }
}

async fn end_of(process: &mut Process) -> (String, String) {
    let ended: Result<ExitStatus> = process.ended().await;
    let how = ended.map_or_else(|error| format!("{error:#}"), |status| status.to_string());
    let name = process.name().to_owned();
    let text = format!(
        "{name} ended by itself ({how}); its log is {}",
        process.log_path().display()
    );
    (name, text)
}

fn edge_settings(port: u16, nodes: &[Node]) -> Settings {
    let backends: Vec<(&str, SocketAddr)> = nodes
        .iter()
        .map(|node| (node.id.as_str(), node.address))
        .collect();
    edge::settings(&backends).with(
        "listeners",
        json!([{ "address": format!("127.0.0.1:{port}") }]),
    )
}

fn require_free(port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let bound = TcpListener::bind(address);
    bound
        .map(drop)
        .with_context(|| format!("cannot listen on {address}: choose another port with PORT="))
}

async fn require_ready(node: &Node) -> Result<()> {
    let ready = wait::until("the node to be ready", READY_DEADLINE, async || {
        (node.readiness().await? == 200).then_some(())
    });
    if ready.await.is_err() {
        let why = http::get(node.address, "/ready")
            .await
            .map(|response| response.text().trim().to_owned());
        bail!(
            "{} is not ready: {}",
            node.id,
            why.unwrap_or_else(|error| format!("{error:#}"))
        );
    }
    Ok(())
}
