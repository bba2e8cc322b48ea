//! A node is killed, and all of its clients come back at once: to the nodes that are left, or through the edge. Each has missed
//! 20 messages of its channel. All of them get these, in order and once; nobody is refused twice; and Redis is read once for
//! each channel and node, however many come.
//!
//! `make storm` runs it with 10,000 clients directly on the nodes and 6,000 through the edge.

#[path = "storm/crowd.rs"]
mod crowd;

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    cluster::{Cluster, ClusterConfig},
    descriptors, environment,
    redis::Redis,
    server_api,
    settings::Settings,
    websocket::WebSocket,
};
use serde_json::json;

use crate::crowd::{Crowd, Door};

const KEY: &str = "the key of the application";
const SECRET: &str = "a secret of at least thirty-two bytes";

/// Channels in which the clients are, in turn.
const CHANNELS: usize = 100;
/// Messages that all hear before the node is killed, while nobody is there, and when all are back.
const BEFORE: usize = 3;
const MISSED: usize = 20;
const AFTER: usize = 2;

/// The cookie by which the edge knows a client.
const COOKIE: &str = "causeway";

fn channel(number: usize) -> String {
    format!("room:{}", number % CHANNELS)
}

fn rooms(settings: Settings) -> Settings {
    let room = json!({
        "name": "room", "subscribe": "authenticated", "recovery": true, "history": { "size": 100, "lifetime": "1h" },
    });
    settings
        .with(
            "endpoints",
            // Pings get no pongs here: who waits for its turn must not be given up.
            json!([{ "path": "/connection", "mode": "channels", "ping": { "interval": "1h", "timeout": "1m" } }]),
        )
        .with("channels.namespaces", json!([room]))
        .with(
            "auth.keys",
            json!([{ "algorithm": "HS256", "key": SECRET }]),
        )
        .with("api.keys", json!([KEY]))
}

async fn start(name: &str) -> Result<Cluster> {
    descriptors::raise_limit()?;
    let config = ClusterConfig {
        node_settings: rooms,
        edge_settings: |settings| settings.with("log.access", json!("off")),
        ..ClusterConfig::three_nodes()
    };
    Cluster::start(name, config).await
}

/// Says the same in all channels, message by message.
async fn publish(node: SocketAddr, messages: std::ops::Range<usize>) -> Result<()> {
    let channels: Vec<String> = (0..CHANNELS).map(channel).collect();
    for number in messages {
        let broadcast = json!({ "channels": channels, "data": number });
        let said = server_api::call(node, KEY, "broadcast", &broadcast).await?;
        let responses = said["responses"].as_array().context("each has one")?;
        ensure!(responses.iter().all(|one| one["error"].is_null()), "{said}");
    }
    Ok(())
}

/// How often Redis has carried out a command since its counters were reset, by scripts too.
async fn calls(redis: &Redis, command: &str) -> Result<usize> {
    let stats = redis.cli(&["INFO", "commandstats"]).await?;
    let wanted = format!("cmdstat_{command}:calls=");
    let line = stats.lines().find_map(|line| line.strip_prefix(&wanted));
    let calls = line.and_then(|line| line.split(',').next());
    Ok(calls.map(str::parse).transpose()?.unwrap_or_default())
}

/// Kills the node that all of `crowd` is on, says what they miss, and has them come back through `door`.
async fn storm(cluster: &mut Cluster, mut crowd: Crowd, door: Door) -> Result<()> {
    let survivor = cluster.nodes[0].address;
    publish(survivor, 0..BEFORE).await?;
    crowd.hear(0..BEFORE).await?;

    cluster.node("n3").kill().await?;
    let left = crowd.leave();
    publish(survivor, BEFORE..BEFORE + MISSED).await?;

    cluster.redis.cli(&["CONFIG", "RESETSTAT"]).await?;
    let began = Instant::now();
    let back = left.come_back(&door).await?;
    let took = began.elapsed();
    // A script reads a stream in pieces, and its position once. What a node tries now and then reads two, and adds an entry:
    // nobody else does now.
    let tried = calls(&cluster.redis, "xadd").await?;
    let reads = calls(&cluster.redis, "hmget").await? - 2 * tried;
    let scripts = calls(&cluster.redis, "evalsha").await?;
    eprintln!(
        "{}: {} clients, all back after {took:?} (half of them after {:?}), {} refused once, {reads} reads of {CHANNELS} \
         streams by 2 nodes, {scripts} scripts run",
        door.name(),
        back.crowd.len(),
        back.median,
        back.refusals.len(),
    );
    for (why, times) in back.why() {
        eprintln!("  refused {times} times: {why}");
    }
    ensure!(
        reads <= 2 * CHANNELS,
        "{reads} reads, and there are {CHANNELS} channels on two nodes"
    );

    let all = BEFORE + MISSED;
    publish(survivor, all..all + AFTER).await?;
    let mut crowd = back.crowd;
    crowd.hear(all..all + AFTER).await
}

#[tokio::test]
async fn clients_of_a_killed_node_come_back_to_the_others_at_once_and_miss_nothing() -> Result<()> {
    let mut cluster = start("storm-direct").await?;
    let clients = environment::number("CAUSEWAY_STORM_CLIENTS").unwrap_or(1_000);
    let (survivors, killed) = cluster.nodes.split_at(2);
    let door = Door::Nodes(survivors.iter().map(|node| node.address).collect());
    let crowd = Crowd::gather(clients, &Door::Nodes(vec![killed[0].address])).await?;
    storm(&mut cluster, crowd, door).await
}

#[tokio::test]
async fn clients_of_a_killed_node_come_back_through_the_edge_at_once_and_miss_nothing() -> Result<()>
{
    let mut cluster = start("storm-edge").await?;
    let clients = environment::number("CAUSEWAY_STORM_EDGE_CLIENTS").unwrap_or(500);
    let edge = cluster.edge.address;
    // One client's cookie binds all of them to that node.
    let cookie = loop {
        let one = WebSocket::open(edge, "/connection/websocket").await?;
        let cookie = one.handshake.cookie(COOKIE);
        if one.node() == "n3" {
            break cookie.context("the edge binds its clients")?;
        }
    };
    let door = Door::Edge(edge, format!("{COOKIE}={cookie}"));
    let crowd = Crowd::gather(clients, &door).await?;
    storm(&mut cluster, crowd, door).await
}
