//! A client that unsubscribes and subscribes again on one connection, while others publish: what it recovers and what
//! it is sent after that is each publication once, and nothing comes between the two replies.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use causeway_tests::harness::{
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    server_api,
    settings::Settings,
    websocket::WebSocket,
};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, task::JoinSet, time};

const KEY: &str = "a key that is long enough";

/// Subscribers beside the one that is watched: a batch takes a while to be written to all of them.
const SUBSCRIBERS: usize = 500;

/// How often the watched client subscribes again.
const RESUBSCRIBES: u64 = 150;

/// From one publication to the next.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_twice_to_a_client_that_subscribes_again_without_redis() -> Result<()> {
    let scratch = Scratch::new("resubscribe-memory")?;
    let node = Node::start("node", settings(node::settings()), scratch.path()).await?;
    node.ready().await?;
    subscribe_again_and_again(node.address).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_twice_to_a_client_that_subscribes_again_with_redis() -> Result<()> {
    let scratch = Scratch::new("resubscribe-redis")?;
    let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
    let base = settings(node::settings_with_redis(&redis.url()));
    let node = Node::start("node", base, scratch.path()).await?;
    node.ready().await?;
    subscribe_again_and_again(node.address).await?;
    Ok(())
}

fn settings(base: Settings) -> Settings {
    let history = json!({ "size": 100_000, "lifetime": "10m" });
    base.with("auth.anonymous", json!(true))
        .with("api", json!({ "keys": [KEY] }))
        .with(
            "endpoints",
            json!([{ "path": "/connection", "mode": "channels" }]),
        )
        .with(
            "channels.namespaces",
            json!([{ "name": "c", "subscribe": "anyone", "history": history, "recovery": true }]),
        )
}

async fn subscribe_again_and_again(node: SocketAddr) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..SUBSCRIBERS {
        let mut subscriber = connected(node).await?;
        subscriber
            .send(r#"{"id":2,"subscribe":{"channel":"c:x"}}"#)
            .await?;
        tasks.spawn(async move {
            let mut stream = subscriber.into_stream();
            let mut buffer = vec![0; 64 << 10];
            while matches!(stream.get_mut().read(&mut buffer).await, Ok(1..)) {}
        });
    }
    tasks.spawn(async move {
        let mut due = time::interval(PUBLISH_INTERVAL);
        loop {
            due.tick().await;
            let body = json!({ "channel": "c:x", "data": "x".repeat(100) });
            // A failure shows as publications that do not come.
            server_api::call(node, KEY, "publish", &body).await.ok();
        }
    });
    let mut watched = Watched::subscribe(node).await?;
    for _ in 0..RESUBSCRIBES {
        watched.hear_one().await?;
        watched.subscribe_again().await?;
    }
    watched.hear_one().await
}

async fn connected(node: SocketAddr) -> Result<WebSocket> {
    let mut socket = WebSocket::open(node, "/connection/websocket").await?;
    socket.send(r#"{"id":1,"connect":{}}"#).await?;
    let reply = socket.text().await?;
    ensure!(reply.contains("\"connect\""), "not connected: {reply}");
    Ok(socket)
}

/// A client that checks each offset.
struct Watched {
    socket: WebSocket,
    epoch: Value,
    /// Of the newest publication that it has.
    offset: u64,
}

impl Watched {
    async fn subscribe(node: SocketAddr) -> Result<Self> {
        let mut watched = Self {
            socket: connected(node).await?,
            epoch: Value::Null,
            offset: 0,
        };
        let command = r#"{"id":3,"subscribe":{"channel":"c:x"}}"#;
        watched.socket.send(command).await?;
        let reply = watched.reply(3, |_, publication| {
            bail!("publication {publication} came before the first reply")
        });
        let mut reply = reply.await?;
        watched.epoch = reply["subscribe"]["epoch"].take();
        watched.offset = reply["subscribe"]["offset"].as_u64().unwrap_or_default();
        Ok(watched)
    }

    /// Waits for the next publication.
    async fn hear_one(&mut self) -> Result<()> {
        let before = self.offset;
        while self.offset == before {
            for line in self.lines().await? {
                let offset = published(&line).context("a publication is awaited")?;
                self.take(offset)?;
            }
        }
        Ok(())
    }

    async fn subscribe_again(&mut self) -> Result<()> {
        let (epoch, asked_from) = (self.epoch.clone(), self.offset);
        let unsubscribe = json!({ "id": 4, "unsubscribe": { "channel": "c:x" } });
        let subscribe = json!({ "id": 5, "subscribe": {
            "channel": "c:x", "recover": true, "epoch": epoch, "offset": asked_from,
        } });
        self.socket
            .send(&format!("{unsubscribe}\n{subscribe}"))
            .await?;
        // What was on its way is asked for again: the offset in the command is older.
        self.reply(4, |watched, offset| watched.take(offset))
            .await?;
        let reply = self
            .reply(5, |_, offset| {
                bail!("publication {offset} came behind the reply to the unsubscribe")
            })
            .await?;
        let result = &reply["subscribe"];
        ensure!(result["recovered"] == true, "not recovered: {reply}");
        self.offset = asked_from;
        for publication in result["publications"].as_array().into_iter().flatten() {
            self.take(publication["offset"].as_u64().unwrap_or_default())?;
        }
        Ok(())
    }

    /// The reply to `id`. Publications before it go to `publication`.
    async fn reply(
        &mut self,
        id: u64,
        mut publication: impl FnMut(&mut Self, u64) -> Result<()>,
    ) -> Result<Value> {
        loop {
            let mut lines = self.lines().await?.into_iter();
            while let Some(line) = lines.next() {
                if let Some(offset) = published(&line) {
                    publication(self, offset)?;
                    continue;
                }
                ensure!(line["id"] == id, "the reply to {id} is awaited: {line}");
                ensure!(lines.next().is_none(), "each reply is a message of its own");
                return Ok(line);
            }
        }
    }

    async fn lines(&mut self) -> Result<Vec<Value>> {
        let text = self.socket.text().await?;
        let lines = text.lines().filter(|line| *line != "{}");
        let lines: Result<Vec<Value>, _> = lines.map(serde_json::from_str).collect();
        lines.with_context(|| format!("replies are JSON, and this is not: {text}"))
    }

    fn take(&mut self, offset: u64) -> Result<()> {
        let expected = self.offset + 1;
        ensure!(offset == expected, "{offset} came where {expected} is due");
        self.offset = offset;
        Ok(())
    }
}

fn published(line: &Value) -> Option<u64> {
    line["push"]["pub"]["offset"].as_u64()
}
