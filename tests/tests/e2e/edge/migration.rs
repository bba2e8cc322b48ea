//! Servers made with sockjs-node and nodes in one pool, on one Redis channel, with the files of the guide to the node.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    clients, http,
    process::{Process, Signal},
    programs,
    redis::Redis,
    scratch::Scratch,
    wait,
    websocket::WebSocket,
};
use serde_json::{Value, json};
use tokio::process::Command;

const GUIDE: &str = include_str!("../../../../node/README.md");

/// The file of the guide that has `part`.
fn file_with(part: &str) -> Result<&'static str> {
    let blocks = GUIDE.split("```").skip(1).step_by(2);
    let block = blocks
        .filter(|block| block.starts_with("yaml "))
        .find(|block| block.contains(part));
    let block = block.with_context(|| format!("the guide has no file with {part}"))?;
    Ok(block.split_once('\n').context("it has lines")?.1)
}

struct Stage {
    old: [Process; 2],
    node: Process,
    edge: Process,
    address: SocketAddr,
    admin: SocketAddr,
    /// The configuration of the edge.
    file: PathBuf,
    _redis: Redis,
    _scratch: Scratch,
}

impl Stage {
    async fn start() -> Result<Self> {
        let scratch = Scratch::new("migration")?;
        let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
        let orders = json!({
            "redis": { "host": "127.0.0.1", "port": redis.address().port() },
            "prefix": "/chat",
            "channel": "chat",
        });
        let old = || {
            Process::spawn(
                "old",
                clients::command("apps/old.mjs", &orders)?,
                scratch.path(),
            )
        };
        let mut old = [old()?, old()?];

        let text = file_with("mode: relay, channel: chat }")?;
        let text = text
            .replace("10.0.0.3:9000", "127.0.0.1:0")
            .replace("10.0.0.100", "127.0.0.1");
        let file = scratch.write("node.yaml", &format!("{text}admin: none\n"))?;
        let mut command = Command::new(programs::ours("causeway-node")?);
        command
            .arg("--config")
            .arg(file)
            .env("REDIS_URL", redis.url());
        let mut node = Process::spawn("node", command, scratch.path())?;

        // One node is enough here, and nobody listens for "ctl".
        let left_out = ["id: node-2", "admin: "];
        let lines = file_with("id: node-2")?.lines();
        let lines = lines.filter(|line| !left_out.iter().any(|part| line.contains(part)));
        let text: Vec<&str> = lines.collect();
        let mut text = text.join("\n").replace("0.0.0.0:8080", "127.0.0.1:0");
        for (example, address) in [
            ("10.0.0.1:3000", old[0].listening("old").await?),
            ("10.0.0.2:3000", old[1].listening("old").await?),
            ("10.0.0.3:9000", node.listening("node").await?),
        ] {
            text = text.replace(example, &address.to_string());
        }
        let file = scratch.write(
            "edge.yaml",
            &format!("{text}\nadmin: {{ address: '127.0.0.1:0' }}\n"),
        )?;
        let mut command = Command::new(programs::ours("causeway-proxy")?);
        command.arg("--config").arg(&file);
        let mut edge = Process::spawn("edge", command, scratch.path())?;
        Ok(Self {
            old,
            node,
            address: edge.listening("edge").await?,
            admin: edge.listening("admin").await?,
            edge,
            file,
            _redis: redis,
            _scratch: scratch,
        })
    }

    /// Waits until each backend is in the state, with so many tunnels, that `expected` has for its id.
    async fn backends(&self, expected: &[(&str, &str, u64)]) -> Result<()> {
        let what = format!("backends as {expected:?}");
        wait::until(&what, wait::SOON, async || {
            let page = http::get(self.admin, "/backends").await.ok()?.text();
            let backends: Vec<Value> = serde_json::from_str(&page).ok()?;
            let is = |(id, state, tunnels): &(&str, &str, u64)| {
                let mut backends = backends.iter();
                let backend = backends.find(|backend| backend["id"] == *id);
                backend.is_some_and(|backend| {
                    backend["state"] == *state && backend["tunnels"] == *tunnels
                })
            };
            expected.iter().all(is).then_some(())
        })
        .await
    }

    async fn connect(&self) -> Result<WebSocket> {
        WebSocket::open(self.address, "/chat/websocket").await
    }
}

/// What the client of each of `sockets` says, all hear.
async fn all_hear_each(sockets: &mut [WebSocket]) -> Result<()> {
    let texts: BTreeSet<String> = (0..sockets.len())
        .map(|number| format!("from {number}"))
        .collect();
    for (socket, text) in sockets.iter_mut().zip(&texts) {
        socket.send(text).await?;
    }
    for socket in sockets {
        let mut heard = BTreeSet::new();
        for _ in &texts {
            heard.insert(socket.text().await?);
        }
        assert_eq!(heard, texts);
    }
    Ok(())
}

#[tokio::test]
async fn old_servers_and_a_node_share_a_pool_and_a_channel_until_the_old_ones_are_gone()
-> Result<()> {
    let mut stage = Stage::start().await?;
    stage
        .backends(&[("app-1", "up", 0), ("app-2", "up", 0), ("node-1", "up", 0)])
        .await?;
    let mut sockets = [
        stage.connect().await?,
        stage.connect().await?,
        stage.connect().await?,
    ];
    stage
        .backends(&[("app-1", "up", 1), ("app-2", "up", 1), ("node-1", "up", 1)])
        .await?;
    all_hear_each(&mut sockets).await?;

    // Both old servers are emptied: their clients stay, new ones go to the node.
    let text = fs::read_to_string(&stage.file)?;
    let kept: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("id: app-"))
        .collect();
    fs::write(&stage.file, kept.join("\n"))?;
    stage.edge.signal(Signal::Hangup);
    stage
        .backends(&[
            ("app-1", "draining", 1),
            ("app-2", "draining", 1),
            ("node-1", "up", 1),
        ])
        .await?;
    let fourth = stage.connect().await?;
    stage.backends(&[("node-1", "up", 2)]).await?;
    let [a, b, c] = sockets;
    let mut sockets = [a, b, c, fourth];
    all_hear_each(&mut sockets).await?;

    // They are stopped, and everyone is at the node.
    for old in &mut stage.old {
        old.kill().await?;
    }
    let mut sockets = [stage.connect().await?, stage.connect().await?];
    all_hear_each(&mut sockets).await?;
    assert!(stage.node.is_running());
    Ok(())
}
