//! WebSockets from the handshake on: what HTTP hands over, and nothing lost on the way.

use super::*;

const ENDPOINTS: &str = "
endpoints:
  - { path: /echo, protocol: sockjs, mode: echo }
  - { path: /xhr, protocol: sockjs, mode: echo, transports: [xhr] }
  - { path: /ws, protocol: websocket, mode: echo }
  - { path: /relay, protocol: sockjs, mode: relay }
";

fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
}

/// A short text message of a client, masked with zeros.
fn text(message: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | message.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(message.as_bytes());
    frame
}

/// A short text message as a server writes it.
fn answered(message: &str) -> Vec<u8> {
    let mut frame = vec![0x81, message.len() as u8];
    frame.extend_from_slice(message.as_bytes());
    frame
}

async fn upgraded(node: &TestNode, path: &str) -> Client {
    let mut client = node.connect().await;
    client.send(handshake(path)).await;
    assert_eq!(client.head().await.status, 101);
    client
}

#[tokio::test]
async fn the_response_to_a_handshake_accepts_the_key_and_declines_extensions() {
    let node = TestNode::start(ENDPOINTS);
    for path in ["/ws", "/echo/websocket", "/echo/0/a/websocket"] {
        let mut client = node.connect().await;
        client.send(handshake(path)).await;
        let head = client.head().await;
        assert_eq!(head.status, 101);
        assert_eq!(
            head.header("sec-websocket-accept"),
            Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        );
        assert_eq!(head.header("upgrade"), Some("websocket"));
        assert!(
            head.header("connection")
                .unwrap()
                .eq_ignore_ascii_case("upgrade")
        );
        assert_eq!(head.header("content-length"), None);
        assert_eq!(head.header("sec-websocket-extensions"), None);
        assert!(head.header("causeway-node").is_some());
    }
}

#[tokio::test]
async fn bytes_right_behind_the_handshake_are_not_lost() {
    let node = TestNode::start(ENDPOINTS);
    let mut client = node.connect().await;
    let mut all = handshake("/ws").into_bytes();
    all.extend(text("early"));
    client.send(all).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.bytes(7).await, answered("early"));
}

#[tokio::test]
async fn a_session_over_a_websocket_is_framed_and_a_raw_one_is_not() {
    let node = TestNode::start(ENDPOINTS);
    let mut framed = upgraded(&node, "/echo/0/a/websocket").await;
    assert_eq!(framed.bytes(3).await, answered("o"));
    framed.send(text("[\"x\"]")).await;
    assert_eq!(framed.bytes(8).await, answered("a[\"x\"]"));
    let mut raw = upgraded(&node, "/echo/websocket").await;
    raw.send(text("[\"x\"]")).await;
    assert_eq!(raw.bytes(7).await, answered("[\"x\"]"));
}

#[tokio::test]
async fn a_websocket_session_is_not_found_over_http() {
    let node = TestNode::start(ENDPOINTS);
    let _client = upgraded(&node, "/echo/0/a/websocket").await;
    assert_eq!(node.post("/echo/0/a/xhr_send", "[]").await.status, 404);
}

#[tokio::test]
async fn what_is_no_handshake_is_refused() {
    let node = TestNode::start(ENDPOINTS);
    let good = handshake("/ws");
    for (request, status) in [
        ("GET /ws HTTP/1.1\r\nHost: node\r\n\r\n".to_owned(), 400),
        (good.replace("keep-alive, Upgrade", "close"), 400),
        (good.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400),
        (good.replace("Version: 13", "Version: 8"), 426),
        (good.replace("GET", "POST"), 405),
        (good.replace("/ws", "/xhr/websocket"), 404),
        (good.replace("/ws", "/xhr/0/a/websocket"), 404),
    ] {
        let response = node.request(&request).await;
        assert_eq!(response.status, status, "{request}");
        if status == 426 {
            assert_eq!(response.header("sec-websocket-version"), Some("13"));
        }
    }
}

#[tokio::test]
async fn clients_of_all_transports_receive_each_other() {
    let node = TestNode::start(ENDPOINTS);
    let mut socket = upgraded(&node, "/relay/0/a/websocket").await;
    assert_eq!(socket.bytes(3).await, answered("o"));
    assert_eq!(node.post("/relay/0/b/xhr", "").await.body, "o\n");
    assert_eq!(
        node.post("/relay/0/b/xhr_send", "[\"x\"]").await.status,
        204
    );
    assert_eq!(socket.bytes(8).await, answered("a[\"x\"]"));
    assert_eq!(node.post("/relay/0/b/xhr", "").await.body, "a[\"x\"]\n");
    socket.send(text("[\"y\"]")).await;
    assert_eq!(node.post("/relay/0/b/xhr", "").await.body, "a[\"y\"]\n");
}
