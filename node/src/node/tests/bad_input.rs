//! Requests that break HTTP, take too long or are too many: each gets its status, others go on.

use super::*;

const ENDPOINTS: &str = "
endpoints:
  - { path: /echo, protocol: sockjs, mode: echo, message_size: 1KiB }
limits: { head_size: 8KiB, head_timeout: 200ms, body_size: 1KiB, body_timeout: 200ms, connections: 8 }
";

/// Sends `bytes` and returns the status of the response, 0 if the connection just ends.
async fn status_of(node: &TestNode, bytes: &str) -> u16 {
    let mut client = node.connect().await;
    client.send(bytes).await;
    let rest = String::from_utf8(client.rest().await).unwrap();
    rest.split(' ')
        .nth(1)
        .map_or(0, |status| status.parse().unwrap())
}

#[tokio::test]
async fn a_head_that_is_no_http_is_refused_and_closed() {
    let node = TestNode::start(ENDPOINTS);
    for head in [
        "hello\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n",
        "POST /echo/0/a/xhr HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        "POST /echo/0/a/xhr HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
    ] {
        assert_eq!(status_of(&node, head).await, 400, "{head:?}");
    }
    assert_eq!(node.get("/live").await.status, 200);
}

#[tokio::test]
async fn a_request_names_one_host() {
    let node = TestNode::start(ENDPOINTS);
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ] {
        assert_eq!(node.request(head).await.status, 400);
    }
    let without = node.request("GET /live HTTP/1.0\r\n\r\n").await;
    assert_eq!(without.status, 200);
}

#[tokio::test]
async fn a_head_has_a_largest_size() {
    let node = TestNode::start(ENDPOINTS);
    let head = |bytes: usize| {
        let fixed = "GET /live HTTP/1.1\r\nHost: node\r\nConnection: close\r\nX: \r\n\r\n".len();
        let fill = "x".repeat(bytes - fixed);
        format!("GET /live HTTP/1.1\r\nHost: node\r\nConnection: close\r\nX: {fill}\r\n\r\n")
    };
    assert_eq!(status_of(&node, &head(8 * 1024)).await, 200);
    assert_eq!(status_of(&node, &head(8 * 1024 + 1)).await, 431);
    assert_eq!(status_of(&node, &head(64 * 1024)).await, 431);
}

#[tokio::test]
async fn a_head_that_does_not_end_in_time_ends_the_connection() {
    let node = TestNode::start(ENDPOINTS);
    for (head, status) in [("", 0), ("GET / HTTP/1.1\r\nHo", 408)] {
        assert_eq!(status_of(&node, head).await, status, "{head:?}");
    }
}

#[tokio::test]
async fn a_later_head_on_a_kept_connection_has_to_end_in_time_too() {
    let node = TestNode::start(ENDPOINTS);
    let mut client = node.connect().await;
    for _ in 0..2 {
        client
            .send("GET /live HTTP/1.1\r\nHost: node\r\n\r\n")
            .await;
        assert_eq!(client.response().await.status, 200);
    }
    client.send("GET /live HTTP/1.1\r\nHo").await;
    assert_eq!(client.response().await.status, 408);
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_connection_without_a_next_request_ends_after_its_keepalive() {
    let node = TestNode::start("limits: { keepalive: 200ms }");
    let mut client = node.connect().await;
    client
        .send("GET /live HTTP/1.1\r\nHost: node\r\n\r\n")
        .await;
    assert_eq!(client.response().await.status, 200);
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn requests_that_came_ahead_are_answered_in_order() {
    let node = TestNode::start(ENDPOINTS);
    let mut client = node.connect().await;
    let one = "GET /live HTTP/1.1\r\nHost: node\r\n\r\n";
    let other = "GET /nothing HTTP/1.1\r\nHost: node\r\n\r\n";
    client.send(format!("{one}{other}{one}GET /li")).await;
    for status in [200, 404, 200] {
        assert_eq!(client.response().await.status, status);
    }
    client.send("ve HTTP/1.1\r\nHost: node\r\n\r\n").await;
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_never_taken_for_a_request() {
    let node = TestNode::start(ENDPOINTS);
    let hidden = "GET /live HTTP/1.1\r\nHost: node\r\n\r\n";
    let length = hidden.len();
    let mut client = node.connect().await;
    client
        .send(format!(
            "GET /echo HTTP/1.1\r\nHost: node\r\nContent-Length: {length}\r\n\r\n{hidden}"
        ))
        .await;
    let response = client.response().await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("connection"), Some("close"));
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_truncated_head_leaves_other_connections_alone() {
    let node = TestNode::start(ENDPOINTS);
    let mut good = node.connect().await;
    good.post("/echo/0/a/xhr", "").await;
    let mut bad = node.connect().await;
    bad.send("POST /echo/0/b/xhr HT").await;
    drop(bad);
    assert_eq!(good.response().await.body, "o\n");
    good.post("/echo/0/a/xhr_send", "[\"x\"]").await;
    assert_eq!(good.response().await.status, 204);
}

#[tokio::test]
async fn a_body_has_a_largest_size_however_it_is_sent() {
    let node = TestNode::start(ENDPOINTS);
    node.post("/echo/0/a/xhr", "").await;
    let body = |bytes: usize| format!("[\"{}\"]", "x".repeat(bytes - 4));
    assert_eq!(
        node.post("/echo/0/a/xhr_send", &body(1024)).await.status,
        204
    );
    assert_eq!(
        node.post("/echo/0/a/xhr_send", &body(1025)).await.status,
        413
    );
    let head = "POST /echo/0/a/xhr_send HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunked = |bytes: usize| format!("{head}{bytes:x}\r\n{}\r\n0\r\n\r\n", body(bytes));
    assert_eq!(node.request(&chunked(1024)).await.status, 204);
    assert_eq!(node.request(&chunked(1025)).await.status, 413);
}

#[tokio::test]
async fn chunks_that_are_none_are_refused() {
    let node = TestNode::start(ENDPOINTS);
    node.post("/echo/0/a/xhr", "").await;
    let head = "POST /echo/0/a/xhr_send HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunks in [
        "xyz\r\n",
        "4\r\n[\"x\"]too long\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
    ] {
        assert_eq!(
            status_of(&node, &format!("{head}{chunks}")).await,
            400,
            "{chunks:?}"
        );
    }
    assert_eq!(node.post("/echo/0/a/xhr_send", "[]").await.status, 204);
}

#[tokio::test]
async fn a_body_that_does_not_end_in_time_is_refused() {
    let node = TestNode::start(ENDPOINTS);
    let request = "POST /echo/0/a/xhr_send HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n[";
    assert_eq!(status_of(&node, request).await, 408);
}

#[tokio::test]
async fn connections_are_limited_in_number() {
    let node = TestNode::start(ENDPOINTS);
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut client = node.connect().await;
        client
            .send("GET /live HTTP/1.1\r\nHost: node\r\n\r\n")
            .await;
        assert_eq!(client.response().await.status, 200);
        open.push(client);
    }
    let mut refused = node.connect().await;
    refused.send("GET / HTTP/1.1\r\nHost: node\r\n\r\n").await;
    let head = refused.head().await;
    assert_eq!(
        (head.status, head.header("connection")),
        (503, Some("close"))
    );
    open.pop();
    until(async || {
        let mut client = node.connect().await;
        client
            .send("GET /echo/info HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
            .await;
        client.head().await.status == 200
    })
    .await;
}

#[tokio::test]
async fn who_comes_over_the_limit_of_connections_receives_503_and_others_go_on() {
    let node = TestNode::start("limits: { connections: 1 }");
    let mut first = node.connect().await;
    for _ in 0..3 {
        first.send("GET /live HTTP/1.1\r\nHost: node\r\n\r\n").await;
        assert_eq!(first.response().await.status, 200);
        let mut second = node.connect().await;
        second.send("GET / HTTP/1.1\r\nHost: node\r\n\r\n").await;
        let refusal = String::from_utf8(second.rest().await).unwrap();
        assert!(refusal.starts_with("HTTP/1.1 503 "), "{refusal:?}");
    }
}
