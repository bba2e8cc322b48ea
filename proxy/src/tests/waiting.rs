//! Parked requests, which wait for their backend to become available again.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::balancer::pool::ProbeResult;

use super::scene::*;

/// Bound to `b0`.
const GET: &str =
    "GET /a HTTP/1.1\r\nHost: a\r\nCookie: causeway=u1.b0.1\r\nConnection: close\r\n\r\n";
const POST: &str = "POST /a HTTP/1.1\r\nHost: a\r\nCookie: causeway=u1.b0.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nCookie: causeway=u1.b0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// A backend that is unavailable: its address is reserved, and refuses connections.
struct Unavailable(TcpSocket);

impl Unavailable {
    fn new() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap())
    }

    /// As [`Unavailable::new`]; another one may still listen at `address`.
    fn at(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind(address).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn start_listening(self) -> TcpListener {
        self.0.listen(16).unwrap()
    }
}

/// Responds to a request or upgrade, echoing the request body.
async fn response(mut socket: TcpStream) {
    let head = read_head(&mut socket).await;
    if head.contains("pgrade") {
        let switch =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        return socket.write_all(switch.as_bytes()).await.unwrap();
    }
    let length = if head.starts_with("POST") { 5 } else { 0 };
    let body = read_exact(&mut socket, length).await;
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
    socket.write_all(response.as_bytes()).await.unwrap();
    socket.write_all(&body).await.unwrap();
    socket.write_all(&b"alone"[length..]).await.unwrap();
}

/// A sample of the metrics page.
fn metric(scene: &Scene, name: &str) -> u64 {
    let page = scene.components.proxy.metrics.encode();
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

fn wait_outcomes(scene: &Scene, outcome: &str) -> u64 {
    let name = format!("causeway_proxy_waits_total{{backend=\"b0\",outcome=\"{outcome}\"}}");
    metric(scene, &name)
}

/// Returns when `count` requests are parked for `b0`.
async fn until_parked(scene: &Scene, count: u64) {
    let waited = async {
        while metric(scene, "causeway_proxy_requests_waiting{backend=\"b0\"}") != count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waited)
        .await
        .expect("they are parked");
}

#[tokio::test]
async fn a_request_waits_for_the_backend_that_its_client_is_bound_to() {
    let (other, _other) = mirror().await;
    let unavailable = Unavailable::new();
    let scene = Scene::before(&[unavailable.address(), other]).await;
    let cases = [
        (GET, "200", "alone"),
        (POST, "200", "hello"),
        (UPGRADE, "101", ""),
    ];
    let mut clients = Vec::new();
    for (request, status, body) in cases {
        clients.push((scene.send(request).await, status, body));
    }
    until_parked(&scene, 3).await;
    let _backend = serve(unavailable.start_listening(), response);
    for (mut client, status, body) in clients {
        let received = read_all(&mut client).await;
        assert!(
            received.starts_with(&format!("HTTP/1.1 {status} ")),
            "{received}"
        );
        assert!(received.ends_with(&format!("\r\n\r\n{body}")), "{received}");
        assert_eq!(header(&received, "set-cookie"), None);
    }
    assert_eq!(
        (
            wait_outcomes(&scene, "returned"),
            wait_outcomes(&scene, "moved")
        ),
        (3, 0)
    );
    until_parked(&scene, 0).await;
}

#[tokio::test]
async fn a_client_is_bound_to_another_backend_after_the_maximum_wait() {
    let (other, _other) = backend(response).await;
    let unavailable = Unavailable::new();
    let scene =
        Scene::configured(&[unavailable.address(), other], "affinity: { hold: 1s }\n").await;
    let (get, post, upgrade) = tokio::join!(
        scene.request(GET),
        scene.request(POST),
        scene.request(UPGRADE)
    );
    for received in [get, post, upgrade] {
        let cookie = header(&received, "set-cookie").expect("it is bound anew");
        assert!(cookie.starts_with("causeway=u1.b1."), "{received}");
    }
    assert_eq!(
        (
            wait_outcomes(&scene, "moved"),
            wait_outcomes(&scene, "returned")
        ),
        (3, 0)
    );
}

#[tokio::test]
async fn a_request_that_waited_in_vain_gets_503_if_there_is_no_other_backend() {
    let unavailable = Unavailable::new();
    let scene = Scene::configured(&[unavailable.address()], "affinity: { hold: 1s }\n").await;
    let (get, post, upgrade) = tokio::join!(
        scene.request(GET),
        scene.request(POST),
        scene.request(UPGRADE)
    );
    for received in [get, post, upgrade] {
        assert!(received.starts_with("HTTP/1.1 503 "), "{received}");
    }
    assert_eq!(wait_outcomes(&scene, "moved"), 3);
}

#[tokio::test]
async fn requests_stop_waiting_for_a_backend_that_drains() {
    let (other, _other) = backend(response).await;
    let unavailable = Unavailable::new();
    let scene =
        Scene::configured(&[unavailable.address(), other], "affinity: { hold: 1m }\n").await;
    let mut clients = Vec::new();
    for request in [GET, POST, UPGRADE] {
        clients.push(scene.send(request).await);
    }
    until_parked(&scene, 3).await;
    for pool in scene.components.proxy.pools().iter() {
        let backend = &pool.backends()[0];
        pool.probed(backend, ProbeResult::Draining, std::time::Instant::now());
    }
    for client in &mut clients {
        let received = read_all(client).await;
        assert!(header(&received, "set-cookie").is_some(), "{received}");
    }
    assert_eq!(wait_outcomes(&scene, "moved"), 3);
}

#[tokio::test]
async fn requests_stop_waiting_when_the_edge_drains() {
    let (other, _other) = backend(response).await;
    let unavailable = Unavailable::new();
    let scene =
        Scene::configured(&[unavailable.address(), other], "affinity: { hold: 1m }\n").await;
    let mut clients = Vec::new();
    for request in [GET, POST, UPGRADE] {
        clients.push(scene.send(request).await);
    }
    until_parked(&scene, 3).await;
    scene.components.connections.drain();
    for client in &mut clients {
        let received = read_all(client).await;
        assert!(header(&received, "set-cookie").is_some(), "{received}");
    }
}

#[tokio::test]
async fn a_client_that_disconnects_is_no_longer_parked() {
    let unavailable = Unavailable::new();
    let scene = Scene::configured(&[unavailable.address()], "affinity: { hold: 1m }\n").await;
    let unread = POST.replace("Length: 5", "Length: 6");
    for (count, request) in (1..).zip([GET, POST, unread.as_str(), UPGRADE]) {
        let client = scene.send(request).await;
        until_parked(&scene, 1).await;
        drop(client);
        until_parked(&scene, 0).await;
        assert_eq!(wait_outcomes(&scene, "left"), count, "{request}");
    }
}

#[tokio::test]
async fn beyond_the_limit_of_parked_requests_a_client_is_bound_to_another_backend_at_once() {
    let (other, _other) = backend(response).await;
    let unavailable = Unavailable::new();
    let settings = "affinity: { hold: 1m }\nlimits: { waiting: 1 }\n";
    let scene = Scene::configured(&[unavailable.address(), other], settings).await;
    let first = scene.send(GET).await;
    until_parked(&scene, 1).await;
    for (count, request) in (1..).zip([GET, UPGRADE]) {
        let received = scene.request(request).await;
        assert!(header(&received, "set-cookie").is_some(), "{received}");
        assert_eq!(wait_outcomes(&scene, "full"), count);
    }
    until_parked(&scene, 1).await;
    drop(first);
}

#[tokio::test]
async fn a_request_that_a_backend_restart_interrupts_waits_for_the_backend() {
    let (other, _other) = mirror().await;
    for request in [GET, UPGRADE] {
        let before = Unavailable::new();
        let after = Unavailable::at(before.address());
        let scene = Scene::before(&[before.address(), other]).await;
        let listener = before.start_listening();
        let mut client = scene.send(request).await;
        let (mut socket, _) = listener.accept().await.unwrap();
        read_head(&mut socket).await;
        // In this order, so that the address refuses connections when the edge dials again.
        drop(listener);
        drop(socket);
        until_parked(&scene, 1).await;
        let _backend = serve(after.start_listening(), response);
        let received = read_all(&mut client).await;
        let switched = received.starts_with("HTTP/1.1 101 ");
        assert!(switched || received.ends_with("alone"), "{received}");
        assert_eq!(header(&received, "set-cookie"), None);
    }
}

#[tokio::test]
async fn an_interrupted_post_is_not_sent_again() {
    let (other, _other) = mirror().await;
    let (disconnecting, _disconnecting) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    let scene = Scene::before(&[disconnecting, other]).await;
    let received = scene.request(POST).await;
    assert!(received.starts_with("HTTP/1.1 502 "), "{received}");
}

#[tokio::test]
async fn an_interrupted_request_is_sent_to_its_backend_once_more_and_then_to_another() {
    let (other, _other) = backend(response).await;
    let (disconnecting, _disconnecting) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    for request in [GET, UPGRADE] {
        let scene = Scene::before(&[disconnecting, other]).await;
        let received = scene.request(request).await;
        let cookie = header(&received, "set-cookie").expect("it is bound anew");
        assert!(cookie.starts_with("causeway=u1.b1."), "{received}");
        assert_eq!(scene.components.proxy.metrics.retries.get(), 2);
    }
}
