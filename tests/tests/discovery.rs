//! The edge finds its backends by itself: nodes that come, and nodes that go.

use anyhow::Result;
use causeway_tests::harness::{
    edge::{self, Edge},
    http, loopback,
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
};
use serde_json::json;

#[tokio::test]
async fn nodes_are_backends_as_long_as_they_are_there() -> Result<()> {
    let scratch = Scratch::new("discovery")?;
    let mut redis = Redis::start(loopback::own(), scratch.path()).await?;
    let start = async |id: &str| -> Result<Node> {
        let listen = std::net::TcpListener::bind(loopback::own_any_port())?.local_addr()?;
        let settings = node::settings_with_redis(&redis.url())
            .with("listen", json!(listen))
            .with("node.advertise", json!(listen))
            .with("node.zone", json!("east"));
        let node = Node::start(id, settings, scratch.path()).await?;
        node.ready().await?;
        Ok(node)
    };
    let mut first = start("n1").await?;
    let pool = json!([{ "name": "nodes", "discover": { "redis": redis.url(), "every": "200ms" } }]);
    let edge = Edge::start(&edge::settings(&[]).with("pools", pool), scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;
    assert_eq!(
        http::get(edge.address, "/").await?.header("causeway-node"),
        Some("n1")
    );

    let mut second = start("n2").await?;
    edge.backend_in_state("n2", "up").await?;

    // While Redis is away nothing changes, nor when it has forgotten everything.
    redis.kill().await?;
    redis.restart().await?;
    for node in [&first, &second] {
        node.ready().await?;
    }
    edge.backend_in_state("n1", "up").await?;
    edge.backend_in_state("n2", "up").await?;

    // One that stops leaves the registry at once, and the pool after a while; one that is killed, with its lease.
    first.drain();
    second.kill().await?;
    for id in ["n1", "n2"] {
        edge.backend_in_state(id, "draining").await?;
    }
    Ok(())
}
