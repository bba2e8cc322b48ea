//! Nodes that have as many connections as they may have, behind an edge.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    edge::{self, Edge},
    http::{self, Connection},
    node::{self, Node},
    scratch::Scratch,
    wait,
    websocket::{WebSocket, handshake},
};
use serde_json::json;

/// Connections of each node.
const CONNECTIONS: usize = 12;

/// Sessions over polling, of both nodes together.
const SESSIONS: usize = 6;

/// After so many refusals in a row both nodes are full, whatever was on its way.
const REFUSALS: usize = 20;

/// For how many probes of each node all has to go well.
const PROBES: u64 = 20;

const API_KEY: &str = "the key of the server API";

/// A SockJS session of a client that polls, with its cookie.
struct Session {
    path: String,
    cookie: String,
}

impl Session {
    async fn open(edge: SocketAddr, number: usize) -> Result<Self> {
        let path = format!("/echo/000/session-{number}");
        let opened = http::request(edge, "POST", &format!("{path}/xhr"), &[], b"").await?;
        ensure!(opened.text() == "o\n", "{opened:?}");
        let cookie = opened.cookie("causeway").context("it is bound")?;
        let cookie = format!("causeway={cookie}");
        Ok(Self { path, cookie })
    }

    /// Sends a message and polls until it is back.
    async fn echo(&self, edge: SocketAddr) -> Result<()> {
        let headers = [("Cookie", self.cookie.as_str())];
        let post = async |what: &str, body: &[u8]| {
            http::request(
                edge,
                "POST",
                &format!("{}/{what}", self.path),
                &headers,
                body,
            )
            .await
        };
        let sent = post("xhr_send", b"[\"hello\"]").await?;
        ensure!(sent.status == 204, "{sent:?}");
        loop {
            let polled = post("xhr", b"").await?;
            ensure!(polled.status == 200, "{polled:?}");
            match polled.text().as_str() {
                "a[\"hello\"]\n" => return Ok(()),
                "h\n" => {}
                other => anyhow::bail!("unexpected {other:?}"),
            }
        }
    }
}

/// The response to a new client that wants a WebSocket.
async fn new_client(edge: SocketAddr) -> Result<Result<WebSocket, http::Response>> {
    let mut connection = Connection::open(edge).await?;
    connection
        .send(handshake(edge, "/echo/websocket", &[]))
        .await?;
    let response = connection.head().await?;
    if response.status != 101 {
        return Ok(Err(response));
    }
    Ok(Ok(WebSocket::begin(connection, response).await?))
}

async fn sum_of(admin: SocketAddr, prefix: &str, with: &str) -> Result<u64> {
    let page = http::get(admin, "/metrics").await?;
    ensure!(page.status == 200, "{page:?}");
    let page = page.text();
    let lines = page
        .lines()
        .filter(|line| line.starts_with(prefix) && line.contains(with));
    let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
    Ok(values.sum())
}

#[tokio::test]
async fn an_edge_before_full_nodes_keeps_both_and_their_clients_and_refuses_new_ones() -> Result<()>
{
    let scratch = Scratch::new("full")?;
    let settings = node::patient(node::settings())
        .with("limits.connections", json!(CONNECTIONS))
        .with("api.keys", json!([API_KEY]));
    let nodes = [
        Node::start("n1", settings.clone(), scratch.path()).await?,
        Node::start("n2", settings, scratch.path()).await?,
    ];
    let backends = [("n1", nodes[0].address), ("n2", nodes[1].address)];
    let settings = edge::settings(&backends).with(
        "health",
        json!({ "interval": "100ms", "fast_interval": "100ms" }),
    );
    let edge = Edge::start(&settings, scratch.path()).await?;
    for node in &nodes {
        edge.backend_in_state(&node.id, "up").await?;
    }
    let transitions = sum_of(edge.admin, "causeway_proxy_transitions_total", "").await?;

    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        sessions.push(Session::open(edge.address, number).await?);
    }
    let mut clients = Vec::new();
    let mut refusals = 0;
    while refusals < REFUSALS {
        match new_client(edge.address).await? {
            Ok(client) => {
                clients.push(client);
                refusals = 0;
            }
            Err(refused) => {
                ensure!(refused.status == 503, "{refused:?}");
                ensure!(refused.header("retry-after").is_some(), "{refused:?}");
                refusals += 1;
            }
        }
    }
    ensure!(
        CONNECTIONS < clients.len(),
        "both nodes have clients: {}",
        clients.len()
    );

    let probes = async || sum_of(edge.admin, "causeway_proxy_probes_total", "").await;
    let enough = probes().await? + 2 * PROBES;
    while probes().await? < enough {
        for session in &sessions {
            session.echo(edge.address).await?;
        }
        for client in &mut clients {
            client.send("hello").await?;
            ensure!(client.text().await? == "hello");
        }
        ensure!(new_client(edge.address).await?.is_err(), "there is no room");
        for node in &nodes {
            for path in ["/live", "/ready", "/metrics", "/slowest"] {
                let response = http::get(node.admin, path).await?;
                ensure!(response.status == 200, "{path}: {response:?}");
            }
            for path in ["/live", "/ready"] {
                let response = http::get(node.address, path).await?;
                ensure!(response.status == 200, "{path}: {response:?}");
            }
            let key = [("X-API-Key", API_KEY)];
            let info = http::request(node.address, "POST", "/api/info", &key, b"{}").await?;
            ensure!(info.status == 200, "{info:?}");
        }
    }
    let after = sum_of(edge.admin, "causeway_proxy_transitions_total", "").await?;
    ensure!(transitions == after, "both nodes were up all the time");

    drop(clients);
    wait::until("room for a new client", wait::SOON, async || {
        new_client(edge.address).await.ok()?.ok()
    })
    .await?;
    Ok(())
}
