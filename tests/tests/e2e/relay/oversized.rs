//! What is too large is refused, and the node's log names the setting that allows more.

use anyhow::{Result, ensure};
use causeway_tests::harness::{
    http,
    node::{self, Node},
    process::json_lines,
    scratch::Scratch,
    wait,
    websocket::WebSocket,
};
use serde_json::{Value, json};

async fn start(scratch: &Scratch, id: &str) -> Result<Node> {
    let settings = node::settings()
        .with("auth.anonymous", json!(true))
        .with("channels.namespaces", json!([{ "name": "c" }]))
        .with("limits.body_size", json!("128KiB"))
        .with(
            "endpoints",
            json!([
                { "path": "/ws", "protocol": "websocket", "message_size": "1KiB" },
                { "path": "/sockjs", "protocol": "sockjs", "message_size": "1KiB" },
                { "path": "/connection", "mode": "channels", "message_size": "1KiB", "commands_size": "2KiB" },
            ]),
        );
    Node::start(id, settings, scratch.path()).await
}

/// Waits for the line about a client of `endpoint` that sent more than `setting` allows.
async fn is_logged(node: &Node, endpoint: &str, setting: &str, bytes_max: u64) -> Result<()> {
    let what = format!("a line that names {setting} of {endpoint}");
    wait::until(&what, wait::SOON, async || {
        let lines = json_lines(&node.process.log());
        let is_meant = |fields: &Value| {
            fields["endpoint"] == endpoint
                && fields["setting"] == setting
                && fields["bytes_max"] == bytes_max
        };
        lines
            .iter()
            .any(|line| is_meant(&line["fields"]))
            .then_some(())
    })
    .await
}

#[tokio::test]
async fn a_message_over_a_websocket_is_closed_with_1009() -> Result<()> {
    let scratch = Scratch::new("oversized-websocket")?;
    let large = "x".repeat(1100);
    for (path, endpoint, message, setting, bytes_max) in [
        ("/ws", "/ws", large.clone(), "message_size", 1024),
        (
            "/sockjs/0/a/websocket",
            "/sockjs",
            json!([large]).to_string(),
            "message_size",
            1024,
        ),
        (
            "/connection/websocket",
            "/connection",
            json!({ "id": 1, "connect": { "name": large.repeat(2) } }).to_string(),
            "commands_size",
            2048,
        ),
    ] {
        let node = start(&scratch, &format!("node-{}", &endpoint[1..])).await?;
        let mut client = WebSocket::open(node.address, path).await?;
        client.send(&message).await?;
        ensure!(client.close_code().await? == Some(1009), "{path}");
        is_logged(&node, endpoint, setting, bytes_max).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_body_is_answered_with_413_and_a_session_is_closed() -> Result<()> {
    let scratch = Scratch::new("oversized-http")?;
    let message = json!(["x".repeat(1100)]).to_string();
    let body = "x".repeat(130 << 10);
    for (id, path, body, status, setting, bytes_max) in [
        (
            "message",
            "/sockjs/0/a/xhr_send",
            &message,
            204,
            "message_size",
            1024,
        ),
        (
            "body",
            "/sockjs/0/a/xhr_send",
            &body,
            413,
            "limits.body_size",
            128 << 10,
        ),
        (
            "stream",
            "/connection/uni_sse",
            &message,
            413,
            "message_size",
            1024,
        ),
        (
            "stream-body",
            "/connection/emulation",
            &body,
            413,
            "commands_size",
            2048,
        ),
    ] {
        let node = start(&scratch, id).await?;
        let open = http::request(node.address, "POST", "/sockjs/0/a/xhr", &[], b"").await?;
        ensure!(open.text() == "o\n", "{open:?}");
        let response = http::request(node.address, "POST", path, &[], body.as_bytes()).await?;
        ensure!(response.status == status, "{id}: {response:?}");
        let endpoint = path.split('/').nth(1).unwrap_or_default();
        is_logged(&node, &format!("/{endpoint}"), setting, bytes_max).await?;
    }
    Ok(())
}
