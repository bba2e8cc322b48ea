//! How a node stops: not ready first, then everyone is sent away, then nothing is left.

use super::*;

fn settings(lead: &str) -> String {
    format!(
        "
endpoints:
  - {{ path: /echo, protocol: sockjs, mode: echo }}
  - {{ path: /ws, protocol: websocket, mode: echo }}
drain: {{ lead: {lead}, spread: 100ms, timeout: 10s }}
"
    )
}

async fn websocket(node: &TestNode) -> Client {
    let mut client = node.connect().await;
    client
        .send(
            "GET /ws HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
    assert_eq!(client.head().await.status, 101);
    client
}

#[tokio::test]
async fn clients_receive_why_and_the_node_ends() {
    let mut node = TestNode::start(&settings("0s"));
    let mut socket = websocket(&node).await;
    let mut poll = node.connect().await;
    poll.post("/echo/0/a/xhr", "").await;
    assert_eq!(poll.response().await.body, "o\n");
    poll.post("/echo/0/a/xhr", "").await;
    until(async || {
        node.post("/echo/0/a/xhr", "")
            .await
            .body
            .starts_with("c[2010")
    })
    .await;
    let _idle = node.connect().await;

    node.draining.cancel();
    assert_eq!(poll.response().await.body, "c[1012,\"service restart\"]\n");
    let close = socket.bytes(4).await;
    assert_eq!((close[0], &close[2..]), (0x88, &1012_u16.to_be_bytes()[..]));
    drop(socket);
    node.ended().await.unwrap();
    assert!(
        tokio::net::TcpStream::connect(node.address).await.is_err(),
        "nobody listens"
    );
}

#[tokio::test]
async fn a_draining_node_is_not_ready_and_serves_for_its_lead() {
    let mut node = TestNode::start(&settings("1s"));
    node.draining.cancel();
    until(async || node.get("/ready").await.header("causeway-drain") == Some("1")).await;
    assert_eq!(node.get("/ready").await.status, 503);
    assert_eq!(node.post("/echo/0/a/xhr", "").await.body, "o\n");
    node.ended().await.unwrap();
}

#[tokio::test]
async fn a_session_between_two_polls_receives_its_end_before_the_listener_closes() {
    let yaml = settings("0s").replace("timeout: 10s", "timeout: 2m");
    let yaml = yaml.replace("path: /echo,", "path: /echo, disconnect_delay: 1m,");
    let mut node = TestNode::start(&yaml);
    for session in ["a", "b"] {
        let path = format!("/echo/0/{session}/xhr");
        assert_eq!(node.post(&path, "").await.body, "o\n");
    }
    node.draining.cancel();
    until(async || node.get("/ready").await.status == 503).await;
    let last = node.post("/echo/0/a/xhr", "").await;
    assert_eq!(last.body, "c[1012,\"service restart\"]\n");
    assert_eq!(last.header("connection"), Some("close"));
    // Who comes now may come in, and is told.
    assert_eq!(node.post("/echo/0/new/xhr", "").await.body, "o\n");
    for session in ["new", "b"] {
        let last = node.post(&format!("/echo/0/{session}/xhr"), "").await;
        assert_eq!(last.body, "c[1012,\"service restart\"]\n");
    }
    node.ended().await.unwrap();
}

#[tokio::test]
async fn a_session_that_never_comes_back_holds_a_drain_up_for_its_delay_at_most() {
    let yaml = settings("0s").replace("timeout: 10s", "timeout: 2m");
    let yaml = yaml.replace("path: /echo,", "path: /echo, disconnect_delay: 1s,");
    let mut node = TestNode::start(&yaml);
    assert_eq!(node.post("/echo/0/a/xhr", "").await.body, "o\n");
    node.draining.cancel();
    node.ended().await.unwrap();
}

#[tokio::test]
async fn what_does_not_leave_is_cut_after_the_timeout() {
    let yaml = settings("0s").replace("timeout: 10s", "timeout: 200ms");
    let mut node = TestNode::start(&yaml);
    let mut stuck = node.connect().await;
    stuck
        .send("POST /echo/0/a/xhr HTTP/1.1\r\nHost: node\r\nContent-Length: 9\r\n\r\n")
        .await;
    // Its request is being read when a later one has been answered.
    assert_eq!(node.get("/live").await.status, 200);
    node.draining.cancel();
    node.ended().await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let node = TestNode::start("");
    let config = Config::parse("test", &format!("listen: {}", node.address)).unwrap();
    let Err(error) = Node::start(config, Lifecycle::default()) else {
        panic!("the port is in use");
    };
    let expected = format!("cannot listen on {} (setting `listen`): ", node.address);
    assert!(error.to_string().starts_with(&expected), "{error}");
}
