//! What one client says, every client hears: over every wire, on every node, once and in order.

use std::time::Duration;

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    cluster::{Cluster, ClusterConfig},
    herd::{self, Herd},
    http,
    node::Node,
    settings::Settings,
    wait,
};
use serde_json::json;

const CLIENTS: usize = 300;
const HERDS: usize = 3;
const SENDERS: usize = 20;
const MESSAGES: usize = 1_000;
const DEADLINE: Duration = Duration::from_secs(180);

/// Settings of a node on a busy machine: it gives up on nobody who is only slow.
fn patient(settings: Settings) -> Settings {
    let ping = json!({ "interval": "25s", "timeout": "2m" });
    settings
        .with("broker.publish_queue_wait", json!("2m"))
        .with("broker.response_timeout", json!("1m"))
        .with("broker.probe_timeout", json!("1m"))
        .with(
            "endpoints",
            json!([
                { "path": "/sockjs", "protocol": "sockjs", "disconnect_delay": "2m", "ping": ping },
                { "path": "/ws", "protocol": "websocket", "ping": ping },
            ]),
        )
}

/// How many clients a node holds, by its own account.
async fn clients_of(node: &Node) -> Result<usize> {
    let metrics = http::get(node.admin, "/metrics").await?.text();
    let counts = metrics
        .lines()
        .filter(|line| line.starts_with("causeway_node_clients{"));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
    Ok(counts.sum())
}

#[tokio::test]
async fn three_hundred_clients_hear_a_thousand_messages_once_and_in_order() -> Result<()> {
    let patient = ClusterConfig {
        node_settings: patient,
        ..ClusterConfig::three_nodes()
    };
    let cluster = Cluster::start("relay", patient).await?;
    let url = format!("http://{}", cluster.edge.address);
    let mut herds = Vec::new();
    for (number, plans) in herd::plans(CLIENTS, HERDS, SENDERS, MESSAGES / SENDERS)?
        .iter()
        .enumerate()
    {
        herds.push(Herd::start(
            &format!("herd-{number}"),
            &url,
            plans,
            MESSAGES,
            cluster.scratch.path(),
        )?);
    }
    for herd in &mut herds {
        herd.event("open", None, DEADLINE).await?;
    }

    let mut held = Vec::new();
    for node in &cluster.nodes {
        held.push(clients_of(node).await?);
    }
    assert_eq!(held.iter().sum::<usize>(), CLIENTS, "{held:?}");
    assert!(
        held.iter()
            .all(|count| (CLIENTS / 5..=CLIENTS / 2).contains(count)),
        "{held:?}"
    );

    for herd in &mut herds {
        herd.tell("send").await?;
    }
    for herd in &mut herds {
        herd.event("done", None, DEADLINE).await?;
    }
    let receivers = cluster.redis.cli(&["PUBLISH", "global", "hello"]).await?;
    assert_eq!(receivers, "3", "each node is subscribed once");
    for herd in &mut herds {
        herd.event("bare", Some("hello"), wait::SOON).await?;
        for client in herd.report().await? {
            assert_eq!(client.received, MESSAGES, "{client:?}");
            assert!(client.wrong.is_empty(), "{client:?}");
            assert_eq!(client.bare.get("hello"), Some(&1), "{client:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_node_says_reaches_redis_as_the_bare_message() -> Result<()> {
    use causeway_tests::harness::websocket::WebSocket;

    let cluster = Cluster::start("bare", ClusterConfig::three_nodes()).await?;
    let mut sockets = Vec::new();
    for node in &cluster.nodes {
        sockets.push(WebSocket::open(node.address, "/ws").await?);
    }
    // A client of Redis itself hears it too: it is a node for this purpose.
    let mut listener = http::Connection::open(cluster.redis.address()).await?;
    listener.send("SUBSCRIBE global\r\n").await?;
    let confirmed = "*3\r\n$9\r\nsubscribe\r\n$6\r\nglobal\r\n:1\r\n";
    assert_eq!(listener.bytes(confirmed.len()).await?, confirmed.as_bytes());

    let speaker = sockets.first_mut().context("there are three")?;
    speaker.send("good day").await?;
    for socket in &mut sockets {
        assert_eq!(socket.text().await?, "good day");
    }
    let expected = "*3\r\n$7\r\nmessage\r\n$6\r\nglobal\r\n$8\r\ngood day\r\n";
    assert_eq!(listener.bytes(expected.len()).await?, expected.as_bytes());
    Ok(())
}
