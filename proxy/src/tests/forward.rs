//! Forwarding of plain requests: valid and invalid responses of backends, and the reuse of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::scene::*;

/// A request whose client keeps its connection open.
const MORE: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const LAST: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// What a client gets after the status line, without the cookie, if the backend sends `response` and closes.
async fn through_the_edge(request: &str, response: &'static str) -> String {
    let (address, _backend) = responding(response).await;
    let scene = Scene::configured(&[address], "affinity: { cookie: none }\n").await;
    scene.request(request).await
}

#[tokio::test]
async fn a_response_is_forwarded_unchanged() {
    let cases = [
        (
            "HTTP/1.1 200 Fine\r\nDate: x\r\neTag: \"x\"\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 Fine\r\nDate: x\r\neTag: \"x\"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        ),
        // Connection headers of the backend are removed.
        (
            "HTTP/1.1 404 Not Found\r\nDate: x\r\nConnection: keep-alive, X-Mine\r\nKeep-Alive: timeout=5\r\nX-Mine: 1\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nDate: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ),
        // Bytes after the announced length are dropped.
        (
            "HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        ),
        // Chunks are forwarded with their extensions and trailers.
        (
            "HTTP/1.1 200 OK\r\nDate: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n1;a=b\r\no\r\n01\r\nk\r\n0\r\nX: y\r\n\r\n",
            "HTTP/1.1 200 OK\r\nDate: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1;a=b\r\no\r\n01\r\nk\r\n0\r\nX: y\r\n\r\n",
        ),
        // The end of the backend's connection does not end the client's.
        (
            "HTTP/1.0 200 OK\r\nDate: x\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nDate: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        // Interim responses are forwarded first, except a 100 that was not requested.
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\nDate: x\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\nDate: x\r\nConnection: close\r\n\r\n",
        ),
    ];
    for (response, expected) in cases {
        assert_eq!(
            through_the_edge(LAST, response).await,
            expected,
            "{response}"
        );
    }
    let head = through_the_edge(
        "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 2\r\n\r\n",
    );
    assert_eq!(
        head.await,
        "HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    );
}

#[tokio::test]
async fn an_invalid_response_is_a_502() {
    for response in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
    ] {
        let post = LAST.replace("GET", "POST");
        let got = through_the_edge(&post, response).await;
        assert!(got.starts_with("HTTP/1.1 502 "), "{response:?} {got}");
    }
    let endless = backend(|mut socket| async move {
        read_head(&mut socket).await;
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while socket.write_all(b"X: y\r\n").await.is_ok() {}
    });
    let (address, _backend) = endless.await;
    let scene = Scene::before(&[address]).await;
    assert!(scene.request(LAST).await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn a_truncated_response_ends_the_clients_connection() {
    for (response, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "half"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "4\r\nhalf\r\n",
        ),
    ] {
        let got = through_the_edge(MORE, response).await;
        assert!(got.ends_with(&format!("\r\n\r\n{expected}")), "{got}");
    }
    // An invalid first chunk is not forwarded: the client can still get an error response.
    let wrong = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nwrong\r\n";
    let got = through_the_edge(LAST, wrong).await;
    assert!(
        got.starts_with("HTTP/1.1 502 ") && !got.contains("wrong"),
        "{got}"
    );
}

/// A backend that responds to each request with the number of its connection, and with `more` headers.
async fn numbering(more: &'static str) -> (std::net::SocketAddr, tokio::task::JoinSet<()>) {
    let connections = Arc::new(AtomicUsize::new(0));
    backend(move |mut socket| {
        let number = connections.fetch_add(1, Ordering::Relaxed);
        async move {
            while !read_head(&mut socket).await.is_empty() {
                let response =
                    format!("HTTP/1.1 200 OK\r\n{more}Content-Length: 1\r\n\r\n{number}");
                socket.write_all(response.as_bytes()).await.unwrap();
                if more.contains("close") {
                    return;
                }
            }
        }
    })
    .await
}

/// The body of the next response, which is one byte.
async fn next_body(client: &mut TcpStream) -> String {
    let head = read_head(client).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    String::from_utf8(read_exact(client, 1).await).unwrap()
}

#[tokio::test]
async fn sequential_requests_share_a_backend_connection() {
    let (address, _backend) = numbering("").await;
    let scene = Scene::before(&[address]).await;
    let mut client = scene.send(MORE).await;
    for _ in 0..3 {
        assert_eq!(next_body(&mut client).await, "0");
        client.write_all(MORE.as_bytes()).await.unwrap();
    }
    assert_eq!(next_body(&mut client).await, "0");
    // Also a request of another client, and one whose body has been sent.
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";
    assert!(scene.request(post).await.ends_with("\r\n\r\n0"));
    let pools = scene.components.proxy.pools();
    let kept = pools.iter().flat_map(|pool| pool.backends());
    assert_eq!(kept.map(|backend| backend.idle.count()).sum::<usize>(), 1);
}

#[tokio::test]
async fn concurrent_requests_have_a_backend_connection_each_and_pipelined_responses_are_in_order() {
    let (asked, mut asks) = mpsc::channel(8);
    let (address, _backend) = backend(move |mut socket| {
        let asked = asked.clone();
        async move {
            let mut body = [0; 3];
            while !read_head(&mut socket).await.is_empty() {
                socket.read_exact(&mut body).await.unwrap();
                asked.send(body.to_vec()).await.unwrap();
                let response = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
                socket.write_all(response).await.unwrap();
                socket.write_all(&body).await.unwrap();
            }
        }
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let post =
        |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n{body}");
    // Both requests and the start of a third in one write.
    let all = [&post("one"), &post("two"), &post("thr")[..20]].concat();
    let mut client = scene.send(all).await;
    for body in ["one", "two"] {
        read_head(&mut client).await;
        assert_eq!(read_exact(&mut client, 3).await, body.as_bytes());
        assert_eq!(asks.recv().await.unwrap(), body.as_bytes());
    }
    client
        .write_all(&post("thr").as_bytes()[20..])
        .await
        .unwrap();
    read_head(&mut client).await;
    assert_eq!(read_exact(&mut client, 3).await, b"thr");
}

#[tokio::test]
async fn a_connection_that_its_backend_closes_is_not_reused() {
    let (address, _backend) = numbering("Connection: close\r\n").await;
    let scene = Scene::before(&[address]).await;
    let mut client = scene.send(MORE).await;
    for number in ["0", "1", "2"] {
        assert_eq!(next_body(&mut client).await, number);
        client.write_all(MORE.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_on_a_stale_idle_connection_is_sent_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let (address, _backend) = backend(move |mut socket| {
        let is_first = connections.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            read_head(&mut socket).await;
            let response = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1";
            socket.write_all(response).await.unwrap();
            if is_first {
                // Closes when the second request arrives, like a backend whose idle timeout has just expired.
                read_head(&mut socket).await;
                return;
            }
            read_all(&mut socket).await;
        }
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let mut client = scene.send(MORE).await;
    assert_eq!(next_body(&mut client).await, "1");
    client.write_all(MORE.as_bytes()).await.unwrap();
    assert_eq!(next_body(&mut client).await, "1");
    assert_eq!(scene.components.proxy.metrics.retries.get(), 0);
}

#[tokio::test]
async fn a_response_of_the_edge_itself_leaves_the_connection_open() {
    let (address, _backend) = mirror().await;
    let scene = Scene::before(&[address]).await;
    let elsewhere = MORE.replace("GET /", "GET /metrics");
    let mut client = scene.send(&elsewhere).await;
    for _ in 0..2 {
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        assert_eq!(header(&head, "connection"), None);
        let length = header(&head, "content-length").unwrap().parse().unwrap();
        read_exact(&mut client, length).await;
        client.write_all(elsewhere.as_bytes()).await.unwrap();
    }
    // After a request that cannot be parsed the connection is closed.
    read_head(&mut client).await;
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
        .await
        .unwrap();
    assert!(read_all(&mut client).await.contains("HTTP/1.1 400 "));
}

/// Sends `request`, half-closes the connection, and reads everything that the client gets.
async fn half_closed(scene: &Scene, request: &str) -> String {
    let mut client = scene.send(request).await;
    client.shutdown().await.unwrap();
    read_all(&mut client).await
}

#[tokio::test]
async fn a_half_closed_client_gets_its_response_and_its_backend_sees_the_half_close() {
    let (address, _backend) = backend(|mut socket| async move {
        read_head(&mut socket).await;
        // The half-close is forwarded before the response.
        assert_eq!(read_all(&mut socket).await, "");
        let _ = socket
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let got = half_closed(&scene, MORE).await;
    assert!(
        got.starts_with("HTTP/1.1 200 ") && got.ends_with("ok"),
        "{got}"
    );
    let scene = Scene::configured(&[address], "abort_on_client_close: true\n").await;
    assert_eq!(half_closed(&scene, MORE).await, "");
}

#[tokio::test]
async fn a_half_closed_client_gets_its_response_over_a_reused_connection() {
    let (address, _backend) = numbering("").await;
    let scene = Scene::before(&[address]).await;
    let mut client = scene.send(MORE).await;
    assert_eq!(next_body(&mut client).await, "0");
    let got = half_closed(&scene, MORE).await;
    assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
}

#[tokio::test]
async fn a_backend_that_closes_on_a_half_close_is_not_marked_as_failed() {
    let (address, _backend) = backend(|mut socket| async move {
        read_head(&mut socket).await;
        read_all(&mut socket).await;
    })
    .await;
    let scene = Scene::before(&[address]).await;
    assert_eq!(half_closed(&scene, MORE).await, "");
    for pool in scene.components.proxy.pools().iter() {
        for backend in pool.backends() {
            assert_ne!(backend.state(), crate::balancer::pool::State::Suspect);
        }
    }
}
