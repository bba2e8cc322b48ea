//! A message goes to the nodes that hold somebody who hears it, once to each, and to no others: counted on the wire between
//! each node and Redis.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    descriptors, http,
    listening::Listening,
    loopback,
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    subscriber::{Subscriber, token},
};
use serde_json::{Value, json};

const KEY: &str = "the key of the application";
const SECRET: &str = "a secret of at least thirty-two bytes";

/// Clients that connect at a time.
const AT_ONCE: usize = 50;

/// Three nodes, each with a wire of its own to Redis.
struct Scene {
    nodes: Vec<Node>,
    wires: Vec<Listening>,
    _redis: Redis,
    _scratch: Scratch,
}

impl Scene {
    async fn start(name: &str) -> Result<Self> {
        descriptors::raise_limit()?;
        let scratch = Scratch::new(name)?;
        let redis = Redis::start(loopback::own(), scratch.path()).await?;
        let (mut nodes, mut wires) = (Vec::new(), Vec::new());
        // Thousands of clients connect one after another, and none reads until all have: longer than pings are waited for.
        let ping = json!({ "interval": "1h", "timeout": "1h" });
        let endpoint = json!({ "path": "/connection", "mode": "channels", "ping": ping });
        for number in 1..=3 {
            let wire = Listening::start(redis.address()).await?;
            let settings = node::settings_with_redis(&wire.url())
                .with("listen", json!(loopback::own_any_port()))
                .with("endpoints", json!([endpoint]))
                .with(
                    "channels.namespaces",
                    json!([
                        { "name": "user", "user_limited": true, "history": { "size": 20, "lifetime": "1h" } },
                        { "name": "news", "subscribe": "anyone" },
                    ]),
                )
                .with("auth.keys", json!([{ "algorithm": "HS256", "key": SECRET }]))
                .with("api.keys", json!([KEY]));
            nodes.push(Node::start(&format!("n{number}"), settings, scratch.path()).await?);
            wires.push(wire);
        }
        for node in &nodes {
            node.ready().await?;
        }
        Ok(Self {
            nodes,
            wires,
            _redis: redis,
            _scratch: scratch,
        })
    }

    /// Connects `count` clients, the users 0, 1, ... in turn to the nodes, each to a channel.
    async fn connect(&self, count: usize, channel: fn(usize) -> String) -> Result<Vec<Subscriber>> {
        let mut clients = Vec::with_capacity(count);
        let users: Vec<usize> = (0..count).collect();
        for some in users.chunks(AT_ONCE) {
            let coming = some.iter().map(async |user| {
                let address = self.nodes[user % 3].address;
                let token = token(SECRET, &user.to_string());
                let mut client = Subscriber::connect(address, &token).await?;
                client.subscribe(&channel(*user)).await?;
                anyhow::Ok(client)
            });
            clients.extend(futures_util::future::try_join_all(coming).await?);
        }
        Ok(clients)
    }

    /// Publishes over the API of one node, many at a time.
    async fn publish(&self, node: usize, commands: &[Value]) -> Result<()> {
        for some in commands.chunks(500) {
            let body = json!({ "commands": some, "parallel": true }).to_string();
            let length = body.len();
            let head = format!(
                "POST /api/batch HTTP/1.1\r\nHost: n\r\nX-API-Key: {KEY}\r\nContent-Length: {length}\r\n\r\n"
            );
            let mut connection = http::Connection::open(self.nodes[node].address).await?;
            connection.send(format!("{head}{body}")).await?;
            let response = connection.response().await?;
            ensure!(response.status == 200, "{response:?}");
            let response: Value = serde_json::from_str(&response.text())?;
            let replies = response["replies"]
                .as_array()
                .context("a batch has replies")?;
            for reply in replies {
                ensure!(!reply["publish"].is_null(), "{reply}");
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn nodes_that_do_not_hold_a_user_receive_none_of_its_messages() -> Result<()> {
    const USERS: usize = 1_000;
    const MESSAGES: usize = 10_000;
    let scene = Scene::start("targeted").await?;
    let mut clients = scene
        .connect(USERS, |user| format!("user:inbox#{user}"))
        .await?;
    scene.wires.iter().for_each(Listening::forget);
    let commands: Vec<Value> = (0..MESSAGES)
        .map(|number| {
            let user = number % USERS;
            // The node that holds it stands in the message.
            let data = format!("for-node-{}", user % 3);
            json!({ "publish": { "channel": format!("user:inbox#{user}"), "data": data } })
        })
        .collect();
    scene.publish(0, &commands).await?;
    for client in &mut clients {
        for _ in 0..MESSAGES / USERS {
            client.push("pub").await?;
        }
    }
    let mut counts = BTreeMap::new();
    for (node, wire) in scene.wires.iter().enumerate() {
        for of in 0..3 {
            counts.insert((node, of), wire.count(&format!("for-node-{of}")));
        }
    }
    let bytes: Vec<usize> = scene.wires.iter().map(Listening::bytes).collect();
    eprintln!(
        "messages by (node, node that holds the user): {counts:?}; bytes from Redis: {bytes:?}"
    );
    for ((node, of), count) in counts {
        let held = (0..USERS).filter(|user| user % 3 == of).count() * MESSAGES / USERS;
        let expected = if node == of { held } else { 0 };
        assert_eq!(
            count, expected,
            "node {node} received messages for users of node {of}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_message_to_nine_thousand_subscribers_leaves_redis_once_for_each_node() -> Result<()> {
    const SUBSCRIBERS: usize = 9_000;
    let scene = Scene::start("fanned-out").await?;
    let mut clients = scene
        .connect(SUBSCRIBERS, |_| "news:all".to_owned())
        .await?;
    scene.wires.iter().for_each(Listening::forget);
    let publish = json!({ "publish": { "channel": "news:all", "data": "the one message" } });
    scene.publish(0, &[publish]).await?;
    for client in &mut clients {
        assert_eq!(client.push("pub").await?["pub"]["data"], "the one message");
    }
    let counts: Vec<usize> = scene
        .wires
        .iter()
        .map(|wire| wire.count("the one message"))
        .collect();
    assert_eq!(counts, [1, 1, 1]);
    Ok(())
}
