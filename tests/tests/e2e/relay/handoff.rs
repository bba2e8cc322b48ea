//! A client of one node continues on another while its connection stays open: nothing is lost, repeated or out of order.
//!
//! The edge is played by the test: it opens connections to both nodes and speaks the control frames of a handoff.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BytesMut};
use causeway_tests::harness::{
    cluster::{Cluster, ClusterConfig},
    edge::{self, Edge},
    http,
    http::{Connection, Response},
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    settings::Settings,
    wait,
    websocket::{self, WebSocket},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

const DEADLINE: Duration = Duration::from_secs(60);
const OFFER: (&str, &str) = ("Causeway-Handoff", "1");
const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const HANDOFF: u8 = 0x8b;

/// Two nodes on one Redis that trust this machine's edges.
struct Scene {
    redis: Redis,
    nodes: [Node; 2],
    scratch: Scratch,
}

impl Scene {
    async fn start(name: &str) -> Result<Self> {
        Self::start_with(name, |settings| settings).await
    }

    async fn start_with(name: &str, change: impl Fn(Settings) -> Settings) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
        let start = async |id: &str| {
            let settings = node::settings_with_redis(&redis.url())
                .with("trusted_proxies", json!(["127.0.0.0/8"]))
                .with("broker.publish_queue_wait", json!("2m"));
            let node = Node::start(id, change(settings), scratch.path()).await?;
            node.ready().await?;
            anyhow::Ok(node)
        };
        Ok(Self {
            nodes: [start("a").await?, start("b").await?],
            redis,
            scratch,
        })
    }

    /// What a node counts under this name.
    async fn count(&self, node: usize, name: &str) -> Result<u64> {
        let metrics = http::get(self.nodes[node].admin, "/metrics").await?.text();
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("no {name}"))?;
        Ok(line.trim().parse()?)
    }
}

/// A connection of the edge to a node on which a client is served, frame by frame.
struct Wire {
    stream: TcpStream,
    unread: BytesMut,
}

impl Wire {
    async fn open(
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Self, Response)> {
        Self::ask(address, websocket::handshake(address, path, headers)).await
    }

    async fn open_for_handoff(
        address: SocketAddr,
        headers: &[(&str, &str)],
    ) -> Result<(Self, Response)> {
        let head = websocket::handshake(address, "/.causeway/handoff", headers);
        let head = head.replace("Upgrade: websocket", "Upgrade: causeway-handoff");
        Self::ask(address, head).await
    }

    async fn ask(address: SocketAddr, head: String) -> Result<(Self, Response)> {
        let mut connection = Connection::open(address).await?;
        connection.send(head).await?;
        let response = connection.head().await?;
        let (stream, unread) = connection.into_parts();
        let unread = BytesMut::from(&unread[..]);
        Ok((Self { stream, unread }, response))
    }

    /// The first byte and the payload of the next frame; `None` at the end of the connection.
    async fn frame(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let next = async {
            loop {
                if let [first, length, rest @ ..] = &self.unread[..] {
                    ensure!(*length < 126, "only short frames are expected");
                    let length = usize::from(*length);
                    if length <= rest.len() {
                        let frame = (*first, rest[..length].to_vec());
                        self.unread.advance(2 + length);
                        return Ok(Some(frame));
                    }
                }
                if self.stream.read_buf(&mut self.unread).await? == 0 {
                    return Ok(None);
                }
            }
        };
        timeout(DEADLINE, next).await.context("no frame in time")?
    }

    async fn send(&mut self, first: u8, payload: &str) -> Result<()> {
        let mut frame = vec![first, 0x80 | u8::try_from(payload.len())?];
        frame.extend([0; 4]);
        frame.extend(payload.bytes());
        Ok(self.stream.write_all(&frame).await?)
    }
}

/// A client, and what it was sent.
struct Client {
    number: usize,
    wire: Wire,
    path: String,
    sent: usize,
    received: Vec<String>,
    /// Out of an array of SockJS.
    is_sockjs: bool,
}

/// What the node says to a handoff.
#[derive(Debug, PartialEq)]
enum Outcome {
    Done,
    Kept(String),
    Closed(u16),
}

impl Client {
    async fn connect(number: usize, node: &Node) -> Result<Self> {
        let is_sockjs = number % 2 == 1;
        let path = match is_sockjs {
            true => format!("/sockjs/000/id{number}/websocket"),
            false => "/ws".to_owned(),
        };
        let (wire, response) = Wire::open(node.address, &path, &[OFFER]).await?;
        ensure!(response.status == 101, "{response:?}");
        ensure!(
            response.header("causeway-handoff") == Some("1"),
            "{response:?}"
        );
        Ok(Self {
            number,
            wire,
            path,
            sent: 0,
            received: Vec::new(),
            is_sockjs,
        })
    }

    /// Sends its next message.
    async fn say(&mut self) -> Result<()> {
        let message = format!("c {} {}", self.number, self.sent);
        self.sent += 1;
        let message = match self.is_sockjs {
            true => format!("[\"{message}\"]"),
            false => message,
        };
        self.wire.send(TEXT, &message).await
    }

    /// Takes the next frame; returns it unless it is a message.
    async fn take(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let (first, payload) = self.wire.frame().await?.context("the connection ended")?;
        if first != TEXT {
            return Ok(Some((first, payload)));
        }
        let text = String::from_utf8(payload)?;
        if !self.is_sockjs {
            self.received.push(text);
        } else if let Some(messages) = text.strip_prefix('a') {
            self.received
                .extend(serde_json::from_str::<Vec<String>>(messages)?);
        } else {
            ensure!(text == "o", "{text}");
            ensure!(self.received.is_empty(), "opened twice");
        }
        Ok(None)
    }

    async fn until(&mut self, is_enough: impl Fn(&[String]) -> bool) -> Result<()> {
        while !is_enough(&self.received) {
            if let Some((first, payload)) = self.take().await? {
                ensure!(
                    first == 0x89,
                    "{first:x} {}",
                    String::from_utf8_lossy(&payload)
                );
            }
        }
        Ok(())
    }

    /// Has its node hand it off to `target`.
    async fn order(&mut self, target: &str) -> Result<Outcome> {
        self.wire
            .send(HANDOFF, &format!("handoff {target}"))
            .await?;
        loop {
            let Some((first, payload)) = self.take().await? else {
                continue;
            };
            let text = String::from_utf8_lossy(&payload).into_owned();
            match first {
                HANDOFF if text == "done" => {
                    ensure!(self.wire.frame().await?.is_none(), "it is the last frame");
                    return Ok(Outcome::Done);
                }
                HANDOFF if text == "leaving" => {}
                HANDOFF => {
                    let reason = text.strip_prefix("kept ").context(text.clone())?;
                    return Ok(Outcome::Kept(reason.to_owned()));
                }
                CLOSE => {
                    let code = payload.first_chunk().context("a code")?;
                    return Ok(Outcome::Closed(u16::from_be_bytes(*code)));
                }
                _ => {}
            }
        }
    }

    async fn move_to(&mut self, node: &Node) -> Result<()> {
        let (next, target) = expect(node).await?;
        let outcome = self.order(&target).await?;
        ensure!(outcome == Outcome::Done, "{}: {outcome:?}", self.path);
        self.wire = next;
        Ok(())
    }

    /// The numbers of the publisher.
    fn numbers(&self) -> Result<Vec<usize>> {
        let numbers = self
            .received
            .iter()
            .filter_map(|one| one.strip_prefix("p "));
        Ok(numbers.map(str::parse).collect::<Result<_, _>>()?)
    }
}

/// A client that sends numbers, `p 0` and so on, until it is told to stop.
struct Publishing {
    tasks: JoinSet<Result<(WebSocket, usize)>>,
    enough: watch::Sender<bool>,
}

impl Publishing {
    fn start(mut publisher: WebSocket) -> Self {
        let (enough, mut is_enough) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut number = 0;
            let mut pace = tokio::time::interval(Duration::from_millis(1));
            while !*is_enough.borrow_and_update() {
                pace.tick().await;
                publisher.send(&format!("p {number}")).await?;
                number += 1;
            }
            publisher.send("end").await?;
            Ok((publisher, number))
        });
        Self { tasks, enough }
    }

    /// Sends `end`; returns the client, to be kept, and how many numbers it has sent.
    async fn stop(mut self) -> Result<(WebSocket, usize)> {
        self.enough.send(true)?;
        self.tasks.join_next().await.context("it has a task")??
    }
}

/// Opens the connection on which `node` continues a client; returns it and the target of the handoff.
async fn expect(node: &Node) -> Result<(Wire, String)> {
    let (mut wire, response) = Wire::open_for_handoff(node.address, &[OFFER]).await?;
    ensure!(response.status == 101, "{response:?}");
    ensure!(
        response.header("causeway-handoff") == Some("1"),
        "{response:?}"
    );
    let (first, payload) = wire.frame().await?.context("a frame")?;
    let payload = String::from_utf8(payload)?;
    let target = payload.strip_prefix("ready ").context("a target")?;
    ensure!(first == HANDOFF, "{first:x}");
    Ok((wire, target.to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_handed_off_under_load_miss_nothing_and_get_nothing_twice() -> Result<()> {
    const CLIENTS: usize = 40;
    const MOVES: usize = 6;
    let scene = Scene::start("handoff").await?;
    let [a, b] = &scene.nodes;
    let mut observer = WebSocket::open(b.address, "/ws").await?;
    let publishing = Publishing::start(WebSocket::open(a.address, "/ws").await?);
    let addresses = [a, b].map(|node| (node.id.clone(), node.address));
    let nodes = std::sync::Arc::new(scene.nodes);
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let nodes = std::sync::Arc::clone(&nodes);
        tasks.spawn(async move {
            let mut client = Client::connect(number, &nodes[0]).await?;
            client.until(|received| !received.is_empty()).await?;
            for step in 1..=MOVES {
                client.say().await?;
                client.move_to(&nodes[step % 2]).await?;
                client.say().await?;
                let seen = client.received.len() + number % 7;
                client.until(|received| seen < received.len()).await?;
            }
            // Other clients' messages, the last one too, may overtake its own last one.
            let last = format!("c {number} {}", client.sent - 1);
            client.until(|received| received.contains(&last)).await?;
            anyhow::Ok(client)
        });
    }
    let mut clients = Vec::new();
    while let Some(client) = tasks.join_next().await {
        clients.push(client??);
    }
    let (_publisher, published) = publishing.stop().await?;
    for client in &mut clients {
        client
            .until(|received| received.last().is_some_and(|last| last == "end"))
            .await?;
        let numbers = client.numbers()?;
        let first = *numbers.first().context("a number")?;
        let expected: Vec<_> = (first..published).collect();
        ensure!(
            numbers == expected,
            "{} {}: {:?}",
            client.number,
            client.path,
            gaps(&numbers)
        );
    }
    let mut said: HashMap<String, Vec<usize>> = HashMap::new();
    loop {
        let message = observer.text().await?;
        match message.split(' ').collect::<Vec<_>>()[..] {
            ["c", client, number] => said
                .entry(client.to_owned())
                .or_default()
                .push(number.parse()?),
            ["end"] => break,
            _ => {}
        }
    }
    ensure!(
        said.len() == CLIENTS,
        "{} clients said something",
        said.len()
    );
    for (client, numbers) in &said {
        let expected: Vec<_> = (0..2 * MOVES).collect();
        ensure!(*numbers == expected, "client {client}: {numbers:?}");
    }
    eprintln!(
        "{published} messages, {} handoffs, nodes {addresses:?}",
        CLIENTS * MOVES
    );
    Ok(())
}

/// Where numbers do not go on by one.
fn gaps(numbers: &[usize]) -> Vec<(usize, usize)> {
    let pairs = numbers.windows(2).map(|pair| (pair[0], pair[1]));
    pairs.filter(|(one, next)| one + 1 != *next).collect()
}

/// What a client of the edge was sent until the end, over one connection.
async fn hear_all(number: usize, edge: SocketAddr, started: mpsc::Sender<()>) -> Result<Client> {
    let path = match number % 2 {
        1 => format!("/sockjs/000/edge{number}/websocket"),
        _ => "/ws".to_owned(),
    };
    let (wire, response) = Wire::open(edge, &path, &[OFFER]).await?;
    ensure!(response.status == 101, "{response:?}");
    ensure!(
        response.header("causeway-handoff").is_none(),
        "between edge and node"
    );
    let mut client = Client {
        number,
        wire,
        path,
        sent: 0,
        received: Vec::new(),
        is_sockjs: number % 2 == 1,
    };
    client.until(|received| !received.is_empty()).await?;
    drop(started);
    client
        .until(|received| received.last().is_some_and(|last| last == "end"))
        .await
        .with_context(|| format!("client {number}"))?;
    Ok(client)
}

/// Clients of an edge, each of which hears all that is published.
struct Audience(JoinSet<Result<Client>>);

impl Audience {
    /// Connects `count` clients, and waits until each has heard something.
    async fn start(edge: SocketAddr, count: usize) -> Result<Self> {
        let (started, mut have_started) = mpsc::channel(1);
        let mut clients = JoinSet::new();
        for number in 0..count {
            clients.spawn(hear_all(number, edge, started.clone()));
        }
        drop(started);
        ensure!(have_started.recv().await.is_none(), "all have begun");
        Ok(Self(clients))
    }

    /// Checks that each has heard all from its first message to the last of `published`, once and in order.
    async fn heard_all(mut self, published: usize) -> Result<()> {
        while let Some(client) = self.0.join_next().await {
            let client = client??;
            let numbers = client.numbers()?;
            let first = *numbers.first().context("a number")?;
            let expected: Vec<_> = (first..published).collect();
            ensure!(
                numbers == expected,
                "{} {}: {:?}",
                client.number,
                client.path,
                gaps(&numbers)
            );
        }
        Ok(())
    }
}

/// How many clients the edge has handed off.
async fn moved(cluster: &Cluster) -> Result<usize> {
    let metrics = http::get(cluster.edge.admin, "/metrics").await?.text();
    let moved = metrics
        .lines()
        .find_map(|line| line.strip_prefix("causeway_proxy_handoffs_total{outcome=\"moved\"} "));
    Ok(moved.context("no handoffs are counted")?.parse()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_nodes_disconnects_no_client_of_the_edge() -> Result<()> {
    const CLIENTS: usize = 60;
    let config = ClusterConfig {
        node_settings: |settings| settings.with("trusted_proxies", json!(["127.0.0.0/8"])),
        ..ClusterConfig::three_nodes()
    };
    let mut cluster = Cluster::start("handoff-rolling", config).await?;
    let edge = cluster.edge.address;
    let publishing = Publishing::start(WebSocket::open(edge, "/ws").await?);
    let clients = Audience::start(edge, CLIENTS).await?;

    for number in 1..=3 {
        let node = cluster.node(&format!("n{number}"));
        node.drain();
        let status = node.process.exit(DEADLINE).await?;
        ensure!(status.success(), "n{number} ended with {status}");
        node.restart().await?;
        node.ready().await?;
        cluster
            .edge
            .backend_in_state(&format!("n{number}"), "up")
            .await?;
    }
    let (_publisher, published) = publishing.stop().await?;
    clients.heard_all(published).await?;
    let moved = moved(&cluster).await?;
    // Each client was on one node when that was stopped; some were moved to one that was stopped later.
    ensure!(CLIENTS < moved, "{moved} handoffs");
    eprintln!("{published} messages, {moved} handoffs of {CLIENTS} clients and a publisher");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_with_generations_moves_each_client_once() -> Result<()> {
    const CLIENTS: usize = 40;
    let config = ClusterConfig {
        node_settings: |settings| {
            settings
                .with("trusted_proxies", json!(["127.0.0.0/8"]))
                .with("node.generation", json!(1))
        },
        ..ClusterConfig::three_nodes()
    };
    let mut cluster = Cluster::start("handoff-generations", config).await?;
    let edge = cluster.edge.address;
    // Room for a new node.
    let spare = cluster.node("n3");
    spare.drain();
    ensure!(spare.process.exit(DEADLINE).await?.success(), "n3");
    let publishing = Publishing::start(WebSocket::open(edge, "/ws").await?);
    let clients = Audience::start(edge, CLIENTS).await?;

    for (new, old) in [("n3", Some("n1")), ("n1", Some("n2")), ("n2", None)] {
        let node = cluster.node(new);
        let newer = |settings: Settings| settings.with("node.generation", json!(2));
        node.restart_with(newer).await?;
        cluster.edge.backend_in_state(new, "up").await?;
        let backends = cluster.edge.backends().await?;
        let backends = backends.as_array().context("a list")?;
        let entry = backends.iter().find(|backend| backend["id"] == new);
        ensure!(
            entry.is_some_and(|entry| entry["generation"] == 2),
            "{backends:?}"
        );
        if let Some(old) = old {
            let node = cluster.node(old);
            node.drain();
            let status = node.process.exit(DEADLINE).await?;
            ensure!(status.success(), "{old} ended with {status}");
        }
    }
    let (_publisher, published) = publishing.stop().await?;
    clients.heard_all(published).await?;
    let moved = moved(&cluster).await?;
    ensure!(
        moved == CLIENTS + 1,
        "{moved} handoffs of {CLIENTS} clients and a publisher"
    );
    Ok(())
}

#[tokio::test]
async fn a_handoff_that_the_other_node_refuses_leaves_the_client_where_it_is() -> Result<()> {
    let mut scene = Scene::start("handoff-kept").await?;
    let [a, b] = &scene.nodes;
    let mut client = Client::connect(0, a).await?;
    let (_own, own) = expect(a).await?;
    let (_wire, target) = expect(b).await?;
    let (instance, _) = target.split_once(' ').context("two words")?;
    let unknown = format!("{instance} {}", "0".repeat(32));
    let nowhere = format!("{} {}", "0".repeat(16), "0".repeat(32));
    for (target, reason) in [
        (own, "the client is at this node already"),
        (unknown, "no connection waits for this client"),
        (nowhere, "1 node did not respond in time"),
    ] {
        let outcome = client.order(&target).await?;
        let Outcome::Kept(found) = &outcome else {
            bail!("{target}: {outcome:?}");
        };
        assert!(found.contains(reason) || reason.starts_with('1'), "{found}");
        client.say().await?;
        let said = format!("c 0 {}", client.sent - 1);
        client.until(|received| received.contains(&said)).await?;
    }
    assert_eq!(
        scene.count(0, "causeway_node_handoffs_kept_total").await?,
        3
    );

    let (mut waiting, target) = expect(&scene.nodes[1]).await?;
    scene.nodes[1].drain();
    let nodes = &scene.nodes;
    wait::until("the other node to drain", DEADLINE, async || {
        (nodes[1].readiness().await != Some(200)).then_some(())
    })
    .await?;
    let outcome = client.order(&target).await?;
    assert_eq!(
        outcome,
        Outcome::Kept("the other node drains too".to_owned())
    );
    client.say().await?;
    client
        .until(|received| received.contains(&"c 0 3".to_owned()))
        .await?;
    assert_eq!(waiting.frame().await?, None, "it gives up the connection");
    Ok(())
}

#[tokio::test]
async fn a_handoff_that_fails_half_way_ends_with_1012_on_both_sides() -> Result<()> {
    let mut scene = Scene::start("handoff-lost").await?;
    let [a, b] = &scene.nodes;
    let mut client = Client::connect(0, a).await?;
    client.say().await?;
    client.until(|received| !received.is_empty()).await?;
    // The other node is stopped after it has accepted: the mark passes it by, and it never serves the client.
    let (mut next, target) = expect(b).await?;
    scene.redis.freeze();
    let began = Instant::now();
    let outcome = client.order(&target).await?;
    scene.redis.thaw();
    // Frozen, Redis carries no question: the client stays. A later mark must not move it.
    assert!(
        matches!(outcome, Outcome::Kept(_)),
        "{outcome:?} after {:?}",
        began.elapsed()
    );
    client.say().await?;
    client
        .until(|received| received.contains(&"c 0 1".to_owned()))
        .await?;
    // It hears of the client once Redis goes on, and cannot know that this one stays where it is.
    let end = next.frame().await?;
    let code = end.as_ref().map(|(kind, payload)| (*kind, &payload[..2]));
    assert!(
        matches!(code, Some((CLOSE, [0x03, 0xf4]))),
        "the other node gives the client up: {end:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_draining_node_asks_for_handoffs_and_disconnects_who_is_left() -> Result<()> {
    let mut scene = Scene::start_with("handoff-drain", |settings| {
        settings.with(
            "drain",
            json!({ "lead": "0s", "spread": "100ms", "timeout": "30s" }),
        )
    })
    .await?;
    let mut moved = Client::connect(0, &scene.nodes[0]).await?;
    let mut left = Client::connect(2, &scene.nodes[0]).await?;
    let mut plain = WebSocket::open(scene.nodes[0].address, "/ws").await?;
    // An edge has its connection to the other node before this one drains, or not: both are served.
    scene.nodes[0].drain();
    for client in [&mut moved, &mut left] {
        let notice = loop {
            if let Some(frame) = client.take().await? {
                break frame;
            }
        };
        assert_eq!(notice, (HANDOFF, b"leaving".to_vec()));
    }
    assert_eq!(plain.close_code().await?, Some(1012));
    moved.move_to(&scene.nodes[1]).await?;
    moved.say().await?;
    moved
        .until(|received| received.contains(&"c 0 0".to_owned()))
        .await?;
    let end = loop {
        if let Some(frame) = left.take().await? {
            break frame;
        }
    };
    assert_eq!((end.0, &end.1[..2]), (CLOSE, &1012_u16.to_be_bytes()[..]));
    assert_eq!(
        scene
            .count(1, "causeway_node_handoffs_received_total")
            .await?,
        1
    );
    let status = scene.nodes[0].process.exit(DEADLINE).await?;
    assert!(status.success(), "{status}");
    Ok(())
}

#[tokio::test]
async fn only_a_trusted_edge_that_offers_it_hands_off() -> Result<()> {
    let untrusting = |settings: Settings| settings.with("trusted_proxies", json!(["192.0.2.0/24"]));
    let scene = Scene::start_with("handoff-untrusted", untrusting).await?;
    let node = &scene.nodes[0];
    let (mut wire, response) = Wire::open(node.address, "/ws", &[OFFER]).await?;
    assert_eq!(response.status, 101);
    assert_eq!(response.header("causeway-handoff"), None);
    wire.send(HANDOFF, "handoff x y").await?;
    let (first, payload) = wire.frame().await?.context("a close frame")?;
    assert_eq!((first, &payload[..2]), (CLOSE, &1002_u16.to_be_bytes()[..]));
    let (_, response) = Wire::open_for_handoff(node.address, &[OFFER]).await?;
    assert_eq!(response.status, 404);

    let scene = Scene::start("handoff-trusted").await?;
    let node = &scene.nodes[0];
    let (_, response) = Wire::open(node.address, "/ws", &[]).await?;
    assert_eq!(response.header("causeway-handoff"), None, "not offered");
    let (_, response) = Wire::open_for_handoff(node.address, &[]).await?;
    assert_eq!(response.status, 400);
    let (_, response) = Wire::open(node.address, "/.causeway/handoff", &[OFFER]).await?;
    assert_eq!(response.status, 400);
    for (first, payload) in [
        (HANDOFF, "handoff x y"),
        (HANDOFF, "leaving"),
        (0x8c, "handoff x y"),
        (0x0b, "handoff x y"),
    ] {
        let (mut wire, _) = Wire::open(node.address, "/ws", &[OFFER]).await?;
        wire.send(first, payload).await?;
        let (first, payload) = wire.frame().await?.context("a close frame")?;
        assert_eq!((first, &payload[..2]), (CLOSE, &1002_u16.to_be_bytes()[..]));
    }
    // Within a fragmented message.
    let (mut wire, _) = Wire::open(node.address, "/ws", &[OFFER]).await?;
    wire.send(0x01, "begin").await?;
    wire.send(HANDOFF, "handoff x y").await?;
    let (first, _) = wire.frame().await?.context("a close frame")?;
    assert_eq!(first, CLOSE);
    Ok(())
}

#[tokio::test]
async fn a_client_of_the_edge_takes_part_in_no_handoff() -> Result<()> {
    let scene = Scene::start("handoff-client").await?;
    let [a, b] = &scene.nodes;
    let settings = edge::settings(&[("a", a.address)]);
    let edge = Edge::start(&settings, scene.scratch.path()).await?;
    edge.backend_in_state("a", "up").await?;
    let (_waiting, target) = expect(b).await?;
    let order = format!("handoff {target}");

    // It neither waits for a client of another node, nor takes one over with a token that it has got hold of.
    let (_, response) = Wire::open_for_handoff(edge.address, &[OFFER]).await?;
    ensure!(response.status != 101, "{response:?}");
    let (_, response) = Wire::open(edge.address, "/.causeway/handoff", &[OFFER]).await?;
    ensure!(response.status == 404, "{response:?}");
    for (first, payload) in [
        (HANDOFF, order.as_str()),
        (HANDOFF, "leaving"),
        (0x0b, &order),
    ] {
        let (mut wire, response) = Wire::open(edge.address, "/ws", &[OFFER]).await?;
        ensure!(response.status == 101, "{response:?}");
        ensure!(
            response.header("causeway-handoff").is_none(),
            "{response:?}"
        );
        wire.send(first, payload).await?;
        let (first, payload) = wire.frame().await?.context("a close frame")?;
        assert_eq!((first, &payload[..2]), (CLOSE, &1002_u16.to_be_bytes()[..]));
    }
    ensure!(scene.count(0, "causeway_node_handoffs_sent_total").await? == 0);
    Ok(())
}

#[tokio::test]
async fn an_echo_client_moves_too_and_a_connection_without_a_client_ends() -> Result<()> {
    let scene = Scene::start("handoff-echo").await?;
    let [a, b] = &scene.nodes;
    let path = "/echo/000/one/websocket";
    let (wire, response) = Wire::open(a.address, path, &[OFFER]).await?;
    assert_eq!(response.header("causeway-handoff"), Some("1"));
    let mut client = Client {
        number: 1,
        wire,
        path: path.to_owned(),
        sent: 0,
        received: Vec::new(),
        is_sockjs: true,
    };
    for (sent, node) in [b, a, b].into_iter().enumerate() {
        client.say().await?;
        let said = format!("c 1 {sent}");
        client.until(|received| received.contains(&said)).await?;
        client.move_to(node).await?;
    }
    let (mut idle, _) = expect(b).await?;
    assert_eq!(idle.frame().await?, None, "nothing came for it");
    Ok(())
}
