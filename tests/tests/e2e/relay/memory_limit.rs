//! A node near its `limits.memory`: clients for which most waits are disconnected, whatever their endpoint, and once it is enough
//! nobody else has to, however long the allocator takes to give the memory back.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use causeway_tests::harness::{
    http::Connection,
    memory,
    node::{self, Node},
    process::json_lines,
    scratch::Scratch,
    wait,
    websocket::{WebSocket, handshake},
};
use serde_json::{Value, json};
use tokio::{net::TcpSocket, time};

const MIB: usize = 1 << 20;

/// What may be in the node's memory.
const LIMIT: usize = 64 * MIB;

/// Bytes of one message.
const MESSAGE: usize = 256 << 10;
const SMALL: usize = 1000;

/// What is published at most: also with what the kernel takes for each client (`tcp_wmem`, often 4 MiB), the limit allows less.
const PUBLISHED_MAX: usize = 4 * LIMIT;

/// A node that disconnects clients which read nothing for no other reason, however long it takes until memory is short.
async fn start(endpoints: Value, scratch: &Scratch) -> Result<Node> {
    let settings = node::settings()
        .with("auth.anonymous", json!(true))
        .with(
            "limits",
            json!({ "memory": format!("{}MiB", LIMIT / MIB), "body_size": "1MiB", "send_timeout": "1h" }),
        )
        .with(
            "channels.namespaces",
            json!([{ "name": "c", "subscribe": "anyone", "publish": "anyone" }]),
        )
        .with("tcp.user_timeout", json!("1h"))
        .with("endpoints", endpoints);
    let node = Node::start("node", settings, scratch.path()).await?;
    node.ready().await?;
    Ok(node)
}

/// Pings that are not missed.
fn no_ping() -> Value {
    json!({ "interval": "1h", "timeout": "1h" })
}

#[tokio::test]
async fn only_as_many_clients_go_as_hold_what_is_too_much() -> Result<()> {
    const OTHERS: usize = 40;
    let scratch = Scratch::new("memory-limit-channels")?;
    let endpoint = json!({
        "path": "/connection", "mode": "channels", "outbox": "256MiB", "message_size": "512KiB", "ping": no_ping(),
    });
    let node = start(json!([endpoint]), &scratch).await?;
    let mut publisher = Publisher::connect(node.address).await?;
    let mut clients = Vec::new();
    for number in 0..=OTHERS {
        let connection = unread(node.address).await?;
        let handshake = handshake(node.address, "/connection/websocket", &[]);
        let mut client = upgrade(connection, &handshake).await?;
        client.send(r#"{"id":1,"connect":{}}"#).await?;
        client.text().await?;
        let subscribe = json!({ "id": 2, "subscribe": { "channel": format!("c:{number}") } });
        client.send(&subscribe.to_string()).await?;
        client.text().await?;
        clients.push(client);
    }
    // Something waits for each, and for the last one more than there is room for.
    // Small ones by turns: what is given back leaves holes in pages that stay.
    let mut number = 0;
    let publish_to_all = async || {
        publisher.publish(OTHERS, SMALL, 40).await?;
        number = (number + 1) % OTHERS;
        publisher.publish(number, SMALL, 10).await
    };
    publish_until_somebody_goes(&node, 50 * SMALL, publish_to_all).await?;
    // Ten looks of the node, far less than the allocator takes to give everything back.
    time::sleep(Duration::from_secs(1)).await;
    let gone = gone(&node);
    ensure!(gone == 1, "{gone} had to go, one was enough");
    Ok(())
}

#[tokio::test]
async fn clients_of_relays_are_no_exception() -> Result<()> {
    let scratch = Scratch::new("memory-limit-relay")?;
    let relay = |path: &str, protocol: &str| {
        json!({
            "path": path, "protocol": protocol, "mode": "relay", "channel": "global",
            "outbox": "256MiB", "message_size": "512KiB", "ping": no_ping(),
        })
    };
    let mut sockjs = relay("/sockjs", "sockjs");
    sockjs["disconnect_delay"] = json!("1h");
    let endpoints = json!([relay("/ws", "websocket"), sockjs]);
    for path in [
        "/ws",
        "/sockjs/000/websocket/websocket",
        "/sockjs/000/polling/xhr",
    ] {
        let node = start(endpoints.clone(), &scratch).await?;
        let mut connection = unread(node.address).await?;
        let _reader = if path.ends_with("/xhr") {
            let open = format!("POST {path} HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n");
            connection.send(open).await?;
            connection.response().await?;
            Err(connection)
        } else {
            let handshake = handshake(node.address, path, &[]);
            Ok(upgrade(connection, &handshake).await?)
        };
        let mut publisher = WebSocket::open(node.address, "/ws").await?;
        let message = "x".repeat(MESSAGE);
        publish_until_somebody_goes(&node, MESSAGE, async || {
            publisher.send(&message).await?;
            publisher.text().await.map(drop) // It reads.
        })
        .await
        .with_context(|| format!("of {path}"))?;
        // The node looks every 100 ms, and what was published until then is above the limit for a while.
        let pid = node.process.pid();
        wait::until("memory below its limit", wait::SOON, async || {
            (memory::pss(pid).ok()? < LIMIT as u64).then_some(())
        })
        .await
        .with_context(|| path.to_owned())?;
    }
    Ok(())
}

/// Publishes, `bytes` at a time, until a client has to go.
async fn publish_until_somebody_goes(
    node: &Node,
    bytes: usize,
    mut publish: impl AsyncFnMut() -> Result<()>,
) -> Result<()> {
    for _ in 0..PUBLISHED_MAX.div_ceil(bytes) {
        publish().await?;
        if 0 < gone(node) {
            return Ok(());
        }
    }
    bail!("nobody had to go for {PUBLISHED_MAX} bytes")
}

/// How many clients had to go so far, as the node says.
fn gone(node: &Node) -> u64 {
    let lines = json_lines(&node.process.log());
    let fields = lines.iter().map(|line| &line["fields"]);
    let told = fields.filter(|fields| {
        let message = fields["message"].as_str().unwrap_or_default();
        message.starts_with("limits.memory is almost reached")
    });
    told.filter_map(|fields| fields["clients"].as_u64().or(fields["sent_away"].as_u64()))
        .sum()
}

/// A channel client that publishes and hears nothing.
struct Publisher(WebSocket);

impl Publisher {
    async fn connect(node: SocketAddr) -> Result<Self> {
        let mut socket = WebSocket::open(node, "/connection/websocket").await?;
        socket.send(r#"{"id":1,"connect":{}}"#).await?;
        socket.text().await?;
        Ok(Self(socket))
    }

    async fn publish(&mut self, channel: usize, size: usize, count: usize) -> Result<()> {
        let data = "x".repeat(size);
        let publish = json!({ "channel": format!("c:{channel}"), "data": data });
        let command = json!({ "id": 2, "publish": publish }).to_string();
        for _ in 0..count {
            self.0.send(&command).await?;
        }
        let mut published = 0;
        while published < count {
            let reply = self.0.text().await?;
            if reply == "{}" {
                self.0.send("{}").await?;
                continue;
            }
            ensure!(reply.contains("\"publish\""), "{reply}");
            published += 1;
        }
        Ok(())
    }
}

/// A connection whose kernel takes little of what is not read.
async fn unread(node: SocketAddr) -> Result<Connection> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(16 << 10)?;
    Ok(Connection::of(socket.connect(node).await?))
}

async fn upgrade(mut connection: Connection, handshake: &str) -> Result<WebSocket> {
    connection.send(handshake).await?;
    let response = connection.head().await?;
    WebSocket::begin(connection, response).await
}
