//! A node that is stopped on purpose: its clients are served elsewhere, and none of them waits for it.
//!
//! The edge would take a listener that just closes for a restart in place, and hold the clients of the node for
//! `affinity.hold`. So a node that stops makes sure that the edges know, and an edge takes every sign of it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use causeway_tests::{
    harness::{
        cluster::{Cluster, ClusterConfig},
        edge::{self, Edge, Program},
        http,
        load::{Kind, Load, Plan, Story, clients_of},
        loopback,
        node::{self, Node},
        redis::Redis,
        scratch::Scratch,
        wait,
        websocket::WebSocket,
    },
    on_edge_and_plugin,
};
use serde_json::json;
use tokio::time::Instant;

/// The one that is stopped.
const STOPPED: &str = "n1";

/// For everything that should come at once: a slow machine has its time.
const DEADLINE: Duration = Duration::from_secs(60);

/// The code that tells a client to come back at once.
const RESTART: u16 = 1012;

/// Enough clients that some of each kind are at each node.
const PLAN: Plan = Plan {
    gets: 24,
    posts: 12,
    sessions: 12,
    tunnels: 60,
    ..Plan::NOBODY
};

on_edge_and_plugin!(a_planned_stop_with_nothing_but_defaults_has_nobody_wait);

async fn a_planned_stop_with_nothing_but_defaults_has_nobody_wait(program: Program) -> Result<()> {
    let config = ClusterConfig::three_nodes().with_edge_in(program);
    let mut cluster = Cluster::start("planned-stop", config).await?;
    let begun = Instant::now();
    let load = Load::start(cluster.edge.address, &PLAN);
    load.served(begun, DEADLINE, |_| true).await?;
    let places = load.journal().places();
    let struck = clients_of(&places, STOPPED);
    for kind in [Kind::Get, Kind::Post, Kind::Session, Kind::Tunnel] {
        let mut there = places.iter().filter(|place| struck.contains(&place.client));
        ensure!(
            there.any(|place| place.kind == kind),
            "no {kind:?} at {STOPPED}: its stop would prove nothing"
        );
    }

    let asked = Instant::now();
    cluster.node(STOPPED).drain();
    let status = cluster.node(STOPPED).process.exit(DEADLINE).await?;
    let gone = Instant::now();
    ensure!(status.success(), "the node ended with {status}");
    let is_elsewhere = |node: Option<&str>| node.is_some_and(|node| node != STOPPED);
    load.served(gone, DEADLINE, |place| is_elsewhere(place.node.as_deref()))
        .await?;
    let story = Story::of(load, struck).await;
    eprintln!(
        "{} clients of a node that took {:.1?} to stop: the longest gap of one was {:.1?}",
        story.struck.len(),
        gone - asked,
        longest_gap(&story, asked)
    );
    assert_eq!(waits(&cluster.edge).await?, 0, "requests waited for a node");
    assert_eq!(story.failed(), 0, "requests failed");
    story.nobody_else_noticed()?;
    story.nobody_moved_twice(asked)
}

/// The longest time after `since` that a client of the stopped node had no service: between two good responses, those that are
/// parked on purpose left out.
fn longest_gap(story: &Story, since: Instant) -> Duration {
    let gap_of = |client: &usize| {
        let mut last = None;
        let good = story.records.iter().filter(|record| {
            record.client == *client && record.good && !record.path.ends_with("/xhr")
        });
        let gaps = good.filter_map(|record| {
            let before = last.replace(record.ended);
            // An open WebSocket is served until it is lost.
            let losses = story.journal.losses();
            let lost = losses.iter().filter(|loss| loss.client == *client);
            let lost = lost.map(|loss| loss.at).rfind(|at| *at < record.ended);
            let from = before.max(lost)?;
            (since < record.ended).then_some(record.ended - from)
        });
        gaps.max()
    };
    story
        .struck
        .iter()
        .filter_map(gap_of)
        .max()
        .unwrap_or_default()
}

/// How many requests have waited for a backend, whatever came of it.
async fn waits(edge: &Edge) -> Result<u64> {
    let page = http::get(edge.admin, "/metrics").await?.text();
    let values = page
        .lines()
        .filter(|line| line.starts_with("causeway_proxy_waits_total{"));
    values
        .map(|line| {
            let (_, value) = line.rsplit_once(' ').context("a value")?;
            Ok(value.parse::<u64>()?)
        })
        .sum()
}

#[tokio::test]
async fn where_nobody_asks_for_readiness_the_close_codes_tell_the_edge() -> Result<()> {
    // Probes that cannot tell it, and that only something else than their interval brings about.
    let rare = ClusterConfig {
        edge_settings: |settings| {
            settings.with("health", json!({ "kind": "tcp", "interval": "1h" }))
        },
        ..ClusterConfig::three_nodes()
    };
    let mut cluster = Cluster::start("planned-stop-codes", rare).await?;
    let edge = cluster.edge.address;
    let mut socket = WebSocket::open(edge, "/ws").await?;
    let cookie = socket.handshake.cookie("causeway").context("it binds")?;
    let stopped = socket.node().to_owned();
    cluster.node(&stopped).drain();
    assert_eq!(socket.close_code().await?, Some(RESTART));
    cluster.node(&stopped).process.exit(DEADLINE).await?;
    cluster.edge.backend_in_state(&stopped, "draining").await?;
    let cookie = format!("causeway={cookie}");
    let response = http::get_with(edge, "/", &[("Cookie", &cookie)]).await?;
    assert_eq!(response.status, 200);
    assert_ne!(response.header("causeway-node"), Some(stopped.as_str()));
    assert_eq!(waits(&cluster.edge).await?, 0);
    Ok(())
}

#[tokio::test]
async fn where_probes_are_rare_any_response_tells_the_edge() -> Result<()> {
    let rare = ClusterConfig {
        node_settings: |settings| settings.with("drain.lead", json!("1m")),
        edge_settings: |settings| settings.with("health.interval", json!("1h")),
        ..ClusterConfig::three_nodes()
    };
    let mut cluster = Cluster::start("planned-stop-responses", rare).await?;
    let first = http::get(cluster.edge.address, "/").await?;
    let cookie = format!("causeway={}", first.cookie("causeway").context("it binds")?);
    let stopped = first.header("causeway-node").context("a node")?.to_owned();
    cluster.node(&stopped).drain();
    wait::until("the node to drain", wait::SOON, async || {
        (cluster.node(&stopped).readiness().await? == 503).then_some(())
    })
    .await?;
    let told = http::get_with(cluster.edge.address, "/", &[("Cookie", &cookie)]).await?;
    assert_eq!(told.header("causeway-node"), Some(stopped.as_str()));
    assert_eq!(told.header("causeway-drain"), None, "it is for the edge");
    cluster.edge.backend_in_state(&stopped, "draining").await
}

#[tokio::test]
async fn where_probes_are_rare_the_registry_tells_the_edge() -> Result<()> {
    let scratch = Scratch::new("planned-stop-registry")?;
    let redis = Redis::start(loopback::own(), scratch.path()).await?;
    let listen = std::net::TcpListener::bind(loopback::own_any_port())?.local_addr()?;
    let settings = node::settings_with_redis(&redis.url())
        .with("listen", json!(listen))
        .with("node.advertise", json!(listen))
        .with("drain.lead", json!("1m"));
    let mut node = Node::start(STOPPED, settings, scratch.path()).await?;
    node.ready().await?;
    let pool = json!([{
        "name": "nodes",
        "discover": { "redis": redis.url(), "every": "100ms" },
        "health": { "interval": "1h" },
    }]);
    let edge = Edge::start(&edge::settings(&[]).with("pools", pool), scratch.path()).await?;
    edge.backend_in_state(STOPPED, "up").await?;
    node.drain();
    edge.backend_in_state(STOPPED, "draining").await
}

#[tokio::test]
async fn clients_of_a_node_that_is_alone_wait_for_its_restart() -> Result<()> {
    let alone = ClusterConfig {
        nodes: 1,
        ..ClusterConfig::three_nodes()
    };
    let mut cluster = Cluster::start("planned-stop-alone", alone).await?;
    let edge = cluster.edge.address;
    let first = http::get(edge, "/").await?;
    let cookie = format!("causeway={}", first.cookie("causeway").context("it binds")?);
    cluster.node(STOPPED).drain();
    cluster.node(STOPPED).process.exit(DEADLINE).await?;
    cluster.edge.backend_in_state(STOPPED, "draining").await?;
    let headers = [("Cookie", cookie.as_str())];
    let asks = http::get_with(edge, "/", &headers);
    let restarts = async {
        wait::until("the client to wait", wait::SOON, async || {
            let page = http::get(cluster.edge.admin, "/metrics").await.ok()?.text();
            let waiting = "causeway_proxy_requests_waiting{backend=\"n1\"} 1";
            page.contains(waiting).then_some(())
        })
        .await?;
        cluster.nodes[0].restart().await
    };
    let (response, restarted) = tokio::join!(asks, restarts);
    restarted?;
    assert_eq!(response?.status, 200, "{}", cluster.edge.process.tail());
    Ok(())
}
