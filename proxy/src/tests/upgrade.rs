//! Upgrades and their tunnels.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use pingora::http::RequestHeader;

use crate::balancer::pool::ProbeResult;
use crate::balancer::pool::State;
use crate::http::scheme::Scheme;
use crate::request::error::Rejection;
use crate::request::exchange::Replay;
use crate::upstream::DialError;

use super::scene::*;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A backend that switches protocols, sends `greeting` in the same write, and echoes.
async fn echo(greeting: &'static str) -> (SocketAddr, JoinSet<()>) {
    backend(move |mut socket| async move {
        read_head(&mut socket).await;
        socket
            .write_all(format!("{SWITCH}{greeting}").as_bytes())
            .await
            .unwrap();
        let (mut reading, mut writing) = socket.split();
        let _ = tokio::io::copy(&mut reading, &mut writing).await;
    })
    .await
}

async fn open(scene: &Scene) -> (TcpStream, String) {
    let mut client = scene.send(UPGRADE).await;
    let head = read_head(&mut client).await;
    (client, head)
}

#[tokio::test]
async fn the_101_binds_the_client_and_early_bytes_of_both_sides_are_forwarded() {
    let (address, _backend) = echo("\u{1}\u{2}hi").await;
    let scene = Scene::before(&[address]).await;
    let mut client = scene.send(format!("{UPGRADE}early")).await;
    let head = read_head(&mut client).await;
    assert!(
        head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
        "{head}"
    );
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    assert_eq!(header(&head, "connection"), Some("Upgrade"));
    assert!(
        header(&head, "set-cookie")
            .unwrap()
            .starts_with("causeway=")
    );
    assert_eq!(read_exact(&mut client, 9).await, b"\x01\x02hiearly");
    client.write_all(b"more").await.unwrap();
    assert_eq!(read_exact(&mut client, 4).await, b"more");
    assert_eq!(scene.components.tunnels.open(), 1);
    drop(client);
    scene.components.tunnels.drain();
    tokio::time::timeout(SOON, scene.components.tunnels.wait_closed())
        .await
        .expect("the tunnel ends with its client");
}

#[tokio::test]
async fn any_number_of_bytes_may_be_sent_before_the_101() {
    let (address, _backend) = echo("").await;
    let scene = Scene::before(&[address]).await;
    let early: Vec<u8> = (0..300_000_u32)
        .map(|index| b'a' + (index % 23) as u8)
        .collect();
    let at_once = [UPGRADE.as_bytes(), &early].concat();
    let mut client = scene.send("").await;
    let (mut reading, mut writing) = client.split();
    let exchange = async {
        tokio::join!(writing.write_all(&at_once), async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(reading.read_u8().await.unwrap());
            }
            let mut echoed = vec![0; early.len()];
            reading.read_exact(&mut echoed).await.unwrap();
            assert!(head.starts_with(b"HTTP/1.1 101 "));
            assert!(echoed == early, "the bytes are corrupted");
        })
    };
    let (sent, ()) = tokio::time::timeout(SOON, exchange)
        .await
        .expect("the bytes in time");
    sent.unwrap();
}

#[tokio::test]
async fn the_backend_gets_a_canonical_upgrade_with_forwarding_headers() {
    let (seen, mut heads) = mpsc::channel(1);
    let (address, _backend) = backend(move |mut socket| {
        let seen = seen.clone();
        async move {
            seen.send(read_head(&mut socket).await).await.unwrap();
        }
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let request = "GET http://real.example/ws?a=1 HTTP/1.1\r\nHost: real.example\r\nConnection: Upgrade, X-Secret\r\nUpgrade: websocket\r\n\
                   X-Secret: 1\r\nX-Forwarded-For: 6.6.6.6\r\nCookie: mine=1; causeway=u1.b0.1\r\nKeep-Alive: 5\r\n\r\n";
    let _client = scene.send(request).await;
    let head = tokio::time::timeout(SOON, heads.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(head.starts_with("GET /ws?a=1 HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "host"), Some("real.example"));
    assert_eq!(header(&head, "connection"), Some("Upgrade"));
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    assert_eq!(header(&head, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(header(&head, "cookie"), Some("mine=1"));
    assert_eq!(
        (header(&head, "x-secret"), header(&head, "keep-alive")),
        (None, None)
    );
}

#[tokio::test]
async fn an_upgrade_is_sent_to_other_backends_until_one_switches() {
    let (address, _good) = echo("").await;
    let (hangs_up, _hangs_up) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    let (busy, _busy) =
        responding("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    for bad in [closed_port().await, hangs_up, busy] {
        let scene = Scene::before(&[bad, address]).await;
        for _ in 0..2 {
            let (mut client, head) = open(&scene).await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            assert!(
                header(&head, "set-cookie").unwrap().contains(".b1."),
                "{head}"
            );
            client.write_all(b"x").await.unwrap();
            assert_eq!(read_exact(&mut client, 1).await, b"x");
        }
    }
}

#[tokio::test]
async fn a_response_other_than_101_is_forwarded_completely() {
    let chunked = "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\nX-Why: origin\r\nKeep-Alive: 5\r\n\r\n2\r\nno\r\n2\r\npe\r\n0\r\n\r\n";
    let plain = "HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nX-Why: origin\r\nConnection: keep-alive\r\n\r\nnope";
    let closed = "HTTP/1.1 403 Forbidden\r\nX-Why: origin\r\nConnection: close\r\n\r\nnope";
    for response in [chunked, plain, closed] {
        let (address, _backend) = responding(response).await;
        let scene = Scene::before(&[address]).await;
        let received = scene.request(UPGRADE).await;
        assert!(
            received.starts_with("HTTP/1.1 403 Forbidden\r\n"),
            "{received}"
        );
        assert_eq!(header(&received, "x-why"), Some("origin"));
        assert_eq!(header(&received, "connection"), Some("close"));
        assert!(
            received.replace("\r\n2\r\n", "").contains("pe"),
            "{received}"
        );
    }
}

#[tokio::test]
async fn the_last_rejection_is_forwarded_when_every_backend_rejects_the_upgrade() {
    let response =
        "HTTP/1.1 503 Service Unavailable\r\nX-Why: draining\r\nContent-Length: 0\r\n\r\n";
    let (first, _first) = responding(response).await;
    let (second, _second) = responding(response).await;
    let scene = Scene::before(&[first, second, closed_port().await]).await;
    let received = scene.request(UPGRADE).await;
    assert!(received.starts_with("HTTP/1.1 503 "), "{received}");
    assert_eq!(header(&received, "x-why"), Some("draining"));
}

#[tokio::test]
async fn a_bound_client_gets_the_rejection_of_its_own_backend_and_stays_bound() {
    let (other, _other) = echo("").await;
    let (busy, _busy) =
        responding("HTTP/1.1 503 Service Unavailable\r\nX-Why: app\r\nContent-Length: 0\r\n\r\n")
            .await;
    let scene = Scene::before(&[busy, other]).await;
    let received = scene
        .request("GET /ws HTTP/1.1\r\nHost: a\r\nCookie: causeway=u1.b0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert!(received.starts_with("HTTP/1.1 503 "), "{received}");
    assert_eq!(header(&received, "x-why"), Some("app"));
    assert_eq!(header(&received, "set-cookie"), None);
    assert_eq!(scene.components.proxy.metrics.retries.get(), 0);
}

#[tokio::test]
async fn an_upgrade_is_sent_to_another_backend_if_its_own_goes_down_before_it_responds() {
    let (asked, mut asks) = mpsc::channel(8);
    let (silent, _silent) = backend(move |mut socket| {
        let asked = asked.clone();
        async move {
            read_head(&mut socket).await;
            asked.send(()).await.unwrap();
            read_all(&mut socket).await;
        }
    })
    .await;
    let (other, _other) = echo("").await;
    let scene = Scene::before(&[silent, other]).await;
    let mut client = scene
        .send("GET /ws HTTP/1.1\r\nHost: a\r\nCookie: causeway=u1.b0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    tokio::time::timeout(SOON, asks.recv()).await.unwrap();
    mark_down(&scene, "b0");
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let cookie = header(&head, "set-cookie").expect("it is bound anew");
    assert!(cookie.starts_with("causeway=u1.b1."), "{head}");
}

#[tokio::test]
async fn request_smuggling_is_rejected_before_it_reaches_a_backend() {
    let (seen, mut heads) = mpsc::channel::<()>(1);
    let (address, _backend) = backend(move |mut socket| {
        let seen = seen.clone();
        async move {
            if !read_head(&mut socket).await.is_empty() {
                let _ = seen.send(()).await;
            }
        }
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let upgrade = "Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    for request in [
        format!("GET / HTTP/1.1\r\n{upgrade}Content-Length: 5\r\n\r\nhello"),
        format!("GET / HTTP/1.1\r\n{upgrade}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{upgrade}Host: b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{upgrade}Content-Length: 0\r\nContent-Length: 9\r\n\r\n"),
    ] {
        let response = scene.request(&request).await;
        assert!(
            response.starts_with("HTTP/1.1 400 "),
            "{request:?}: {response}"
        );
    }
    assert!(heads.try_recv().is_err());
}

#[tokio::test]
async fn an_upgrade_that_the_backend_rejects_opens_no_tunnel() {
    // The backend responds with 426, and the client goes on as if upgraded (request smuggling as in CVE-2026-2833).
    let (address, _backend) =
        responding("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n").await;
    let scene = Scene::before(&[address]).await;
    let response = scene
        .request(format!("{UPGRADE}GET /private HTTP/1.1\r\nHost: a\r\n\r\n"))
        .await;
    assert!(response.starts_with("HTTP/1.1 426 "), "{response}");
    assert_eq!(response.matches("HTTP/1.1").count(), 1, "{response}");
    assert_eq!(scene.components.tunnels.open(), 0);
}

#[tokio::test]
async fn a_client_that_disconnects_before_the_response_ends_the_attempt_at_the_backend() {
    let (left, mut wait_closed) = mpsc::channel(1);
    let (address, _backend) = backend(move |mut socket| {
        let left = left.clone();
        async move {
            read_head(&mut socket).await;
            left.send("asked").await.unwrap();
            read_all(&mut socket).await;
            left.send("wait_closed").await.unwrap();
        }
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let client = scene.send(UPGRADE).await;
    assert_eq!(wait_closed.recv().await, Some("asked"));
    drop(client);
    assert_eq!(
        tokio::time::timeout(SOON, wait_closed.recv())
            .await
            .unwrap(),
        Some("wait_closed")
    );
}

#[tokio::test]
async fn a_backend_that_does_not_respond_to_an_upgrade_is_a_504() {
    let (address, _backend) = backend(|mut socket| async move {
        read_all(&mut socket).await;
    })
    .await;
    let scene = Scene::configured(&[address], "timeouts: { upgrade: 1s }\n").await;
    let response = scene.request(UPGRADE).await;
    assert!(response.starts_with("HTTP/1.1 504 "), "{response}");
}

#[tokio::test]
async fn the_last_failure_is_the_response_to_an_upgrade_when_no_backend_is_left_to_try() {
    let (dying, _dying) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    for (address, status) in [(dying, "502"), (closed_port().await, "503")] {
        let scene = Scene::before(&[address]).await;
        let response = scene.request(UPGRADE).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{response}"
        );
        assert_eq!(scene.components.proxy.metrics.retries.get(), 1);
    }
}

#[tokio::test]
async fn a_dial_timeout_is_a_504_when_no_backend_is_left_to_try() {
    let scene = Scene::before(&[closed_port().await]).await;
    let proxy = &scene.components.proxy;
    let mut request = RequestHeader::build("GET", b"/", None).unwrap();
    request.insert_header("Host", "a").unwrap();
    let mut exchange = proxy
        .admit(&mut request, None, scene.address.ip(), Scheme::Http)
        .unwrap();
    proxy.choose(&mut exchange).unwrap();
    let error = DialError::Timeout(SOON).into();
    assert_eq!(
        proxy.attempt_failed(&mut exchange, &error, Replay::Possible),
        Ok(())
    );
    let refused = proxy
        .choose(&mut exchange)
        .map(|backend| backend.id.clone());
    assert!(
        matches!(refused, Err(Rejection::BackendTimeout(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn the_end_of_either_side_is_forwarded() {
    let (address, _backend) = echo("").await;
    let scene = Scene::before(&[address]).await;
    let (mut client, _) = open(&scene).await;
    client.write_all(b"bye").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"bye");
    scene.components.tunnels.drain();
    tokio::time::timeout(SOON, scene.components.tunnels.wait_closed())
        .await
        .expect("all tunnels are closed");
}

#[tokio::test]
async fn an_upgrade_may_follow_a_request_on_the_same_connection() {
    let (address, _backend) = backend(|mut socket| async move {
        loop {
            let head = read_head(&mut socket).await;
            if head.contains("pgrade") {
                socket.write_all(SWITCH.as_bytes()).await.unwrap();
                let (mut reading, mut writing) = socket.split();
                let _ = tokio::io::copy(&mut reading, &mut writing).await;
                return;
            }
            if head.is_empty() {
                return;
            }
            socket
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await
                .unwrap();
        }
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let mut client = scene.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
    client
        .write_all(format!("{UPGRADE}early").as_bytes())
        .await
        .unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
    assert_eq!(read_exact(&mut client, 5).await, b"early");
}

#[tokio::test]
async fn an_upgrade_that_is_not_idempotent_is_sent_once() {
    let (hangs_up, _hangs_up) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    let (busy, _busy) =
        responding("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    for (first, status) in [(hangs_up, "502"), (busy, "503")] {
        let scene = Scene::before(&[first, first]).await;
        let response = scene
            .request("POST /foo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n")
            .await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{response}"
        );
        assert_eq!(scene.components.proxy.metrics.retries.get(), 0);
    }
}

#[tokio::test]
async fn descriptor_exhaustion_does_not_count_against_the_backend() {
    let scene = Scene::before(&[closed_port().await, closed_port().await]).await;
    let proxy = &scene.components.proxy;
    let mut request = RequestHeader::build("GET", b"/", None).unwrap();
    request.insert_header("Host", "a").unwrap();
    let peer = scene.address.ip();
    let now = std::time::Instant::now();
    for pool in proxy.pools().iter() {
        for backend in pool.backends() {
            pool.probed(&backend, ProbeResult::Good, now);
        }
    }
    for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS] {
        let mut exchange = proxy.admit(&mut request, None, peer, Scheme::Http).unwrap();
        let backend = proxy.choose(&mut exchange).unwrap();
        let error = DialError::from_io(std::io::Error::from_raw_os_error(code));
        let refused = proxy.attempt_failed(&mut exchange, &error.into(), Replay::Possible);
        assert_eq!(refused, Err(Rejection::NoBackend));
        assert_eq!(backend.state(), State::Up);
    }
}

/// The local ports for one backend are exhausted, as when connections are opened faster than TIME_WAIT ends.
#[tokio::test]
async fn with_ports_exhausted_new_clients_get_another_backend_and_bound_clients_wait() {
    let scene = Scene::before(&[closed_port().await, closed_port().await]).await;
    let proxy = &scene.components.proxy;
    let peer = scene.address.ip();
    for pool in proxy.pools().iter() {
        for backend in pool.backends() {
            pool.probed(&backend, ProbeResult::Good, std::time::Instant::now());
        }
    }
    let error = || DialError::from_io(std::io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
    let mut request = RequestHeader::build("GET", b"/", None).unwrap();
    request.insert_header("Host", "a").unwrap();
    let mut new_client = proxy.admit(&mut request, None, peer, Scheme::Http).unwrap();
    let first = proxy.choose(&mut new_client).unwrap();
    assert_eq!(
        proxy.attempt_failed(&mut new_client, &error().into(), Replay::Possible),
        Ok(())
    );
    let second = proxy.choose(&mut new_client).unwrap();
    assert_ne!(first.id, second.id);

    request.insert_header("Cookie", "causeway=u1.b0.1").unwrap();
    let mut known = proxy.admit(&mut request, None, peer, Scheme::Http).unwrap();
    proxy.choose(&mut known).unwrap();
    assert_eq!(
        proxy.attempt_failed(&mut known, &error().into(), Replay::Possible),
        Ok(())
    );
    assert!(known.is_parked());
    assert_eq!(first.state(), State::Up);
}

/// Sends an upgrade to a backend that responds with `response`. Returns the head that the client gets.
async fn upgrade_with(response: &'static str) -> (Scene, JoinSet<()>, TcpStream, String) {
    let (address, backend) = backend(move |mut socket| async move {
        read_head(&mut socket).await;
        socket.write_all(response.as_bytes()).await.unwrap();
        read_all(&mut socket).await;
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let mut client = scene.send(UPGRADE).await;
    let head = read_head(&mut client).await;
    (scene, backend, client, head)
}

#[tokio::test]
async fn bytes_after_the_101_are_forwarded_after_it() {
    let response = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n\u{1}\u{2}hi";
    let (_scene, _backend, mut client, head) = upgrade_with(response).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    assert_eq!(read_exact(&mut client, 4).await, b"\x01\x02hi");
}

#[tokio::test]
async fn an_interim_response_before_the_101_is_skipped() {
    let response = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nx";
    let (_scene, _backend, mut client, head) = upgrade_with(response).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(read_exact(&mut client, 1).await, b"x");
}

#[tokio::test]
async fn an_invalid_response_to_an_upgrade_is_a_502() {
    for response in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "garbage\r\n\r\n",
    ] {
        let (_scene, _backend, _client, head) = upgrade_with(response).await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{response}: {head}");
    }
}

#[tokio::test]
async fn an_ordinary_response_to_an_upgrade_has_its_body() {
    let response = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
    let (_scene, _backend, mut client, head) = upgrade_with(response).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(read_exact(&mut client, 2).await, b"no");
}
