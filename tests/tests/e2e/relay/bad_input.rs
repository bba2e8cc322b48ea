//! Wrong bytes, sent to a node and through the edge: each gets the response that its protocol names, and nobody else notices.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    edge::{self, Edge},
    http::{self, Connection},
    node::{self, Node},
    scratch::Scratch,
    websocket::{WebSocket, handshake},
};
use serde_json::json;

/// A node, an edge before it, and a client that must not notice anything.
struct Scene {
    edge: Edge,
    node: Node,
    bystander: WebSocket,
    _scratch: Scratch,
}

impl Scene {
    async fn set(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let settings = node::settings().with("limits.head_timeout", json!("1s"));
        let node = Node::start("n1", settings, scratch.path()).await?;
        let settings = edge::settings(&[("n1", node.address)]).with("timeouts.head", json!("1s"));
        let edge = Edge::start(&settings, scratch.path()).await?;
        edge.backend_in_state("n1", "up").await?;
        let bystander = WebSocket::open(edge.address, "/echo/websocket").await?;
        Ok(Self {
            edge,
            node,
            bystander,
            _scratch: scratch,
        })
    }

    /// Both ways in.
    fn addresses(&self) -> [(&'static str, SocketAddr); 2] {
        [
            ("the edge", self.edge.address),
            ("the node", self.node.address),
        ]
    }

    /// Both processes live, and the bystander's connection is as it was.
    async fn is_unharmed(&mut self) -> Result<()> {
        self.bystander.send("all well").await?;
        assert_eq!(self.bystander.text().await?, "all well");
        assert!(self.edge.process.is_running() && self.node.process.is_running());
        Ok(())
    }
}

/// What a request must come to.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// A response with this status.
    Status(u16),
    /// A response with this status, or an end without a response.
    StatusOrEnd(u16),
}

#[tokio::test]
async fn wrong_requests_get_the_status_that_http_names() -> Result<()> {
    use Outcome::{Status, StatusOrEnd};
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n",
        "x".repeat(40_000)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "A: b\r\n".repeat(10_000)
    );
    let send = "/echo/000/badinput/xhr_send";
    let chunked = format!("POST {send} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let cases: Vec<(&str, Vec<u8>, Outcome)> = vec![
        ("a head that stops half-way", b"GET / HTTP/1.1\r\nHo".to_vec(), StatusOrEnd(408)),
        ("a head with a header of 40,000 bytes", long.into_bytes(), Status(431)),
        ("a head with 10,000 headers", many.into_bytes(), Status(431)),
        ("bytes that are no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), StatusOrEnd(400)),
        ("a request line of one word", b"GET\r\n\r\n".to_vec(), StatusOrEnd(400)),
        ("no Host", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Status(400)),
        ("two different lengths", format!("POST {send} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n[]1").into(), Status(400)),
        ("a length that is no number", format!("POST {send} HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n[]").into(), Status(400)),
        ("a chunk size that is no number", format!("{chunked}zz\r\n[]\r\n0\r\n\r\n").into(), StatusOrEnd(400)),
        ("a chunk longer than its size", format!("{chunked}2\r\n[]toolong\r\n0\r\n\r\n").into(), StatusOrEnd(400)),
        ("a chunked body that stops half-way", format!("{chunked}ff\r\n[").into(), StatusOrEnd(400)),
    ];
    let mut scene = Scene::set("bad-http").await?;
    for (what, address) in scene.addresses() {
        for (name, bytes, outcome) in &cases {
            let mut connection = Connection::open(address).await?;
            // The other side may respond and close before it has read all of it.
            connection.send(bytes).await.ok();
            if name.contains("half-way") && name.contains("body") {
                connection.finish().await.ok();
            }
            let response = connection.response().await;
            match (outcome, response) {
                (Status(status), response) => assert_eq!(
                    response.with_context(|| format!("{name}, {what}"))?.status,
                    *status,
                    "{name}, {what}"
                ),
                (StatusOrEnd(status), Ok(response)) => {
                    assert_eq!(response.status, *status, "{name}, {what}")
                }
                (StatusOrEnd(_), Err(error)) => assert!(
                    !format!("{error:#}").contains("in time"),
                    "{name}, {what}: {error:#}"
                ),
            }
            scene.is_unharmed().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn wrong_handshakes_get_the_status_that_the_rfc_names() -> Result<()> {
    let mut scene = Scene::set("bad-handshake").await?;
    for (what, address) in scene.addresses() {
        let good = handshake(address, "/ws", &[]);
        let cases = [
            ("no key", good.replace("Sec-WebSocket-Key", "X-Key"), 400),
            (
                "a short key",
                good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="),
                400,
            ),
            (
                "an old version",
                good.replace("Version: 13", "Version: 8"),
                426,
            ),
            (
                "no version",
                good.replace("Sec-WebSocket-Version", "X-Version"),
                426,
            ),
            ("an unknown path", good.replace("/ws", "/nowhere"), 404),
            (
                "a foreign origin",
                handshake(address, "/ws", &[("Origin", "http://elsewhere.example")]),
                403,
            ),
        ];
        for (name, head, status) in cases {
            let mut connection = Connection::open(address).await?;
            connection.send(head).await?;
            let response = connection
                .response()
                .await
                .with_context(|| format!("{name}, {what}"))?;
            assert_eq!(
                response.status,
                status,
                "{name}, {what}: {}",
                response.text()
            );
            if status == 426 {
                assert_eq!(
                    response.header("sec-websocket-version"),
                    Some("13"),
                    "{name}, {what}"
                );
            }
            scene.is_unharmed().await?;
        }
    }
    Ok(())
}

/// A frame as a client sends it, with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len();
    let mut frame = vec![first];
    match length {
        0..=125 => frame.push(0x80 | length as u8),
        126..=65_535 => frame.extend([&[0x80 | 126], &(length as u16).to_be_bytes()[..]].concat()),
        _ => frame.extend([&[0x80 | 127], &(length as u64).to_be_bytes()[..]].concat()),
    }
    frame.extend([0; 4]);
    frame.extend_from_slice(payload);
    frame
}

#[tokio::test]
async fn wrong_frames_get_the_close_code_that_the_rfc_names() -> Result<()> {
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("a frame without a mask", vec![0x81, 2, b'h', b'i'], 1002),
        ("a reserved bit", frame(0xc1, b"hi"), 1002),
        ("a reserved opcode", frame(0x83, b"hi"), 1002),
        ("a reserved control opcode", frame(0x8b, b""), 1002),
        ("a ping in fragments", frame(0x09, b"hi"), 1002),
        ("a ping of 126 bytes", frame(0x89, &[0; 126]), 1002),
        ("a continuation of nothing", frame(0x80, b"hi"), 1002),
        (
            "a message inside another",
            [frame(0x01, b"a"), frame(0x81, b"b")].concat(),
            1002,
        ),
        ("a close with one byte", frame(0x88, b"x"), 1002),
        (
            "a close with a code that is not for the wire",
            frame(0x88, &1005_u16.to_be_bytes()),
            1002,
        ),
        ("text that is not UTF-8", frame(0x81, b"\xff\xfe"), 1007),
        (
            "text whose fragments are not UTF-8 together",
            [frame(0x01, b"\xc3"), frame(0x80, b"\x28")].concat(),
            1007,
        ),
        (
            "a message that is too large",
            frame(0x81, &[b'x'; 64 * 1024 + 1]),
            1009,
        ),
        (
            "fragments that are too large together",
            [frame(0x01, &[b'x'; 40_000]), frame(0x80, &[b'x'; 40_000])].concat(),
            1009,
        ),
    ];
    let mut scene = Scene::set("bad-frames").await?;
    for (what, address) in scene.addresses() {
        for path in ["/ws", "/echo/websocket"] {
            for (name, bytes, code) in &cases {
                let mut socket = WebSocket::open(address, path).await?;
                socket.send_raw(bytes).await?;
                let closed = socket
                    .close_code()
                    .await
                    .with_context(|| format!("{name}, {path} of {what}"))?;
                assert_eq!(closed, Some(*code), "{name}, {path} of {what}");
                scene.is_unharmed().await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_message_of_exactly_the_limit_passes() -> Result<()> {
    let scene = Scene::set("limit").await?;
    for (_, address) in scene.addresses() {
        let mut socket = WebSocket::open(address, "/echo/websocket").await?;
        let text = "x".repeat(64 * 1024);
        socket.send(&text).await?;
        assert_eq!(socket.text().await?, text);
        socket.send_binary(b"\xff\x00").await?;
        let message = socket.message().await?.context("an echo")?;
        assert_eq!(message.into_data().as_ref(), b"\xff\x00");
        socket.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn wrong_sockjs_bodies_and_sessions_get_the_responses_of_sockjs() -> Result<()> {
    let mut scene = Scene::set("bad-sockjs").await?;
    for (what, address) in scene.addresses() {
        let session = if what == "the edge" {
            "viaedge1"
        } else {
            "direct01"
        };
        let path = |transport: &str| format!("/echo/000/{session}/{transport}");
        let post = async |path: String, body: &'static [u8]| {
            http::request(address, "POST", &path, &[], body).await
        };
        assert_eq!(
            post(path("xhr_send"), b"[\"x\"]").await?.status,
            404,
            "an unknown session, {what}"
        );
        assert_eq!(post(path("xhr"), b"").await?.text(), "o\n");
        let cases: [(&[u8], u16, &str); 7] = [
            (b"", 500, "Payload expected."),
            (b"[\"x", 500, "Broken JSON encoding."),
            (b"x", 500, "Broken JSON encoding."),
            (b"\xff\xfe", 500, "Broken JSON encoding."),
            (b"{\"a\":1}", 500, "Payload expected."),
            (b"[]", 204, ""),
            (b"[\"still alive\"]", 204, ""),
        ];
        for (body, status, text) in cases {
            let response = post(path("xhr_send"), body).await?;
            assert_eq!(
                (response.status, response.text().trim()),
                (status, text),
                "{body:?}, {what}"
            );
            scene.is_unharmed().await?;
        }
        assert_eq!(post(path("xhr"), b"").await?.text(), "a[\"still alive\"]\n");
        for unknown in [
            "/echo//",
            "/echo/000//xhr",
            "/echo/a.b/c/xhr",
            "/echo/000/session/nothing",
            "/nowhere",
        ] {
            assert_eq!(
                post(unknown.to_owned(), b"").await?.status,
                404,
                "{unknown}, {what}"
            );
        }

        let mut socket = WebSocket::open(address, "/echo/000/framed01/websocket").await?;
        assert_eq!(socket.text().await?, "o");
        socket.send("[\"never closed").await?;
        assert!(
            socket.close_code().await?.is_some(),
            "{what} says that it closes"
        );
        scene.is_unharmed().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() -> Result<()> {
    let mut scene = Scene::set("big-body").await?;
    for (what, address) in scene.addresses() {
        let path = format!(
            "/echo/000/{}/xhr",
            if what == "the edge" {
                "bigedge1"
            } else {
                "bignode1"
            }
        );
        assert_eq!(
            http::request(address, "POST", &path, &[], b"")
                .await?
                .text(),
            "o\n"
        );
        let mut connection = Connection::open(address).await?;
        let size = 8 * 1024 * 1024;
        connection
            .send(format!(
                "POST {path}_send HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
            ))
            .await?;
        assert_eq!(
            connection
                .response()
                .await
                .with_context(|| what.to_owned())?
                .status,
            413,
            "{what}"
        );
        scene.is_unharmed().await?;
    }
    Ok(())
}
