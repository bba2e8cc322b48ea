//! A new configuration while clients are there: SIGHUP has the edge read its file anew.

use std::{collections::HashSet, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::{
    harness::{
        cluster::{Cluster, ClusterConfig},
        edge::{self, Program},
        http,
        load::{Cookies, Load, Plan},
        loopback,
        node::{self, Node},
        process::Signal,
        settings::Settings,
        wait,
        websocket::WebSocket,
    },
    on_edge_and_plugin,
};
use serde_json::{Value, json};
use tokio::time::Instant;

/// Clients with a SockJS session over polling, in an endless conversation with themselves.
const SESSIONS: usize = 200;

const DEADLINE: Duration = Duration::from_secs(60);

fn file_of(cluster: &Cluster) -> PathBuf {
    cluster.scratch.path().join("edge.yaml")
}

/// The edge's settings with these nodes behind it.
fn settings(nodes: &[&Node]) -> Settings {
    // Where the listeners are is no matter: they stay where they were.
    let backends: Vec<_> = nodes
        .iter()
        .map(|node| (node.id.as_str(), node.address))
        .collect();
    edge::settings(&backends)
}

/// Writes new settings and has the edge read them; returns when it has, one way or the other.
async fn reload(cluster: &mut Cluster, text: &str) -> Result<()> {
    let before = reloads(cluster).await?;
    fs::write(file_of(cluster), text)?;
    cluster.edge.process.signal(Signal::Hangup);
    wait::until("the reload", wait::SOON, async || {
        (before < reloads(cluster).await.ok()?).then_some(())
    })
    .await
}

/// How many configurations the edge has read while running.
async fn reloads(cluster: &Cluster) -> Result<u64> {
    let page = http::get(cluster.edge.admin, "/metrics").await?.text();
    let values = page
        .lines()
        .filter(|line| line.starts_with("causeway_proxy_reloads_total"));
    values
        .map(|line| {
            let (_, value) = line.rsplit_once(' ').context("a value")?;
            Ok(value.parse::<u64>()?)
        })
        .sum()
}

/// Waits for a line of the edge's log with this message: the reload is counted before the log's thread has written it.
async fn said(cluster: &Cluster, message: &str) -> Result<Value> {
    wait::until(message, wait::SOON, async || {
        let log = cluster.edge.process.log();
        let lines = causeway_tests::harness::process::json_lines(&log);
        let mut fields = lines.into_iter().map(|mut line| line["fields"].take());
        fields.find(|fields| fields["message"] == message)
    })
    .await
}

async fn newcomers(cluster: &Cluster) -> Result<HashSet<String>> {
    let mut nodes = HashSet::new();
    for _ in 0..12 {
        let response = http::get(cluster.edge.address, "/").await?;
        nodes.insert(
            response
                .header("causeway-node")
                .unwrap_or_default()
                .to_owned(),
        );
    }
    Ok(nodes)
}

on_edge_and_plugin!(
    a_fourth_node_joins_and_one_leaves_without_a_client_noticing,
    clients_without_cookies_notice_nothing_either,
    a_file_that_is_not_valid_changes_nothing_and_the_log_says_where_it_is_wrong,
);

async fn a_fourth_node_joins_and_one_leaves_without_a_client_noticing(
    program: Program,
) -> Result<()> {
    a_node_joins_and_one_leaves(program, Cookies::Kept).await
}

async fn clients_without_cookies_notice_nothing_either(program: Program) -> Result<()> {
    a_node_joins_and_one_leaves(program, Cookies::Off).await
}

async fn a_node_joins_and_one_leaves(program: Program, cookies: Cookies) -> Result<()> {
    let config = ClusterConfig {
        node_settings: node::patient,
        ..ClusterConfig::three_nodes()
    };
    let mut cluster = Cluster::start("reload", config.with_edge_in(program)).await?;
    let plan = Plan {
        sessions: SESSIONS,
        session_cookies: cookies,
        ..Plan::NOBODY
    };
    let begun = Instant::now();
    let load = Load::start(cluster.edge.address, &plan);
    load.served(begun, DEADLINE, |_| true).await?;
    let mut socket = WebSocket::open(cluster.edge.address, "/echo/websocket").await?;
    let leaving = socket.node().to_owned();

    let fourth = node::settings_with_redis(&cluster.redis.url())
        .with("listen", json!(loopback::own_any_port()));
    let fourth = Node::start("n4", node::patient(fourth), cluster.scratch.path()).await?;
    fourth.ready().await?;
    let mut all: Vec<&Node> = cluster.nodes.iter().collect();
    all.push(&fourth);
    let four = settings(&all).text();
    all.retain(|node| node.id != leaving);
    let three = settings(&all).text();

    reload(&mut cluster, &four).await?;
    cluster.edge.backend_in_state("n4", "up").await?;
    load.served(Instant::now(), DEADLINE, |_| true).await?;
    wait::until("a newcomer on n4", wait::SOON, async || {
        let nodes = newcomers(&cluster).await.ok()?;
        nodes.contains("n4").then_some(())
    })
    .await?;

    reload(&mut cluster, &three).await?;
    cluster.edge.backend_in_state(&leaving, "draining").await?;
    load.served(Instant::now(), DEADLINE, |_| true).await?;
    socket.send("still here").await?;
    assert_eq!(socket.text().await?, "still here");
    let cookie = socket.handshake.cookie("causeway").context("a cookie")?;
    let pair = format!("causeway={cookie}");
    let elsewhere = http::get_with(cluster.edge.address, "/", &[("Cookie", &pair)]).await?;
    assert_ne!(elsewhere.header("causeway-node"), Some(leaving.as_str()));
    assert!(elsewhere.cookie("causeway").is_some(), "it is bound anew");
    assert!(!newcomers(&cluster).await?.contains(&leaving));

    let homes = load.stop().await.homes_of_sessions()?;
    assert_eq!(homes.len(), SESSIONS);
    assert!(homes.values().any(|home| *home == leaving));
    Ok(())
}

async fn a_file_that_is_not_valid_changes_nothing_and_the_log_says_where_it_is_wrong(
    program: Program,
) -> Result<()> {
    let mut cluster = Cluster::start(
        "reload-bad",
        ClusterConfig::three_nodes().with_edge_in(program),
    )
    .await?;
    let text = fs::read_to_string(file_of(&cluster))?;
    reload(&mut cluster, &text.replace("\"pools\"", "\"pulls\"")).await?;
    let refused = said(
        &cluster,
        "configuration reload failed, still using the previous one",
    )
    .await?;
    let errors = refused["errors"].as_str().context("what is wrong")?;
    assert!(
        errors.contains("edge.yaml:") && errors.contains("pulls"),
        "{errors}"
    );
    assert_eq!(newcomers(&cluster).await?.len(), 3);

    let nodes: Vec<&Node> = cluster.nodes.iter().collect();
    let restart = settings(&nodes).with("threads", json!(1)).text();
    reload(&mut cluster, &restart).await?;
    let warned = said(&cluster, "changed settings need a restart to take effect").await?;
    let named = warned["settings"].as_str().context("which")?;
    assert!(named.contains("threads"), "{named}");
    Ok(())
}
