//! Nodes and the edge with a Redis that Sentinels watch: failovers on purpose and by a killed primary, under publications.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::{
    chaos::wire::{Condition, Wire},
    harness::{
        edge::{self, Edge},
        http, loopback,
        node::{self, Node},
        scratch::Scratch,
        sentinel::{Watched, WatchedConfig},
        server_api,
        settings::Settings,
        wait,
        websocket::WebSocket,
    },
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time};

const KEY: &str = "the key of the application";
const CHANNEL: &str = "c:x";

/// From one publication to the next.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(20);

/// Nodes, their Redis and their files; the processes are dropped before the files.
struct Scene {
    nodes: Vec<Node>,
    watched: Watched,
    scratch: Scratch,
}

fn settings(watched: &Watched, listen: SocketAddr) -> Settings {
    let history = json!({ "size": 10_000, "lifetime": "10m" });
    node::settings()
        .with("listen", json!(listen))
        .with("node.advertise", json!(listen))
        .with(
            "broker",
            json!({ "kind": "redis", "sentinel": watched.settings(), "backoff_max": "250ms" }),
        )
        .with("auth.anonymous", json!(true))
        .with("api", json!({ "keys": [KEY] }))
        .with(
            "endpoints",
            json!([
                { "path": "/connection", "mode": "channels" },
                { "path": "/ws", "protocol": "websocket" },
            ]),
        )
        .with(
            "channels.namespaces",
            json!([{ "name": "c", "subscribe": "anyone", "history": history, "recovery": true }]),
        )
}

impl Scene {
    async fn new(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let host = loopback::own();
        let watched = Watched::start(host, scratch.path(), WatchedConfig::default()).await?;
        let mut nodes = Vec::new();
        for id in ["n1", "n2"] {
            let listen = std::net::TcpListener::bind(loopback::own_any_port())?.local_addr()?;
            let settings = settings(&watched, listen);
            nodes.push(Node::start(id, settings, scratch.path()).await?);
        }
        for node in &nodes {
            node.ready().await?;
        }
        Ok(Self {
            nodes,
            watched,
            scratch,
        })
    }

    /// Waits until each node uses the server with this index, by its metrics, and is ready.
    async fn follows(&self, primary: usize) -> Result<()> {
        let address = self.watched.servers[primary].address();
        let line = format!("causeway_node_broker_primary{{address=\"{address}\"}} 1\n");
        for node in &self.nodes {
            wait::until("the node to use the primary", wait::SOON, async || {
                let metrics = http::get(node.admin, "/metrics").await.ok()?;
                metrics.text().contains(&line).then_some(())
            })
            .await?;
            node.ready().await?;
        }
        Ok(())
    }

    /// Waits until a client of each node hears a relay client of the first one.
    async fn relays(&self) -> Result<()> {
        let mut listeners = Vec::new();
        for node in &self.nodes {
            listeners.push(WebSocket::open(node.address, "/ws").await?);
        }
        let mut speaker = WebSocket::open(self.nodes[0].address, "/ws").await?;
        for (number, listener) in listeners.iter_mut().enumerate() {
            let word = format!("to {number}");
            let end = time::Instant::now() + wait::SOON;
            loop {
                speaker.send(&word).await?;
                let heard = time::timeout(Duration::from_millis(200), listener.text()).await;
                if matches!(heard, Ok(Ok(text)) if text == word) {
                    break;
                }
                ensure!(time::Instant::now() < end, "{number} hears nothing");
            }
        }
        Ok(())
    }
}

/// What the subscriber of a channel got.
#[derive(Debug, Default)]
struct Received {
    publications: u64,
    /// How often it was told that it may have missed some.
    told: u64,
}

/// How long the nodes may use different primaries.
const FAILOVER_MAX: Duration = Duration::from_secs(10);

/// Subscribes, checks that no publication is missing, repeated or out of order unless that is told, before or soon after, and
/// subscribes again when it is told. Ends with the publication of "end".
async fn subscribe(node: SocketAddr) -> Result<Received> {
    let mut received = Received::default();
    let mut position: Option<(Value, u64)> = None;
    let mut number = 0_u64;
    // Until when the other node may still have published to the primary that this one has left: what that has acknowledged is
    // lost with it, as for any `ack` but `replicated`.
    let mut lossy_until = time::Instant::now();
    // What is missing, and until when that has to be told: the node may still use the primary that the other one has left.
    let mut pending_gap: Option<(String, time::Instant)> = None;
    let mut id = 2;
    let mut socket = WebSocket::open(node, "/connection/websocket").await?;
    socket.send(r#"{"id":1,"connect":{}}"#).await?;
    let mut ask = true;
    loop {
        if std::mem::take(&mut ask) {
            let mut subscribe = json!({ "channel": CHANNEL });
            if let Some((epoch, offset)) = &position {
                subscribe["recover"] = json!(true);
                subscribe["epoch"] = epoch.clone();
                subscribe["offset"] = json!(offset);
            }
            id += 1;
            socket
                .send(&json!({ "id": id, "subscribe": subscribe }).to_string())
                .await?;
        }
        let text = socket.text().await?;
        if let Some((what, until)) = &pending_gap {
            ensure!(time::Instant::now() < *until, "{what} and nothing was told");
        }
        for line in text.lines() {
            if line == "{}" {
                socket.send("{}").await?; // A ping.
                continue;
            }
            let reply: Value = serde_json::from_str(line).context("a reply")?;
            let mut publications = Vec::new();
            if let Some(subscribed) = reply.get("subscribe") {
                let is_first = position.is_none();
                position = Some((
                    subscribed["epoch"].clone(),
                    subscribed["offset"].as_u64().unwrap_or_default(),
                ));
                if !is_first && subscribed["recovered"] != true {
                    received.told += 1;
                    number = 0;
                    pending_gap = None;
                    lossy_until = time::Instant::now() + FAILOVER_MAX;
                }
                publications.extend(
                    subscribed["publications"]
                        .as_array()
                        .cloned()
                        .unwrap_or_default(),
                );
            }
            if reply["push"]["unsubscribe"].is_object() || reply["error"].is_object() {
                // Temporary errors too: the SDKs subscribe again.
                time::sleep(Duration::from_millis(100)).await;
                ask = true;
                continue;
            }
            if reply["push"]["pub"].is_object() {
                publications.push(reply["push"]["pub"].clone());
            }
            for publication in publications {
                if publication["data"] == "end" {
                    ensure!(
                        pending_gap.is_none(),
                        "{pending_gap:?} and nothing was told"
                    );
                    return Ok(received);
                }
                let found = publication["data"].as_u64().context("a number")?;
                ensure!(
                    number < found || number == 0,
                    "{found} is repeated or out of order after {number}"
                );
                let now = time::Instant::now();
                if number != 0 && found != number + 1 && lossy_until < now {
                    let what = format!("{} to {} are missing", number + 1, found - 1);
                    pending_gap.get_or_insert((what, now + FAILOVER_MAX));
                }
                number = found;
                received.publications += 1;
                if let Some((_, offset)) = &mut position {
                    *offset = publication["offset"].as_u64().unwrap_or(*offset);
                }
            }
        }
    }
}

/// Publishes numbers until told to stop; one whose result is not known is published again under its idempotency key.
async fn publish(nodes: Vec<SocketAddr>, stop: tokio_util::sync::CancellationToken) -> Result<u64> {
    let mut number = 0_u64;
    while !stop.is_cancelled() {
        number += 1;
        let key = format!("number {number}");
        let body = json!({ "channel": CHANNEL, "data": number, "idempotency_key": key });
        publish_until_acknowledged(&nodes, &body).await?;
        time::sleep(PUBLISH_INTERVAL).await;
    }
    publish_until_acknowledged(&nodes, &json!({ "channel": CHANNEL, "data": "end" })).await?;
    Ok(number)
}

async fn publish_until_acknowledged(nodes: &[SocketAddr], body: &Value) -> Result<()> {
    let end = time::Instant::now() + wait::SOON;
    loop {
        for node in nodes {
            if server_api::call(*node, KEY, "publish", body).await.is_ok() {
                return Ok(());
            }
        }
        ensure!(time::Instant::now() < end, "nothing is published any more");
        time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failovers_lose_and_repeat_nothing_that_subscribers_are_not_told_of() -> Result<()> {
    let mut scene = Scene::new("sentinel-failover").await?;
    let nodes: Vec<SocketAddr> = scene.nodes.iter().map(|node| node.address).collect();
    let first = scene.watched.primary().await?;
    scene.follows(first).await?;
    scene.relays().await?;

    let stop = tokio_util::sync::CancellationToken::new();
    let mut subscribers = JoinSet::new();
    for node in nodes.iter().cycle().take(10) {
        subscribers.spawn(subscribe(*node));
    }
    let mut publisher = JoinSet::new();
    publisher.spawn(publish(nodes.clone(), stop.clone()));

    // On purpose: the old primary lives, and keeps its connections for a moment.
    let second = scene.watched.fail_over().await?;
    scene.follows(second).await?;
    scene.relays().await?;
    scene.watched.settled().await?;

    // By its end.
    scene.watched.servers[second].kill().await?;
    let third = scene.watched.another_primary(second).await?;
    scene.follows(third).await?;
    scene.relays().await?;
    scene.watched.servers[second].restart().await?;
    scene.watched.settled().await?;

    stop.cancel();
    let published = publisher.join_next().await.context("the publisher")???;
    while let Some(received) = subscribers.join_next().await {
        let received = received??;
        ensure!(
            received.publications <= published,
            "{received:?} of {published}"
        );
        // Each failover has a new epoch: what may have been lost is told.
        ensure!(received.told <= 3, "{received:?}");
        ensure!(0 < received.publications, "{received:?}");
    }
    Ok(())
}

/// The second failover is to a server that has not followed the first one's: what was acknowledged in between is not there, and
/// its replication id has not changed.
#[tokio::test]
async fn what_was_published_between_two_failovers_is_told_when_the_first_primary_returns()
-> Result<()> {
    let mut scene = Scene::new("sentinel-return").await?;
    let node = scene.nodes[0].address;
    let publish = async |data: &str| {
        let body = json!({ "channel": CHANNEL, "data": data });
        server_api::call(node, KEY, "publish", &body).await
    };
    let first = scene.watched.primary().await?;
    scene.follows(first).await?;
    let position = publish("on the first").await?;

    let second = scene.watched.fail_over().await?;
    scene.follows(second).await?;
    publish("on the second").await?;
    scene.watched.servers[second].kill().await?;
    let third = scene.watched.another_primary(second).await?;
    ensure!(third == first, "there are two servers");
    scene.follows(third).await?;

    let mut socket = WebSocket::open(node, "/connection/websocket").await?;
    socket.send(r#"{"id":1,"connect":{}}"#).await?;
    let subscribe = json!({
        "channel": CHANNEL,
        "recover": true,
        "epoch": position["epoch"],
        "offset": position["offset"],
    });
    socket
        .send(&json!({ "id": 2, "subscribe": subscribe }).to_string())
        .await?;
    let reply = loop {
        let text = socket.text().await?;
        let mut replies = text.lines().map(serde_json::from_str::<Value>);
        if let Some(reply) = replies.find(|reply| matches!(reply, Ok(reply) if reply["id"] == 2)) {
            break reply?;
        }
    };
    ensure!(reply["subscribe"].is_object(), "{reply}");
    ensure!(reply["subscribe"]["recovered"] != true, "{reply}");
    Ok(())
}

/// What is on the new primary of a channel before the late node is there.
#[derive(Clone, Copy)]
enum NewPrimary {
    /// A stream of its own epoch.
    Published,
    /// Nothing.
    Empty,
}

/// A node that does not hear of the failover publishes to the old primary, and has that acknowledged: it is lost, and clients of
/// other nodes that have subscribed on the new one before are told of that as soon as the late node is there too.
async fn a_late_node_publishes(name: &str, new_primary: NewPrimary) -> Result<()> {
    let mut scene = Scene::new(name).await?;
    let mut fronts = Vec::new();
    for sentinel in &scene.watched.sentinels {
        fronts.push(Wire::start(sentinel.address()).await?);
    }
    let servers: Vec<String> = { fronts.iter() }
        .map(|front| front.address.to_string())
        .collect();
    let late = &mut scene.nodes[1];
    late.kill().await?;
    let change = |settings: Settings| settings.with("broker.sentinel.servers", json!(servers));
    late.restart_with(change).await?;
    late.ready().await?;
    let [early, late] = [0, 1].map(|node| scene.nodes[node].address);
    let publish = async |node: SocketAddr, data: &str| {
        let body = json!({ "channel": CHANNEL, "data": data });
        server_api::call(node, KEY, "publish", &body).await
    };
    let before = publish(late, "before").await?;

    fronts.iter().for_each(|front| front.set(Condition::Held));
    let second = scene.watched.fail_over().await?;
    let address = scene.watched.servers[second].address();
    let line = format!("causeway_node_broker_primary{{address=\"{address}\"}} 1\n");
    wait::until("the node to use the primary", wait::SOON, async || {
        let metrics = http::get(scene.nodes[0].admin, "/metrics").await.ok()?;
        metrics.text().contains(&line).then_some(())
    })
    .await?;
    match new_primary {
        NewPrimary::Published => publish(early, "on the new one").await.map(drop)?,
        NewPrimary::Empty => {
            let said = scene.watched.servers[second].cli(&["FLUSHALL"]).await?;
            ensure!(said == "OK", "{said}");
        }
    }
    let mut socket = WebSocket::open(early, "/connection/websocket").await?;
    socket.send(r#"{"id":1,"connect":{}}"#).await?;
    let subscribe = json!({ "id": 2, "subscribe": { "channel": CHANNEL } });
    socket.send(&subscribe.to_string()).await?;
    let text = reads(&mut socket, "\"id\":2").await?;
    let mut replies = text.lines().map(serde_json::from_str::<Value>);
    let reply = replies.find(|reply| matches!(reply, Ok(reply) if reply["id"] == 2));
    let after = reply.context("a reply")??["subscribe"].take();
    ensure!(after["epoch"] != before["epoch"], "{before} {after}");

    let lost = publish(late, "lost").await?;
    ensure!(lost["epoch"] == before["epoch"], "{before} {lost}");
    fronts.iter().for_each(|front| front.set(Condition::Whole));
    reads(&mut socket, "\"unsubscribe\"").await?;
    let recover = json!({
        "channel": CHANNEL,
        "recover": true,
        "epoch": after["epoch"],
        "offset": after["offset"].as_u64().unwrap_or_default(),
    });
    let subscribe = json!({ "id": 3, "subscribe": recover });
    socket.send(&subscribe.to_string()).await?;
    let reply = reads(&mut socket, "\"id\":3").await?;
    ensure!(!reply.contains("\"recovered\":true"), "{reply}");

    // Once: nothing was lost since.
    let again = publish(late, "on the new one too").await?;
    reads(&mut socket, "on the new one too").await?;
    let once_more = publish(early, "by both").await?;
    ensure!(again["epoch"] == once_more["epoch"], "{again} {once_more}");
    Ok(())
}

#[tokio::test]
async fn what_a_late_node_had_acknowledged_by_the_old_primary_is_told_to_those_on_the_new_one()
-> Result<()> {
    a_late_node_publishes("sentinel-late", NewPrimary::Published).await
}

#[tokio::test]
async fn what_a_late_node_had_acknowledged_is_told_if_the_new_primary_has_nothing_of_the_channel()
-> Result<()> {
    a_late_node_publishes("sentinel-late-empty", NewPrimary::Empty).await
}

/// Reads until a message contains `words`, and returns it.
async fn reads(client: &mut WebSocket, words: &str) -> Result<String> {
    let read = async {
        loop {
            let text = client.text().await?;
            if text.lines().any(|line| line == "{}") {
                client.send("{}").await?; // A ping.
            }
            if text.contains(words) {
                return Ok(text);
            }
        }
    };
    let read = time::timeout(wait::SOON, read).await;
    read.with_context(|| format!("{words:?} is not read"))?
}

#[tokio::test]
async fn a_paused_primary_is_left_and_its_return_changes_nothing() -> Result<()> {
    let mut scene = Scene::new("sentinel-paused").await?;
    let first = scene.watched.primary().await?;
    scene.follows(first).await?;
    scene.watched.servers[first].freeze();
    let second = scene.watched.another_primary(first).await?;
    scene.follows(second).await?;
    scene.relays().await?;
    scene.watched.servers[first].thaw();
    scene.watched.settled().await?;
    scene.follows(second).await?;
    scene.relays().await
}

#[tokio::test]
async fn without_sentinels_the_primary_stays_in_use() -> Result<()> {
    let mut scene = Scene::new("sentinel-away").await?;
    let primary = scene.watched.primary().await?;
    for sentinel in &mut scene.watched.sentinels {
        sentinel.kill().await?;
    }
    for node in &scene.nodes {
        wait::until("the node to say so", wait::SOON, async || {
            node.process
                .log()
                .contains("no sentinel responds")
                .then_some(())
        })
        .await?;
    }
    scene.relays().await?;
    scene.follows(primary).await?;
    for sentinel in &mut scene.watched.sentinels {
        sentinel.restart().await?;
    }
    let second = scene.watched.fail_over().await?;
    scene.follows(second).await
}

#[tokio::test]
async fn the_edge_discovers_nodes_through_sentinels_and_after_a_failover() -> Result<()> {
    let mut scene = Scene::new("sentinel-discovery").await?;
    let discover = json!({ "sentinel": scene.watched.settings(), "every": "200ms" });
    let pool = json!([{ "name": "nodes", "discover": discover }]);
    let settings = edge::settings(&[]).with("pools", pool);
    let edge = Edge::start(&settings, scene.scratch.path()).await?;
    for id in ["n1", "n2"] {
        edge.backend_in_state(id, "up").await?;
    }
    let second = scene.watched.fail_over().await?;
    scene.follows(second).await?;
    // What is new is found only where it is registered now.
    let listen = std::net::TcpListener::bind(loopback::own_any_port())?.local_addr()?;
    let settings = crate::channels::sentinel::settings(&scene.watched, listen);
    let third = Node::start("n3", settings, scene.scratch.path()).await?;
    third.ready().await?;
    edge.backend_in_state("n3", "up").await?;
    scene.nodes.push(third);
    for id in ["n1", "n2"] {
        edge.backend_in_state(id, "up").await?;
    }
    Ok(())
}
