//! Behaviour of the edge's own listeners, which read request heads themselves.

use std::sync::Arc;

use pingora::apps::ServerApp;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};

use super::scene::*;

const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn sequential_and_pipelined_requests_share_a_connection() {
    let (address, _backend) = backend(|mut socket| async move {
        while !read_head(&mut socket).await.is_empty() {
            socket
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await
                .unwrap();
        }
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let one = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    let response = scene.request(format!("{one}{post}{one}{GET}")).await;
    assert_eq!(response.matches("HTTP/1.1 200 OK").count(), 4, "{response}");
    assert_eq!(response.matches("\r\n\r\nok").count(), 4, "{response}");
}

#[tokio::test]
async fn a_pipelined_request_waits_for_the_end_of_the_first() {
    let (go, wait) = mpsc::channel::<()>(1);
    let wait = Arc::new(tokio::sync::Mutex::new(wait));
    let (address, _backend) = backend(move |mut socket| {
        let wait = Arc::clone(&wait);
        async move {
            while !read_head(&mut socket).await.is_empty() {
                wait.lock().await.recv().await;
                socket
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await
                    .unwrap();
            }
        }
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let mut client = scene.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    tokio::task::yield_now().await;
    client.write_all(GET.as_bytes()).await.unwrap();
    go.send(()).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK"));
    assert_eq!(read_exact(&mut client, 2).await, b"ok");
    go.send(()).await.unwrap();
    assert!(read_all(&mut client).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn invalid_heads_get_the_status_of_their_rfc_and_reach_no_backend() {
    let (address, _backend) = mirror().await;
    let scene = Scene::configured(
        &[address],
        "limits: { head_size: 1KiB }\ntimeouts: { head: 1s }\n",
    )
    .await;
    let large = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(2000)
    );
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n", "408"),
        (large.as_str(), "431"),
        ("garbage\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", "405"),
    ] {
        let response = scene.request(request).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {response}"
        );
    }
}

#[tokio::test]
async fn connections_above_the_limit_get_a_response() {
    let (address, _backend) = mirror().await;
    let scene = Scene::configured(&[address], "limits: { connections: 1 }\n").await;
    let mut first = scene.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(read_head(&mut first).await.starts_with("HTTP/1.1 200"));
    let response = scene.request(GET).await;
    assert!(
        response.starts_with("HTTP/1.1 503 ") && response.ends_with("too many connections\n"),
        "{response}"
    );
}

#[tokio::test]
async fn the_number_of_rejected_connections_with_a_response_is_bounded() {
    let (address, _backend) = mirror().await;
    let scene = Scene::configured(&[address], "limits: { connections: 1 }\n").await;
    let mut first = scene.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(read_head(&mut first).await.starts_with("HTTP/1.1 200 "));
    assert!(scene.request(GET).await.starts_with("HTTP/1.1 503 "));
    let most = u32::try_from(scene.components.files.over_limit).unwrap();
    let lingering = scene
        .components
        .over_limit
        .acquire_many(most)
        .await
        .unwrap();
    assert_eq!(scene.request(GET).await, "");
    drop(lingering);
    assert!(scene.request(GET).await.starts_with("HTTP/1.1 503 "));
}

/// Serves an in-memory connection.
async fn serve(scene: &Scene, connection: DuplexStream) {
    let app = Arc::new(scene.components.app(plain_acceptors(&scene.components)));
    let (_shutdown, watching) = watch::channel(false);
    app.process_new(Box::new(connection), &watching).await;
}

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_client_that_still_sends_when_its_upgrade_is_rejected_gets_the_response() {
    let scene = Scene::before(&[closed_port().await]).await;
    let upgrade = UPGRADE.replace("Host", "Content-Length: 65536\r\nHost");
    // More than is read ahead: closing at once would reset the connection.
    let request = [upgrade.as_bytes(), &[b'x'; 64 * 1024]].concat();
    let (client, edge) = tokio::io::duplex(4096);
    let (mut reading, mut writing) = tokio::io::split(client);
    let mut response = String::new();
    let ((), sent, received) = tokio::join!(
        serve(&scene, edge),
        writing.write_all(&request),
        reading.read_to_string(&mut response),
    );
    assert!(sent.is_ok() && received.is_ok(), "{sent:?} {received:?}");
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
}

#[tokio::test]
async fn a_client_that_does_not_read_the_response_to_its_upgrade_is_disconnected() {
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let (switching, _switching) = responding(switch).await;
    let (refusing, _refusing) = responding("HTTP/1.1 403 Forbidden\r\n\r\nnope").await;
    let closed = closed_port().await;
    let give_up = async |address| {
        let scene = Scene::configured(&[address], "timeouts: { downstream_write: 1s }\n").await;
        // Room for only a part of a head.
        let (mut client, edge) = tokio::io::duplex(64);
        let served = tokio::time::timeout(SOON, serve(&scene, edge));
        let (sent, served) = tokio::join!(client.write_all(UPGRADE.as_bytes()), served);
        sent.unwrap();
        assert!(served.is_ok());
        assert_eq!(scene.components.tunnels.open(), 0);
    };
    tokio::join!(give_up(switching), give_up(refusing), give_up(closed));
}

#[tokio::test]
async fn chunk_boundaries_of_the_backend_are_preserved() {
    // All in one segment: chunks that are read at once must not be merged.
    let chunks = [
        "h".repeat(2049),
        "o\n".to_owned(),
        "x".repeat(500),
        "y".to_owned(),
    ];
    let mut response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    for chunk in &chunks {
        response.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    response.push_str("0\r\n\r\n");
    let (address, _backend) = responding(response.leak()).await;
    let scene = Scene::before(&[address]).await;
    for _ in 0..20 {
        let response = scene.request(GET).await;
        let (head, mut body) = response.split_once("\r\n\r\n").unwrap();
        assert_eq!(header(head, "transfer-encoding"), Some("chunked"));
        for chunk in chunks.iter().map(String::as_str).chain([""]) {
            let (length, rest) = body.split_once("\r\n").unwrap();
            assert_eq!(usize::from_str_radix(length, 16), Ok(chunk.len()));
            let (content, rest) = rest.split_at(chunk.len());
            assert_eq!(content, chunk);
            body = rest.strip_prefix("\r\n").unwrap();
        }
        assert_eq!(body, "");
    }
}
