//! A client that was disconnected because it reads too slowly is one line of the log, whatever its endpoint: with the client,
//! its user and what was queued for it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use causeway_tests::harness::{
    http::Connection,
    node::{self, Node},
    process::json_lines,
    scratch::Scratch,
    subscriber::{Subscriber, token},
    websocket::{WebSocket, handshake},
};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

const SECRET: &str = "a secret of at least thirty-two bytes";
const API_KEY: &str = "the key of the application";

/// Bytes of one message, and how many there are at most: far more than kernels keep.
const MESSAGE: usize = 60 << 10;
const TIMES_MAX: usize = 1000;

async fn start(scratch: &Scratch) -> Result<Node> {
    let relay = |path: &str, protocol: &str| {
        json!({
            "path": path, "protocol": protocol, "mode": "relay", "channel": "global",
            "outbox": "64KiB", "message_size": "128KiB",
        })
    };
    let channels = json!({ "path": "/connection", "mode": "channels", "outbox": "64KiB" });
    let settings = node::settings()
        .with(
            "endpoints",
            json!([
                channels,
                relay("/ws", "websocket"),
                relay("/sockjs", "sockjs")
            ]),
        )
        .with(
            "auth.keys",
            json!([{ "algorithm": "HS256", "key": SECRET }]),
        )
        .with("api.keys", json!([API_KEY]))
        .with(
            "channels.namespaces",
            json!([{ "name": "c", "subscribe": "anyone" }]),
        );
    let node = Node::start("node", settings, scratch.path()).await?;
    node.ready().await?;
    Ok(node)
}

/// The line about a slow client, if there is one.
fn slow(node: &Node) -> Option<Value> {
    let lines = json_lines(&node.process.log()).into_iter();
    let mut fields = lines.map(|mut line| line["fields"].take());
    fields.find(|fields| fields["message"] == "client disconnected: it reads too slowly")
}

async fn publish_until_slow(
    node: &Node,
    mut publish: impl AsyncFnMut() -> Result<()>,
) -> Result<Value> {
    for _ in 0..TIMES_MAX {
        publish().await?;
        if let Some(line) = slow(node) {
            return Ok(line);
        }
    }
    bail!("no client was too slow for {TIMES_MAX} messages")
}

/// A connection whose kernel takes little of what is not read.
async fn unread(node: SocketAddr) -> Result<Connection> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(16 << 10)?;
    Ok(Connection::of(socket.connect(node).await?))
}

async fn upgrade(node: SocketAddr, path: &str) -> Result<WebSocket> {
    let mut connection = unread(node).await?;
    connection.send(handshake(node, path, &[])).await?;
    let response = connection.head().await?;
    WebSocket::begin(connection, response).await
}

#[tokio::test]
async fn of_a_channel_client_the_line_has_the_id_and_the_user() -> Result<()> {
    let scratch = Scratch::new("slow-channels")?;
    let node = start(&scratch).await?;
    let mut reader = upgrade(node.address, "/connection/websocket").await?;
    let connect = json!({ "id": 1, "connect": { "token": token(SECRET, "ann") } });
    reader.send(&connect.to_string()).await?;
    let connected: Value = serde_json::from_str(&reader.text().await?)?;
    let id = connected["connect"]["client"].as_str().context("an id")?;
    let subscribe = json!({ "id": 2, "subscribe": { "channel": "c:x" } });
    reader.send(&subscribe.to_string()).await?;
    reader.text().await?;
    let publication = json!({ "channel": "c:x", "data": "x".repeat(MESSAGE) });
    let line = publish_until_slow(&node, async || {
        causeway_tests::harness::server_api::call(node.address, API_KEY, "publish", &publication)
            .await
            .map(drop)
    })
    .await?;
    ensure!(line["client"] == id && line["user"] == "ann", "{line}");
    ensure!(line["endpoint"] == "/connection", "{line}");
    ensure!(line["transport"] == "channels_json", "{line}");
    ensure!(line["bytes_queued"].as_u64() > Some(64 << 10), "{line}");
    // It is not one for clients that leave on their own.
    drop(Subscriber::connect(node.address, &token(SECRET, "bob")).await?);
    Ok(())
}

#[tokio::test]
async fn of_relay_and_sockjs_clients_it_has_the_address() -> Result<()> {
    for (path, endpoint, transport) in [
        ("/ws", "/ws", "websocket"),
        (
            "/sockjs/000/websocket/websocket",
            "/sockjs",
            "sockjs_websocket",
        ),
        ("/sockjs/000/polling/xhr", "/sockjs", "sockjs_http"),
    ] {
        let scratch = Scratch::new("slow-relay")?;
        let node = start(&scratch).await?;
        let _reader = if path.ends_with("/xhr") {
            let mut connection = unread(node.address).await?;
            let open = format!("POST {path} HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n");
            connection.send(open).await?;
            connection.response().await?;
            Err(connection)
        } else {
            Ok(upgrade(node.address, path).await?)
        };
        let mut publisher = WebSocket::open(node.address, "/ws").await?;
        let message = "x".repeat(MESSAGE);
        let line = publish_until_slow(&node, async || {
            publisher.send(&message).await?;
            publisher.text().await.map(drop) // It reads.
        })
        .await
        .with_context(|| format!("of {path}"))?;
        let client = line["client"].as_str().unwrap_or_default();
        ensure!(client.starts_with("127.0.0.1"), "{line}");
        ensure!(line["user"] == "" && line["endpoint"] == endpoint, "{line}");
        ensure!(line["transport"] == transport, "{line}");
        ensure!(line["bytes_queued"].as_u64() > Some(64 << 10), "{line}");
    }
    Ok(())
}
