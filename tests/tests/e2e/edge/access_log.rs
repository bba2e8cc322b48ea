//! The access log of the edge: a line for each request, and one for each tunnel when it ends.

use anyhow::{Context as _, Result};
use causeway_tests::{
    harness::{
        edge::{self, Edge, Program},
        http,
        node::{self, Node},
        scratch::Scratch,
        wait,
        websocket::WebSocket,
    },
    on_edge_and_plugin,
};
use serde_json::{Value, json};

/// The lines of this kind for this path, once there are `count` of them.
async fn lines(edge: &Edge, kind: &str, path: &str, count: usize) -> Result<Vec<Value>> {
    let what = format!("{count} {kind} lines for {path}");
    wait::until(&what, wait::SOON, async || {
        let all = edge.process.output_lines();
        let found: Vec<Value> = all
            .into_iter()
            .filter(|line| line["kind"] == kind && line["path"] == path)
            .collect();
        (found.len() == count).then_some(found)
    })
    .await
    .with_context(|| edge.process.output())
}

on_edge_and_plugin!(every_request_and_every_tunnel_leaves_one_line);

async fn every_request_and_every_tunnel_leaves_one_line(program: Program) -> Result<()> {
    let scratch = Scratch::new("access-log")?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let edge = Edge::start_in(
        program,
        &edge::settings(&[("n1", node.address)]),
        scratch.path(),
    )
    .await?;
    edge.backend_in_state("n1", "up").await?;

    let first = http::get(edge.address, "/?token=secret").await?;
    let cookie = format!(
        "causeway={}",
        first
            .cookie("causeway")
            .context("the first response binds")?
    );
    // A line is written behind its response, so the next one may be before it.
    lines(&edge, "request", "/", 1).await?;
    http::get_with(edge.address, "/", &[("Cookie", &cookie)]).await?;
    http::get(edge.address, "/nowhere").await?;
    http::get(edge.address, "/metrics").await?;
    let mut socket =
        WebSocket::open_with(edge.address, "/echo/websocket", &[("Cookie", &cookie)]).await?;
    socket.send("12345678").await?;
    socket.text().await?;
    assert!(
        lines(&edge, "tunnel", "/echo/websocket", 0)
            .await?
            .is_empty(),
        "the tunnel has not ended"
    );
    socket.close().await?;

    let pages = lines(&edge, "request", "/", 2).await?;
    let outcomes: Vec<&Value> = pages.iter().map(|line| &line["affinity"]).collect();
    assert_eq!(outcomes, [&json!("miss"), &json!("hit")]);
    for line in &pages {
        assert_eq!(
            (&line["method"], &line["status"], &line["backend"]),
            (&json!("GET"), &json!(200), &json!("n1")),
            "{line}"
        );
        assert_eq!(line["client"], "127.0.0.1", "{line}");
        assert!(
            line["bytes_out"].as_u64().is_some_and(|bytes| 0 < bytes),
            "{line}"
        );
        assert!(
            line["duration_ms"].is_number()
                && line["ts"].is_number()
                && line["request_id"].is_string(),
            "{line}"
        );
    }
    let refused = lines(&edge, "request", "/metrics", 1).await?.remove(0);
    assert_eq!(
        (&refused["status"], &refused["backend"]),
        (&json!(404), &Value::Null)
    );
    lines(&edge, "request", "/nowhere", 1).await?;

    let tunnel = lines(&edge, "tunnel", "/echo/websocket", 1)
        .await?
        .remove(0);
    // Each side: a frame of 8 bytes with its head, and a close frame.
    assert!(
        tunnel["bytes_in"]
            .as_u64()
            .is_some_and(|bytes| (8 + 6..64).contains(&bytes)),
        "{tunnel}"
    );
    assert!(
        tunnel["bytes_out"]
            .as_u64()
            .is_some_and(|bytes| (8 + 2..64).contains(&bytes)),
        "{tunnel}"
    );
    assert_eq!(
        (&tunnel["backend"], &tunnel["affinity"]),
        (&json!("n1"), &json!("hit")),
        "{tunnel}"
    );
    assert!(tunnel["close_reason"].is_string(), "{tunnel}");
    assert!(
        !edge.process.output().contains("secret"),
        "a query is never logged"
    );
    Ok(())
}
