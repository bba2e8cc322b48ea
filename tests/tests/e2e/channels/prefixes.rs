//! Two deployments on one Redis, with node ids, users and channels of the same names: each sees its own.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use causeway_tests::harness::{
    edge::{self, Edge},
    http,
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    server_api,
    subscriber::{self, Subscriber},
    wait,
    websocket::WebSocket,
};
use serde_json::{Value, json};

const KEY: &str = "the key of the application";
const SECRET: &str = "a secret of at least thirty-two bytes";
const CHANNEL: &str = "chat:a";
const PREFIXES: [&str; 2] = ["causeway", "staging"];

/// A node and a client of it.
struct Deployment {
    node: Node,
    ann: Subscriber,
}

impl Deployment {
    async fn start(prefix: &str, redis: &Redis, scratch: &Scratch) -> Result<Self> {
        let directory = scratch.path().join(prefix);
        std::fs::create_dir_all(&directory)?;
        let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let history = json!({ "size": 10, "lifetime": "1h" });
        let settings = node::settings_with_redis(&redis.url())
            .with("listen", json!(listen))
            .with("node.advertise", json!(listen))
            .with("broker.prefix", json!(prefix))
            .with(
                "endpoints",
                json!([
                    { "path": "/connection", "mode": "channels" },
                    { "path": "/ws", "protocol": "websocket" },
                ]),
            )
            .with(
                "channels.namespaces",
                json!([{
                    "name": "chat", "subscribe": "anyone", "recovery": true, "presence": true,
                    "lifecycle": true, "history": history,
                }]),
            )
            .with(
                "lifecycle",
                json!({ "connections": true, "coalesce": "0s" }),
            )
            .with(
                "auth.keys",
                json!([{ "algorithm": "HS256", "key": SECRET }]),
            )
            .with("api.keys", json!([KEY]));
        let node = Node::start("n1", settings, &directory).await?;
        node.ready().await?;
        let mut ann = Subscriber::connect(node.address, &subscriber::token(SECRET, "ann")).await?;
        ann.subscribe(CHANNEL).await?;
        Ok(Self { node, ann })
    }

    async fn call(&self, method: &str, body: Value) -> Result<Value> {
        server_api::call(self.node.address, KEY, method, &body).await
    }
}

async fn id_of_backend(edge: SocketAddr) -> Result<Option<String>> {
    let response = http::get(edge, "/ws").await?;
    Ok(response.header("causeway-node").map(str::to_owned))
}

#[tokio::test]
async fn deployments_with_different_prefixes_see_nothing_of_each_other() -> Result<()> {
    let scratch = Scratch::new("prefixes")?;
    let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
    let mut both = Vec::new();
    for prefix in PREFIXES {
        both.push(Deployment::start(prefix, &redis, &scratch).await?);
    }
    for deployment in &both {
        // Leases: with one id they would warn of each other, and count as two nodes.
        let nodes = deployment.call("info", json!({})).await?;
        ensure!(
            nodes["nodes"].as_array().map(Vec::len) == Some(1),
            "{nodes}"
        );
        // Presence, and the channels of all nodes.
        wait::until("the list", wait::SOON, async || {
            let list = deployment
                .call("presence", json!({ "channel": CHANNEL }))
                .await
                .ok()?;
            let list = list["presence"].as_object()?;
            (list.len() == 1 && list.contains_key(&deployment.ann.id)).then_some(())
        })
        .await?;
        let channels = deployment.call("channels", json!({})).await?;
        ensure!(
            channels["channels"][CHANNEL]["num_clients"] == 1,
            "{channels}"
        );
    }

    // Session values.
    for (deployment, prefix) in both.iter().zip(PREFIXES) {
        let put = json!({ "user": "ann", "name": "of", "value": prefix, "ttl": 60 });
        deployment.call("value_put", put).await?;
    }
    for (deployment, prefix) in both.iter().zip(PREFIXES) {
        let get = json!({ "user": "ann", "name": "of" });
        let found = deployment.call("value_get", get).await?;
        ensure!(found["value"] == prefix, "{found}");
    }

    // Publications, histories and idempotency keys.
    for (deployment, prefix) in both.iter_mut().zip(PREFIXES) {
        let publish = json!({ "channel": CHANNEL, "data": prefix, "idempotency_key": "once" });
        let published = deployment.call("publish", publish).await?;
        ensure!(published["offset"] == 1, "{published}");
        let push = deployment.ann.push("pub").await?;
        ensure!(push["pub"]["data"] == prefix, "{push}");
    }

    // What is published to a relay reaches both.
    let mut sockets = Vec::new();
    for deployment in &both {
        sockets.push(WebSocket::open(deployment.node.address, "/ws").await?);
    }
    redis.cli(&["PUBLISH", "global", "to all"]).await?;
    for socket in &mut sockets {
        ensure!(socket.text().await? == "to all");
    }

    // Lifecycle events.
    for prefix in PREFIXES {
        let stream = format!("{prefix}:{{lc}}:events");
        wait::until("two events", wait::SOON, async || {
            (redis.cli(&["XLEN", &stream]).await.ok()? == "2").then_some(())
        })
        .await?;
    }

    // Control messages, and what they are sent by: the leases that have the user.
    both[1].call("disconnect", json!({ "user": "ann" })).await?;
    ensure!(both[1].ann.close_code().await?.is_some());
    both[0].ann.ask("ping", json!({})).await?;

    // The edge finds the nodes of its own prefix, by the addresses: both have one id.
    let mut edges = Vec::new();
    for prefix in PREFIXES {
        let directory = scratch.path().join(format!("edge-{prefix}"));
        std::fs::create_dir_all(&directory)?;
        let discover = json!({ "redis": redis.url(), "prefix": prefix, "every": "200ms" });
        let pool = json!([{ "name": "nodes", "discover": discover }]);
        let settings = edge::settings(&[]).with("pools", pool);
        edges.push(Edge::start(&settings, &directory).await?);
    }
    for edge in &edges {
        edge.backend_in_state("n1", "up").await?;
        ensure!(id_of_backend(edge.address).await?.as_deref() == Some("n1"));
    }
    both[0].node.kill().await?;
    edges[0].backend_in_state("n1", "draining").await?;
    edges[1].backend_in_state("n1", "up").await?;

    // Nothing else is there.
    let names = [
        redis.cli(&["KEYS", "*"]).await?,
        redis.cli(&["PUBSUB", "CHANNELS"]).await?,
    ];
    for name in names.iter().flat_map(|names| names.lines()) {
        let prefix = name.split_once(':').map(|(prefix, _)| prefix);
        let is_ours = prefix.is_some_and(|prefix| PREFIXES.contains(&prefix));
        ensure!(is_ours || name == "global", "{name}");
    }
    Ok(())
}
