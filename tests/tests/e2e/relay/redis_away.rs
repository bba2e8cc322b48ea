//! Redis goes away and comes back: no node restarts, no client is cut off, and `/ready` says how it is.

use std::time::Duration;

use anyhow::{Result, ensure};
use causeway_tests::harness::{
    cluster::{Cluster, ClusterConfig},
    wait,
    websocket::WebSocket,
};
use tokio::time::{Instant, timeout_at};

/// How long Redis is away.
const OUTAGE: Duration = Duration::from_secs(5);

/// How long after its return messages flow again.
const RECOVERY: Duration = Duration::from_secs(3);

/// How often a client speaks to see whether it is heard.
const PAUSE: Duration = Duration::from_millis(50);

/// One client for each node, and what runs behind them.
struct Scene {
    cluster: Cluster,
    sockets: Vec<WebSocket>,
}

impl Scene {
    async fn set(name: &str) -> Result<Self> {
        let cluster = Cluster::start(name, ClusterConfig::three_nodes()).await?;
        let mut sockets = Vec::new();
        for node in &cluster.nodes {
            sockets.push(WebSocket::open(node.address, "/ws").await?);
        }
        let mut scene = Self { cluster, sockets };
        scene.hear_each_other("before").await?;
        Ok(scene)
    }

    /// The first client speaks until every client has heard one of its words.
    async fn hear_each_other(&mut self, word: &str) -> Result<()> {
        let start = Instant::now();
        let mut round = 0_u32;
        let mut deaf: Vec<usize> = (0..self.sockets.len()).collect();
        while !deaf.is_empty() {
            ensure!(
                start.elapsed() < wait::SOON,
                "clients {deaf:?} hear nothing"
            );
            self.sockets[0].send(&format!("{word} {round}")).await?;
            round += 1;
            let end = Instant::now() + PAUSE;
            let mut still = Vec::new();
            for &index in &deaf {
                if !hears(&mut self.sockets[index], word, end).await? {
                    still.push(index);
                }
            }
            deaf = still;
        }
        Ok(())
    }

    /// While Redis is away: nobody hears anything, and every node comes to say that it is not ready.
    async fn be_apart(&mut self) -> Result<()> {
        let end = Instant::now() + OUTAGE;
        self.sockets[0].send("during").await?;
        for socket in &mut self.sockets {
            ensure!(
                !hears(socket, "during", end).await?,
                "a client heard what the others cannot hear"
            );
        }
        for node in &self.cluster.nodes {
            let response = causeway_tests::harness::http::get(node.address, "/ready").await?;
            ensure!(
                response.status == 503,
                "{} calls itself ready without Redis",
                node.id
            );
            ensure!(!response.body.is_empty(), "{} gives no reason", node.id);
        }
        Ok(())
    }

    /// After its return at `since`.
    async fn be_together_again(&mut self, since: Instant) -> Result<()> {
        self.hear_each_other("after").await?;
        let elapsed = since.elapsed();
        ensure!(elapsed < RECOVERY, "messages flow only after {elapsed:?}");
        for node in &mut self.cluster.nodes {
            node.ready().await?;
            ensure!(node.process.is_running(), "{} ended", node.id);
        }
        Ok(())
    }
}

/// Whether a message that starts with `word` comes before `end`; others are passed over.
async fn hears(socket: &mut WebSocket, word: &str, end: Instant) -> Result<bool> {
    loop {
        let Ok(text) = timeout_at(end, socket.text()).await else {
            return Ok(false);
        };
        if text?.starts_with(word) {
            return Ok(true);
        }
    }
}

#[tokio::test]
async fn messages_flow_again_after_redis_was_killed_and_came_back() -> Result<()> {
    let mut scene = Scene::set("redis-killed").await?;
    scene.cluster.redis.kill().await?;
    scene.be_apart().await?;
    scene.cluster.redis.restart().await?;
    scene.be_together_again(Instant::now()).await
}

#[tokio::test]
async fn messages_flow_again_after_redis_was_silent_for_a_while() -> Result<()> {
    let mut scene = Scene::set("redis-frozen").await?;
    scene.cluster.redis.freeze();
    scene.be_apart().await?;
    scene.cluster.redis.thaw();
    scene.be_together_again(Instant::now()).await
}
