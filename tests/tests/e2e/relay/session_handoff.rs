//! A SockJS session over HTTP continues on another node: nothing is lost, repeated or out of order, and its client notices nothing.
//!
//! In the tests of the nodes the edge is played by the test.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    edge::{self, Edge},
    http,
    http::{Connection, Response},
    loopback,
    node::{self, Node},
    process::{Process, Signal},
    programs,
    redis::Redis,
    scratch::Scratch,
    settings::Settings,
    wait,
    websocket::{self, WebSocket},
};
use serde_json::json;
use tokio::process::Command;

const DEADLINE: Duration = Duration::from_secs(60);
const SESSION: &str = "/relay/000/a-session";
const EDGE: (&str, &str) = ("Causeway-Handoff", "1");
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Two nodes on one Redis, with a relay and an echo endpoint over SockJS whose sessions wait for busy machines.
struct Scene {
    redis: Redis,
    nodes: [Node; 2],
    /// Of each node.
    settings: Settings,
    scratch: Scratch,
}

impl Scene {
    async fn start(name: &str) -> Result<Self> {
        Self::start_trusting(name, "127.0.0.0/8").await
    }

    async fn start_trusting(name: &str, trusted: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let redis = Redis::start(loopback::own(), scratch.path()).await?;
        let endpoint = |path: &str, mode: &str| {
            json!({
                "path": path, "protocol": "sockjs", "mode": mode,
                "disconnect_delay": "2m", "response_limit": "64MiB",
            })
        };
        let settings = node::settings_with_redis(&redis.url())
            .with("listen", json!(loopback::own_any_port()))
            .with("trusted_proxies", json!([trusted]))
            .with("drain.timeout", json!("2m"))
            .with(
                "endpoints",
                json!([endpoint("/relay", "relay"), endpoint("/echo", "echo")]),
            );
        let node = async |id: &str| start(id, &settings, &scratch).await;
        Ok(Self {
            nodes: [node("a").await?, node("b").await?],
            settings,
            redis,
            scratch,
        })
    }

    /// Starts another node.
    async fn node(&self, id: &str) -> Result<Node> {
        start(id, &self.settings, &self.scratch).await
    }

    fn at(&self, node: usize) -> SocketAddr {
        self.nodes[node].address
    }

    /// An edge in front of both.
    async fn edge(&self, directory: &str) -> Result<Edge> {
        self.edge_with(directory, &[]).await
    }

    /// An edge in front of these nodes too.
    async fn edge_with(&self, directory: &str, more: &[(&str, SocketAddr)]) -> Result<Edge> {
        let [a, b] = &self.nodes;
        let backends = [&[("a", a.address), ("b", b.address)], more].concat();
        let settings = edge::settings(&backends)
            .with("admin.token", json!(TOKEN))
            .with("affinity.sockjs_path", json!(true));
        let directory = self.scratch.path().join(directory);
        std::fs::create_dir(&directory)?;
        let edge = Edge::start(&settings, &directory).await?;
        for (id, _) in backends {
            edge.backend_in_state(id, "up").await?;
        }
        Ok(edge)
    }

    async fn count(&self, node: usize, name: &str) -> Result<u64> {
        let metrics = http::get(self.nodes[node].admin, "/metrics").await?.text();
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("no {name}"))?.trim().parse()?)
    }
}

async fn start(id: &str, settings: &Settings, scratch: &Scratch) -> Result<Node> {
    let node = Node::start(id, settings.clone(), scratch.path()).await?;
    node.ready().await?;
    Ok(node)
}

async fn post(address: SocketAddr, transport: &str, body: &str) -> Result<Response> {
    let path = format!("{SESSION}/{transport}");
    http::request(address, "POST", &path, &[EDGE], body.as_bytes()).await
}

async fn poll(address: SocketAddr) -> Result<String> {
    let response = post(address, "xhr", "").await?;
    ensure!(response.status == 200, "{response:?}");
    Ok(response.text())
}

async fn send(address: SocketAddr, message: &str) -> Result<()> {
    let response = post(address, "xhr_send", &format!("[\"{message}\"]")).await?;
    ensure!(response.status == 204, "{response:?}");
    Ok(())
}

/// The messages of polls until there are `count`. Heartbeats are left out.
async fn messages(address: SocketAddr, count: usize) -> Result<Vec<String>> {
    let mut messages = Vec::new();
    while messages.len() < count {
        let frame = poll(address).await?;
        match frame.trim().strip_prefix('a') {
            Some(array) => messages.extend(serde_json::from_str::<Vec<String>>(array)?),
            None => ensure!(frame == "h\n", "{frame:?}"),
        }
    }
    Ok(messages)
}

/// Has `node` expect a client: the connection, which names the handoff while it is open, and the target.
async fn expect(node: SocketAddr) -> Result<(Connection, String)> {
    let head = websocket::handshake(node, "/.causeway/handoff", &[EDGE]);
    let mut connection = Connection::open(node).await?;
    connection
        .send(head.replace("Upgrade: websocket", "Upgrade: causeway-handoff"))
        .await?;
    let response = connection.head().await?;
    ensure!(response.status == 101, "{response:?}");
    let length = connection.bytes(2).await?[1];
    let payload = String::from_utf8(connection.bytes(length.into()).await?)?;
    let target = payload.strip_prefix("ready ").context("a target")?;
    Ok((connection, target.to_owned()))
}

/// Asks the node to hand the session off.
async fn hand_off(node: SocketAddr, session: &str, target: &str) -> Result<Response> {
    let headers = [("Causeway-Handoff", target), ("Causeway-Session", session)];
    http::request(node, "POST", "/.causeway/handoff", &headers, b"").await
}

#[tokio::test]
async fn a_session_between_two_polls_takes_its_unread_messages_with_it() -> Result<()> {
    let scene = Scene::start("session-handoff-unread").await?;
    let (a, b) = (scene.at(0), scene.at(1));
    assert_eq!(poll(a).await?, "o\n");
    let mut other = WebSocket::open(b, "/relay/websocket").await?;
    for text in ["1", "2", "3"] {
        other.send(text).await?;
        assert_eq!(other.text().await?, text);
    }
    // They wait at the node that has the session.
    send(a, "4").await?;
    assert_eq!(other.text().await?, "4");

    let (_connection, target) = expect(b).await?;
    let response = hand_off(a, "a-session", &target).await?;
    assert_eq!(response.status, 200, "{}", response.text());
    other.send("5").await?;
    assert_eq!(messages(b, 5).await?, ["1", "2", "3", "4", "5"]);
    send(b, "6").await?;
    assert_eq!(messages(b, 1).await?, ["6"]);
    assert_eq!(other.text().await?, "5");
    assert_eq!(other.text().await?, "6");

    // What was under way to the first node.
    assert_eq!(poll(a).await?, "h\n", "it is to ask again");
    send(a, "7").await?;
    send(b, "8").await?;
    assert_eq!(messages(b, 2).await?, ["7", "8"]);
    let (instance, _) = target.split_once(' ').context("two words")?;
    let (_connection, another) = expect(b).await?;
    let response = hand_off(a, "a-session", &another).await?;
    assert_eq!(response.status, 307, "{}", response.text());
    assert_eq!(response.header("causeway-handoff"), Some(instance));
    assert_eq!(
        scene.count(0, "causeway_node_handoffs_sent_total").await?,
        1
    );
    assert_eq!(
        scene
            .count(1, "causeway_node_handoffs_received_total")
            .await?,
        1
    );
    assert_eq!(
        scene
            .count(0, "causeway_node_clients{transport=\"sockjs_http\"}")
            .await?,
        0
    );
    // It is known there for a time that it has moved; one node counts it.
    assert_eq!(scene.count(0, "causeway_node_sessions ").await?, 0);
    assert_eq!(scene.count(1, "causeway_node_sessions ").await?, 1);
    Ok(())
}

#[tokio::test]
async fn receivers_end_in_order_when_their_session_is_handed_off() -> Result<()> {
    let scene = Scene::start("session-handoff-receivers").await?;
    let (a, b) = (scene.at(0), scene.at(1));
    assert_eq!(poll(a).await?, "o\n");
    for (transport, prelude, end) in [
        ("xhr", "", "h\n"),
        ("xhr_streaming", "hhh", "h\n"),
        ("eventsource", "\r\n", "data: h\r\n\r\n"),
    ] {
        for (from, to) in [(a, b), (b, a)] {
            let method = if transport == "eventsource" {
                "GET"
            } else {
                "POST"
            };
            let mut receiver = Connection::open(from).await?;
            let path = format!("{SESSION}/{transport}");
            receiver
                .send(format!(
                    "{method} {path} HTTP/1.1\r\nHost: {from}\r\nContent-Length: 0\r\n\
                     Connection: close\r\nCauseway-Handoff: 1\r\n\r\n"
                ))
                .await?;
            let streaming = async {
                if transport == "xhr" {
                    return anyhow::Ok(None);
                }
                let head = receiver.head().await?;
                ensure!(head.status == 200, "{head:?}");
                let first = String::from_utf8(receiver.chunk().await?)?;
                ensure!(first.starts_with(prelude), "{transport}: {first:?}");
                Ok(Some(head))
            };
            let head = streaming.await?;
            let (_connection, target) = expect(to).await?;
            // A poll may not have arrived yet: then it is told to ask again all the same.
            let response = hand_off(from, "a-session", &target).await?;
            ensure!(response.status == 200, "{transport}: {}", response.text());
            let rest = match head {
                Some(head) => receiver.body_of(&head).await?,
                None => receiver.response().await?.body,
            };
            assert_eq!(String::from_utf8(rest)?, end, "{transport}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_handed_off_stays_and_the_edge_is_told_why() -> Result<()> {
    let mut scene = Scene::start("session-handoff-kept").await?;
    let (a, b) = (scene.at(0), scene.at(1));
    let (_connection, target) = expect(b).await?;
    let missing = hand_off(a, "no-session", &target).await?;
    assert_eq!(missing.status, 404, "{}", missing.text());
    for wrong in ["", "1", "x y", &format!("{target} x"), &target[1..]] {
        let refused = hand_off(a, "a-session", wrong).await?;
        assert_eq!(refused.status, 400, "{wrong:?}: {}", refused.text());
    }
    // An echo's messages are known to its own node alone.
    let echo = http::request(a, "POST", "/echo/000/echoes/xhr", &[EDGE], b"").await?;
    assert_eq!(echo.text(), "o\n");
    assert_eq!(hand_off(a, "echoes", &target).await?.status, 404);

    assert_eq!(poll(a).await?, "o\n");
    let (_own_connection, own) = expect(a).await?;
    let (instance, _) = target.split_once(' ').context("two words")?;
    let unknown = format!("{instance} {}", "0".repeat(32));
    for (target, reason) in [
        (own, "the client is at this node already"),
        (unknown, "no connection waits for this client"),
    ] {
        let kept = hand_off(a, "a-session", &target).await?;
        assert_eq!(kept.status, 409);
        assert!(kept.text().contains(reason), "{}", kept.text());
        send(a, reason).await?;
        assert_eq!(messages(a, 1).await?, [reason]);
    }
    // The other node has one of that name.
    assert_eq!(poll(b).await?, "o\n");
    let kept = hand_off(a, "a-session", &target).await?;
    assert!(
        kept.text().contains("has such a session"),
        "{}",
        kept.text()
    );
    send(a, "here").await?;
    assert_eq!(messages(a, 1).await?, ["here"]);
    // It may have begun before the node heard what was said last.
    let mut heard = Vec::new();
    while heard.last().is_none_or(|last| last != "here") {
        heard.extend(messages(b, 1).await?);
    }

    // Redis does not reply.
    let (_connection, target) = expect(b).await?;
    scene.redis.freeze();
    let kept = hand_off(a, "a-session", &target).await;
    scene.redis.thaw();
    assert_eq!(kept?.status, 409);
    send(a, "still here").await?;
    assert_eq!(messages(a, 1).await?, ["still here"]);
    assert_eq!(
        scene.count(0, "causeway_node_handoffs_kept_total").await?,
        4
    );

    let scene = Scene::start_trusting("session-handoff-untrusted", "192.0.2.0/24").await?;
    let a = scene.at(0);
    assert_eq!(poll(a).await?, "o\n");
    let refused = hand_off(a, "a-session", &target).await?;
    assert_eq!(refused.status, 404);
    Ok(())
}

#[tokio::test]
async fn each_edge_finds_a_session_that_another_one_has_had_handed_off() -> Result<()> {
    let scene = Scene::start("session-handoff-edges").await?;
    let edges = [scene.edge("first").await?, scene.edge("second").await?];
    assert_eq!(poll(edges[0].address).await?, "o\n");
    send(edges[0].address, "1").await?;
    assert_eq!(messages(edges[0].address, 1).await?, ["1"]);
    // Both find the node of the session by its name alone.
    send(edges[1].address, "2").await?;
    let response = post(edges[1].address, "xhr", "").await?;
    assert_eq!(response.text(), "a[\"2\"]\n");
    let home = response
        .header("causeway-node")
        .context("a node")?
        .to_owned();

    drain(&edges, &home).await?;
    for (edge, text) in [(0, "3"), (1, "4"), (0, "5")] {
        let address = edges[edge].address;
        send(address, text).await?;
        let response = post(address, "xhr", "").await?;
        assert_eq!(response.text(), format!("a[\"{text}\"]\n"), "edge {edge}");
        assert_ne!(response.header("causeway-node"), Some(&*home));
    }
    Ok(())
}

/// Has each edge drain the node.
async fn drain(edges: &[Edge], node: &str) -> Result<()> {
    for edge in edges {
        let path = format!("/backends/{node}/drain");
        let bearer = format!("Bearer {TOKEN}");
        let headers = [
            ("Authorization", &*bearer),
            ("Content-Type", "application/json"),
        ];
        let drained = http::request(edge.admin, "POST", &path, &headers, b"{}").await?;
        ensure!(drained.status == 200, "{}", drained.text());
    }
    Ok(())
}

#[tokio::test]
async fn an_edge_finds_sessions_that_another_one_has_had_handed_off_among_many_nodes() -> Result<()>
{
    let scene = Scene::start("session-handoff-many-nodes").await?;
    let mut more = Vec::new();
    for id in ["c", "d", "e", "f", "g", "h"] {
        more.push((id, scene.node(id).await?));
    }
    let more: Vec<_> = more.iter().map(|(id, node)| (*id, node.address)).collect();
    let edges = [
        scene.edge_with("first", &more).await?,
        scene.edge_with("second", &more).await?,
    ];
    let poll = async |edge: &Edge, session: &str| {
        let path = format!("/relay/000/{session}/xhr");
        http::request(edge.address, "POST", &path, &[], b"").await
    };
    let mut sessions = Vec::new();
    let mut numbers = 0..;
    while sessions.len() < 6 {
        let session = format!("s{}", numbers.next().context("a number")?);
        let opened = poll(&edges[0], &session).await?;
        ensure!(opened.text() == "o\n", "{opened:?}");
        if opened.header("causeway-node") == Some("a") {
            // Both have to know where it is.
            let path = format!("/relay/000/{session}/xhr_send");
            let known = http::request(edges[1].address, "POST", &path, &[], b"[\"0\"]").await?;
            ensure!(known.header("causeway-node") == Some("a"), "{known:?}");
            sessions.push(session);
        }
    }
    drain(&edges, "a").await?;
    for (number, session) in sessions.iter().enumerate() {
        let path = format!("/relay/000/{session}/xhr_send");
        for (edge, text) in [(0, "first"), (1, "second")] {
            let text = format!("{number} {text}");
            let body = format!("[\"{text}\"]");
            let address = edges[edge].address;
            let sent = http::request(address, "POST", &path, &[], body.as_bytes()).await?;
            ensure!(sent.status == 204, "{sent:?}");
            let mut heard = String::new();
            while !heard.contains(&text) {
                let response = poll(&edges[edge], session).await?;
                assert_ne!(response.header("causeway-node"), Some("a"), "edge {edge}");
                ensure!(response.status == 200, "{response:?}");
                heard = response.text();
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_node_that_stops_hands_its_sessions_off_and_closes_those_that_come_without_an_edge()
-> Result<()> {
    let mut scene = Scene::start("session-handoff-drain").await?;
    let edge = scene.edge("edge").await?;
    let opened = post(edge.address, "xhr", "").await?;
    assert_eq!(opened.text(), "o\n");
    let home = opened.header("causeway-node").context("a node")?.to_owned();
    let home = usize::from(home == "b");
    let direct = "/relay/000/without-an-edge/xhr";
    let at_home = scene.at(home);
    let opened = http::request(at_home, "POST", direct, &[], b"").await?;
    assert_eq!(opened.text(), "o\n");

    scene.nodes[home].drain();
    let mut sent = 0;
    wait::until(
        "the session to be at the other node",
        DEADLINE,
        async || {
            send(edge.address, &sent.to_string()).await.ok()?;
            let response = post(edge.address, "xhr", "").await.ok()?;
            if response.text() == format!("a[\"{sent}\"]\n") {
                sent += 1;
            }
            let node = response.header("causeway-node")?;
            (node != scene.nodes[home].id).then_some(())
        },
    )
    .await?;
    for text in ["x", "y"] {
        send(edge.address, text).await?;
        assert_eq!(messages(edge.address, 1).await?, [text]);
    }
    wait::until("the other session to be closed", DEADLINE, async || {
        let response = http::request(at_home, "POST", direct, &[], b"")
            .await
            .ok()?;
        (response.text() == "c[1012,\"service restart\"]\n").then_some(())
    })
    .await?;
    scene.nodes[home].process.exit(DEADLINE).await?;
    Ok(())
}

/// A receiver of the session whose response has begun.
struct Streaming {
    connection: Connection,
    head: Response,
}

impl Streaming {
    async fn open(address: SocketAddr) -> Result<Self> {
        let mut connection = Connection::open(address).await?;
        let head = format!(
            "POST {SESSION}/xhr_streaming HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n"
        );
        connection.send(head).await?;
        let head = connection.head().await?;
        ensure!(head.status == 200, "{head:?}");
        Ok(Self { connection, head })
    }

    /// What comes up to the end of the response, which is complete.
    async fn rest(mut self) -> Result<String> {
        let rest = self.connection.body_of(&self.head).await?;
        Ok(String::from_utf8(rest)?.trim_start_matches("hh").to_owned())
    }
}

#[tokio::test]
async fn the_response_to_a_receiver_ends_in_order_when_its_edge_is_replaced_or_drains() -> Result<()>
{
    let scene = Scene::start("session-receiver-ends").await?;
    let socket = scene.scratch.path().join("edge.sock");
    let settings = edge::settings(&[("a", scene.at(0)), ("b", scene.at(1))])
        .with("affinity.sockjs_path", json!(true))
        .with("drain.timeout", json!("2m"))
        .with("takeover.socket", json!(socket));
    let first = Edge::start(&settings, scene.scratch.path()).await?;
    for id in ["a", "b"] {
        first.backend_in_state(id, "up").await?;
    }
    wait::until("the takeover socket", DEADLINE, async || {
        first
            .process
            .log()
            .contains("takeover socket")
            .then_some(())
    })
    .await?;
    assert_eq!(poll(first.address).await?, "o\n");

    let receiver = Streaming::open(first.address).await?;
    let mut command = Command::new(programs::ours("causeway-proxy")?);
    let file = scene.scratch.write("second.yaml", &settings.text())?;
    command.arg("--config").arg(file);
    command.arg("--takeover").arg(socket);
    let mut second = Process::spawn("second", command, scene.scratch.path())?;
    let rest = receiver.rest().await?;
    ensure!(rest.ends_with("h\n"), "{rest:?}");
    send(first.address, "between").await?;
    assert_eq!(messages(first.address, 1).await?, ["between"]);
    wait::until("the end of the takeover", DEADLINE, async || {
        second.log().contains("takeover complete").then_some(())
    })
    .await?;

    let receiver = Streaming::open(first.address).await?;
    second.signal(Signal::Terminate);
    let rest = receiver.rest().await?;
    ensure!(rest.ends_with("h\n"), "{rest:?}");
    second.exit(DEADLINE).await?;
    // The session is open: another edge would go on with it.
    let mut sessions = 0;
    for node in 0..2 {
        sessions += scene.count(node, "causeway_node_sessions ").await?;
    }
    assert_eq!(sessions, 1);
    Ok(())
}
