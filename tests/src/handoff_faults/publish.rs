//! The application: it publishes numbers in each stream, and watches what the clients publish.
//!
//! It does so at a node of its own, which no fault meets and to which the edge sends nobody, and at Redis itself.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    handoff_faults::{
        record::Finding,
        scene::{KEY, RELAY},
        shared::Shared,
    },
    harness::{http::Connection, websocket::WebSocket},
};

/// From one message to the next, in each stream.
const PACE: Duration = Duration::from_millis(15);

/// For a reply.
const REPLY_WAIT: Duration = Duration::from_secs(8);

/// Starts all of it. `observer` is the number of the client that watches.
pub fn start(
    tasks: &mut JoinSet<()>,
    shared: &Arc<Shared>,
    node: SocketAddr,
    redis: SocketAddr,
    observer: usize,
) {
    tasks.spawn(relay(Arc::clone(shared), redis));
    tasks.spawn(channel(Arc::clone(shared), node, "past:1", shared.past));
    tasks.spawn(channel(Arc::clone(shared), node, "room:1", shared.live));
    let shared = Arc::clone(shared);
    tasks.spawn(async move {
        let ended = observe(&shared, node, observer).await;
        let detail = format!("the observer is disconnected: {ended:?}");
        shared.record.lock().violation(Finding::Program, detail);
    });
}

/// Publishes on the relay channel, as any program with access to Redis may.
async fn relay(shared: Arc<Shared>, redis: SocketAddr) {
    let mut connection = None;
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let number = shared.record.lock().next(shared.relay);
        let message = format!("s {} {number}", shared.relay);
        let published = timeout(REPLY_WAIT, publish(&mut connection, redis, RELAY, &message));
        if !matches!(published.await, Ok(Ok(()))) {
            connection = None;
            shared.record.lock().uncertain(shared.relay, number);
        }
    }
}

/// Publishes over a connection that is kept.
pub(super) async fn publish(
    connection: &mut Option<TcpStream>,
    redis: SocketAddr,
    channel: &str,
    message: &str,
) -> Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => connection.insert(TcpStream::connect(redis).await?),
    };
    let words = ["PUBLISH", channel, message];
    let words = words.map(|word| format!("${}\r\n{word}\r\n", word.len()));
    let command = format!("*3\r\n{}", words.concat());
    stream.write_all(command.as_bytes()).await?;
    let mut reply = [0];
    stream.read_exact(&mut reply).await?;
    ensure!(reply == *b":", "the reply is no number");
    while reply != *b"\n" {
        stream.read_exact(&mut reply).await?;
    }
    Ok(())
}

/// Publishes in a channel, through the server API.
async fn channel(shared: Arc<Shared>, node: SocketAddr, channel: &'static str, stream: usize) {
    let mut connection = None;
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let number = shared.record.lock().next(stream);
        let body = json!({ "channel": channel, "data": format!("s {stream} {number}") });
        let called = timeout(REPLY_WAIT, call(&mut connection, node, "publish", &body));
        if !matches!(called.await, Ok(Ok(_))) {
            connection = None;
            shared.record.lock().uncertain(stream, number);
        }
    }
}

/// Calls a method of the server API over a connection that is kept.
async fn call(
    connection: &mut Option<Connection>,
    node: SocketAddr,
    method: &str,
    body: &Value,
) -> Result<Value> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(Connection::open(node).await?),
    };
    let body = body.to_string();
    let length = body.len();
    let request = format!(
        "POST /api/{method} HTTP/1.1\r\nHost: n\r\nX-API-Key: {KEY}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    connection.send(request).await?;
    let response = connection.response().await?;
    ensure!(response.status == 200, "{method}: {response:?}");
    let mut response: Value = serde_json::from_slice(&response.body)?;
    let result = response.get_mut("result").map(Value::take);
    result.with_context(|| format!("{method} was refused: {response}"))
}

/// Gets all that is published on the relay channel.
async fn observe(shared: &Shared, node: SocketAddr, observer: usize) -> Result<()> {
    let mut socket = WebSocket::open(node, "/ws").await?.into_stream();
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message? {
            shared.message(observer, text.as_str());
        }
    }
    Ok(())
}
