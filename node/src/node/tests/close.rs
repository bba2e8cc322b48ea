//! Endpoints with `mode: close`: every client is opened and sent away, whatever its transport.

use super::*;

const ENDPOINTS: &str = "
endpoints:
  - { path: /close, protocol: sockjs, mode: close, allowed_origins: ['*'], disconnect_delay: 1m }
  - { path: /ws, protocol: websocket, mode: close }
";

const GO_AWAY: &str = "c[3000,\"Go away!\"]";

#[tokio::test]
async fn a_poll_is_opened_and_every_later_one_receives_the_end() {
    let node = TestNode::start(ENDPOINTS);
    assert_eq!(node.post("/close/0/a/xhr", "").await.body, "o\n");
    for _ in 0..3 {
        assert_eq!(
            node.post("/close/0/a/xhr", "").await.body,
            format!("{GO_AWAY}\n")
        );
        let sent = node.post("/close/0/a/xhr_send", "[\"x\"]").await;
        assert_eq!(sent.status, 204, "dropped without a word");
    }
}

#[tokio::test]
async fn a_stream_is_opened_and_ended_and_the_next_is_no_second_receiver() {
    let node = TestNode::start(ENDPOINTS);
    // Prelude, `o` for the first receiver of a session, and the end.
    for (wire, session, count) in [
        ("eventsource", "a", 3),
        ("eventsource", "a", 2),
        ("htmlfile?c=x", "b", 3),
    ] {
        let mut client = node.connect().await;
        client
            .send(format!(
                "GET /close/0/{session}/{wire} HTTP/1.1\r\nHost: node\r\n\r\n"
            ))
            .await;
        assert_eq!(client.head().await.status, 200);
        let mut chunks = Vec::new();
        while let Some(chunk) = client.chunk().await {
            chunks.push(chunk);
        }
        assert_eq!(chunks.len(), count, "{chunks:?}");
        assert!(chunks.last().unwrap().contains("Go away!"), "{chunks:?}");
    }
}

#[tokio::test]
async fn a_websocket_is_opened_and_closed() {
    let node = TestNode::start(ENDPOINTS);
    let mut close = vec![0x88, 10];
    close.extend(3000_u16.to_be_bytes());
    close.extend(b"Go away!");
    let mut framed = b"\x81\x01o\x81\x12".to_vec();
    framed.extend(GO_AWAY.as_bytes());
    framed.extend(&close);
    for (path, expected) in [
        ("/close/0/a/websocket", &framed),
        ("/close/websocket", &close),
        ("/ws", &close),
    ] {
        let mut client = node.connect().await;
        client
            .send(format!(
                "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ))
            .await;
        assert_eq!(client.head().await.status, 101);
        assert_eq!(&client.bytes(expected.len()).await, expected, "{path}");
        client.send(b"\x88\x82\0\0\0\0\x03\xe8").await; // Its response, so that TCP ends.
        assert!(client.rest().await.is_empty(), "{path}");
    }
}
