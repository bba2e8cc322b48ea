//! WebSockets over HTTP/2, and limits that apply there too.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use http::{Method, Request, Version};
use pingora::protocols::{ALPN, Ssl};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio::task::JoinSet;

use pingora::apps::ServerApp;

use super::limits::{reading, rejections};
use super::scene::*;
use crate::net::pingora_stream::pingora_stream;

const ON: &str = "websockets_over_http2: true\n";

/// A connection whose TLS handshake has negotiated HTTP/2.
#[derive(Debug)]
struct Negotiated(DuplexStream);

mod as_stream {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Negotiated;

    impl AsyncRead for Negotiated {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Negotiated {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, data)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }
}

pingora_stream!([] Negotiated, called |_| 0);

impl Ssl for Negotiated {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(ALPN::H2)
    }
}

/// An HTTP/2 client of `scene`.
pub(super) async fn client(scene: &Scene, tasks: &mut JoinSet<()>) -> SendRequest<Bytes> {
    let app = Arc::new(scene.components.app(plain_acceptors(&scene.components)));
    let (near, far) = duplex(64 * 1024);
    tasks.spawn(async move {
        let (_shutdown, watching) = watch::channel(false);
        app.process_new(Box::new(Negotiated(far)), &watching).await;
    });
    let (client, connection) = h2::client::handshake(near).await.unwrap();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    // Waits until the SETTINGS of the edge have arrived.
    let mut client = client.ready().await.unwrap();
    let get = Request::get("https://a/").version(Version::HTTP_2).body(());
    let (response, _) = client.send_request(get.unwrap(), true).unwrap();
    assert!(response.await.unwrap().status().is_success());
    client.ready().await.unwrap()
}

fn connect(path: &str, protocol: &'static str) -> Request<()> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(format!("https://a{path}"))
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static(protocol));
    request.body(()).unwrap()
}

/// A backend that responds to requests, rejects `/no`, and echoes the bytes of tunnels.
async fn echo() -> (std::net::SocketAddr, JoinSet<()>) {
    backend(|mut socket| async move {
        let head = read_head(&mut socket).await;
        if header(&head, "upgrade").is_none() {
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            return;
        }
        assert!(head.starts_with("GET /"), "{head}");
        assert_eq!(header(&head, "host"), Some("a"), "{head}");
        assert_eq!(header(&head, "sec-websocket-version"), Some("13"), "{head}");
        assert_eq!(header(&head, "sec-websocket-key").map(str::len), Some(24), "{head}");
        assert!(!head.contains(":protocol"), "{head}");
        if head.starts_with("GET /no ") {
            let _ = socket.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope").await;
            return;
        }
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\n\x81\x05hello";
        socket.write_all(switch).await.unwrap();
        let (mut reading, mut writing) = socket.split();
        let _ = tokio::io::copy(&mut reading, &mut writing).await;
        let _ = writing.shutdown().await;
    })
    .await
}

async fn read(body: &mut h2::RecvStream, length: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < length {
        let next = tokio::time::timeout(SOON, body.data())
            .await
            .expect("in time");
        let Some(Ok(piece)) = next else { break };
        body.flow_control().release_capacity(piece.len()).unwrap();
        data.extend_from_slice(&piece);
    }
    data
}

async fn until_no_tunnel(scene: &Scene) {
    let gone = async {
        while scene.components.tunnels.open() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, gone)
        .await
        .expect("the tunnels end in time");
}

#[tokio::test]
async fn a_websocket_is_served_over_an_http2_stream() {
    let (address, _backend) = echo().await;
    let scene = Scene::configured(&[address], ON).await;
    let mut tasks = JoinSet::new();
    let client = client(&scene, &mut tasks).await;
    assert!(client.is_extended_connect_protocol_enabled());
    let mut client = client.ready().await.unwrap();
    let (response, mut sending) = client
        .send_request(connect("/ws", "websocket"), false)
        .unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let cookie = response.headers()["set-cookie"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(cookie.starts_with("causeway="), "{cookie}");
    let mut body = response.into_body();
    assert_eq!(read(&mut body, 7).await, b"\x81\x05hello");
    assert_eq!(scene.components.tunnels.open(), 1);
    // Ten times the size of any window or buffer, echoed meanwhile.
    let sent: Vec<u8> = (0..1_000_000_u32)
        .map(|index| index.to_le_bytes()[0])
        .collect();
    let expected = sent.clone();
    let writing = async {
        let mut rest = Bytes::from(sent);
        while !rest.is_empty() {
            sending.reserve_capacity(rest.len().min(16 * 1024));
            let capacity = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await;
            let piece = rest.split_to(capacity.unwrap().unwrap().min(rest.len()));
            sending.send_data(piece, rest.is_empty()).unwrap();
        }
    };
    let ((), received) = tokio::join!(writing, read(&mut body, expected.len()));
    assert!(received == expected, "{} bytes", received.len());
    // The end of one direction was echoed as the end of the other.
    assert_eq!(read(&mut body, 1).await, b"");
    until_no_tunnel(&scene).await;
}

#[tokio::test]
async fn a_stream_reset_closes_the_backend_connection() {
    let (address, _backend) = echo().await;
    let scene = Scene::configured(&[address], ON).await;
    let mut tasks = JoinSet::new();
    let mut client = client(&scene, &mut tasks).await;
    let (response, mut sending) = client
        .send_request(connect("/ws", "websocket"), false)
        .unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(read(&mut body, 7).await, b"\x81\x05hello");
    sending.send_reset(h2::Reason::CANCEL);
    until_no_tunnel(&scene).await;
}

#[tokio::test]
async fn a_drain_sends_1012_on_a_stream_too() {
    let (address, _backend) = echo().await;
    let scene = Scene::configured(&[address], ON).await;
    let mut tasks = JoinSet::new();
    let mut client = client(&scene, &mut tasks).await;
    let (response, _sending) = client
        .send_request(connect("/ws", "websocket"), false)
        .unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(read(&mut body, 7).await, b"\x81\x05hello");
    scene.components.tunnels.drain();
    assert_eq!(read(&mut body, 4).await, [0x88, 2, 0x03, 0xf4]);
}

#[tokio::test]
async fn other_connects_are_405_and_rejections_of_the_backend_are_forwarded() {
    let (address, _backend) = echo().await;
    let scene = Scene::configured(&[address], ON).await;
    let mut tasks = JoinSet::new();
    let mut client = client(&scene, &mut tasks).await;
    let plain = Request::builder().method(Method::CONNECT).uri("a:443");
    let plain = plain.version(Version::HTTP_2).body(()).unwrap();
    for (request, status) in [
        (connect("/no", "websocket"), 403),
        (connect("/ws", "foo"), 405),
        (connect("/foo", "websocket"), 405),
        (plain, 405),
    ] {
        let (response, _sending) = client.send_request(request, false).unwrap();
        assert_eq!(response.await.unwrap().status(), status);
        client = client.ready().await.unwrap();
    }
    let response = scene
        .request("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
        .await;
    assert!(response.starts_with("HTTP/1.1 405 "), "{response}");
}

#[tokio::test]
async fn extended_connect_is_announced_only_if_enabled() {
    let (address, _backend) = echo().await;
    let scene = Scene::before(&[address]).await;
    let mut tasks = JoinSet::new();
    let client = client(&scene, &mut tasks).await;
    assert!(!client.is_extended_connect_protocol_enabled());
}

#[tokio::test]
async fn a_body_above_the_limit_is_413_over_http2_too() {
    let (address, _backend) = reading().await;
    let scene = Scene::configured(&[address], "limits: { body_size: 1000B }\n").await;
    let mut tasks = JoinSet::new();
    let mut client = client(&scene, &mut tasks).await;
    for (length, is_declared, status) in [
        (1000, true, 204),
        (1000, false, 204),
        (1001, true, 413),
        (1001, false, 413),
    ] {
        let mut post = Request::post("https://a/").version(Version::HTTP_2);
        if is_declared {
            post = post.header("content-length", length);
        }
        client = client.ready().await.unwrap();
        let (response, mut body) = client.send_request(post.body(()).unwrap(), false).unwrap();
        let data = format!("{}!", "x".repeat(length - 1));
        // A request that is rejected by its length may find the stream closed.
        let sent = body.send_data(data.into(), true);
        assert!(sent.is_ok() || status == 413, "{sent:?}");
        let response = tokio::time::timeout(SOON, response).await.unwrap().unwrap();
        assert_eq!(
            response.status(),
            status,
            "{length}, declared: {is_declared}"
        );
    }
    assert_eq!(rejections(&scene, "body_size"), "2");
}
