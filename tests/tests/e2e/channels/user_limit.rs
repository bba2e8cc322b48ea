//! `connections_per_user`: it holds however many connect at once, and can close the oldest instead of refusing the
//! newest.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use causeway_tests::harness::{
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    subscriber::{self, Subscriber},
};
use futures_util::future;
use serde_json::{Value, json};

const SECRET: &str = "a secret that is long enough for HS256";

/// Connections that a user may have.
const LIMIT: usize = 3;

/// Connections that are opened at once.
const AT_ONCE: usize = 20;

/// What a connection too many is closed with.
const CONNECTION_LIMIT: u16 = 3504;

struct Scene {
    node: Node,
    _redis: Redis,
    _scratch: Scratch,
    token: String,
}

impl Scene {
    async fn new(name: &str, policy: Value) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
        let limits = json!({
            "connections_per_user": LIMIT, "connections_per_user_policy": policy,
        });
        let history = json!({ "size": 10, "lifetime": "1m" });
        let settings = node::settings_with_redis(&redis.url())
            .with(
                "auth",
                json!({ "keys": [{ "algorithm": "HS256", "key": SECRET }] }),
            )
            .with(
                "endpoints",
                json!([{ "path": "/connection", "mode": "channels" }]),
            )
            .with("channels.limits", limits)
            .with(
                "channels.namespaces",
                json!([{ "name": "c", "history": history }]),
            );
        let node = Node::start("node", settings, scratch.path()).await?;
        node.ready().await?;
        // To hear these takes a while, in which others connect.
        let channels: Vec<String> = (0..50).map(|number| format!("c:{number}")).collect();
        Ok(Self {
            token: subscriber::token_with(SECRET, "ann", json!({ "channels": channels })),
            node,
            _redis: redis,
            _scratch: scratch,
        })
    }

    fn address(&self) -> SocketAddr {
        self.node.address
    }
}

#[tokio::test]
async fn no_more_connect_at_once_than_one_user_may() -> Result<()> {
    let scene = Scene::new("user-limit", Value::Null).await?;
    let connect = || Subscriber::connect(scene.address(), &scene.token);
    let connected = future::join_all((0..AT_ONCE).map(|_| connect())).await;
    let connected: Vec<Subscriber> = connected.into_iter().flatten().collect();
    ensure!(
        connected.len() == LIMIT,
        "{} are connected",
        connected.len()
    );
    ensure!(connect().await.is_err(), "one too many");
    Ok(())
}

#[tokio::test]
async fn the_oldest_can_go_instead_of_the_newest() -> Result<()> {
    let scene = Scene::new("user-limit-oldest", json!("drop_oldest")).await?;
    let connect = || Subscriber::connect(scene.address(), &scene.token);
    let connected = future::join_all((0..AT_ONCE).map(|_| connect())).await;
    // Some are displaced before they are told that they are connected.
    let mut connected: Vec<Subscriber> = connected.into_iter().flatten().collect();
    let mut newest = Vec::new();
    for _ in 0..LIMIT {
        newest.push(connect().await?);
    }
    for client in &mut connected {
        ensure!(client.close_code().await? == Some(CONNECTION_LIMIT));
    }
    for client in &mut newest {
        client.ask("ping", json!({})).await?;
    }
    Ok(())
}
