//! A node with as many connections as it may have.

use super::*;

/// With room for one client.
const YAML: &str = "limits: { connections: 1 }
api: { keys: [the-key-of-the-api] }
endpoints:
  - { path: /echo, protocol: sockjs, mode: echo }
  - { path: /ws, protocol: websocket }
";

const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A node whose one place for a client is taken.
async fn full(yaml: &str) -> (TestNode, Client) {
    let node = TestNode::start(yaml);
    let mut client = node.connect().await;
    client.send(WEBSOCKET).await;
    assert_eq!(client.head().await.status, 101);
    (node, client)
}

fn assert_refused(response: &raw::Response) {
    assert_eq!(response.status, 503);
    assert_eq!(response.header("retry-after"), Some("1"));
    assert_eq!(response.header("connection"), Some("close"));
}

async fn api(node: &TestNode, key: &str) -> raw::Response {
    let request = format!(
        "POST /api/info HTTP/1.1\r\nHost: node\r\nX-API-Key: {key}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    node.request(&request).await
}

#[tokio::test]
async fn operators_and_the_api_are_served_and_new_clients_refused_until_there_is_room() {
    let (node, client) = full(YAML).await;
    for path in ["/live", "/ready", "/metrics", "/slowest"] {
        let response = node.get_from_admin(path).await;
        assert_eq!(response.status, 200, "{path}");
        assert_eq!(response.header("connection"), Some("close"), "{path}");
    }
    for path in ["/live", "/ready"] {
        let response = node.get(path).await;
        assert_eq!(response.status, 200, "{path}");
        assert_eq!(response.header("connection"), Some("close"), "{path}");
    }
    assert_eq!(api(&node, "the-key-of-the-api").await.status, 200);
    assert_refused(&api(&node, "another-key-than-that").await);
    assert_refused(&node.request(WEBSOCKET).await);
    assert_refused(&node.get("/").await);
    assert_refused(&node.get("/echo/info").await);
    assert_refused(&node.post("/echo/000/new/xhr", "").await);
    let metrics = node.get_from_admin("/metrics").await.body;
    let refused = "connections_refused_total{reason=\"connections\"} 5\n";
    assert!(metrics.contains(refused), "{metrics}");

    drop(client);
    until(async || node.request(WEBSOCKET).await.status == 101).await;
}

#[tokio::test]
async fn a_session_that_is_known_goes_on() {
    let node = TestNode::start(YAML);
    // The connection of its first poll is gone when the place is taken.
    let opened = node
        .request("POST /echo/000/known/xhr HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .await;
    assert_eq!(opened.body, "o\n");
    let mut client = node.connect().await;
    until(async || {
        client = node.connect().await;
        client.send(WEBSOCKET).await;
        client.head().await.status == 101
    })
    .await;

    let mut poll = node.connect().await;
    poll.post("/echo/000/known/xhr", "").await;
    // It waits, and the next request of the same session is served beside it.
    let sent = node.post("/echo/000/known/xhr_send", "[\"hello\"]").await;
    assert_eq!(sent.status, 204);
    assert_eq!(poll.response().await.body, "a[\"hello\"]\n");
    // On the same connection, another one is a new client.
    poll.post("/echo/000/unknown/xhr", "").await;
    assert_refused(&poll.response().await);
}

#[tokio::test]
async fn connections_that_say_nothing_keep_no_operator_out() {
    let (node, _client) = full(YAML).await;
    let mut silent = Vec::new();
    for number in 0..400 {
        let mut connection = node.connect().await;
        if number % 2 == 0 {
            connection.send("GET /live HTTP/1.1\r\nHo").await;
        }
        silent.push(connection);
        if number % 50 == 0 {
            assert_eq!(node.get("/live").await.status, 200);
        }
    }
    assert_eq!(node.get_from_admin("/metrics").await.status, 200);
    // The oldest were told, those that had begun a request too.
    for connection in &mut silent[..2] {
        let told = String::from_utf8(connection.rest().await).unwrap();
        assert!(
            told.is_empty() || told.starts_with("HTTP/1.1 503 "),
            "{told}"
        );
    }
}

#[tokio::test]
async fn a_node_without_memory_for_new_clients_serves_those_it_has() {
    // What is resident of this process is more than that.
    let node = TestNode::start(
        "limits: { memory: 32MiB }\nendpoints: [{ path: /echo, protocol: sockjs, mode: echo }]\n",
    );
    until(async || node.get("/echo/info").await.status == 503).await;
    assert_refused(&node.get("/echo/info").await);
    assert_eq!(node.get("/ready").await.status, 200);
    let metrics = node.get_from_admin("/metrics").await.body;
    assert!(
        metrics.contains("connections_refused_total{reason=\"memory\"} "),
        "{metrics}"
    );
}
