//! Clients that wait for their backend to come back.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::balancer::pool::ProbeResult;

use super::scene::*;

/// Belongs to `b0`.
const GET: &str =
    "GET /a HTTP/1.1\r\nHost: a\r\nCookie: causeway=u1.b0.1\r\nConnection: close\r\n\r\n";
const POST: &str = "POST /a HTTP/1.1\r\nHost: a\r\nCookie: causeway=u1.b0.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nCookie: causeway=u1.b0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// A backend that is away: its address refuses connections, and is nobody else's meanwhile.
struct Away(TcpSocket);

impl Away {
    fn new() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap())
    }

    /// As [`Away::new`]; another one may still listen at `address`.
    fn at(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind(address).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn comes_back(self) -> TcpListener {
        self.0.listen(16).unwrap()
    }
}

/// Answers a request of any kind with what it was sent.
async fn answer(mut socket: TcpStream) {
    let head = read_head(&mut socket).await;
    if head.contains("pgrade") {
        let switch =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        return socket.write_all(switch.as_bytes()).await.unwrap();
    }
    let length = if head.starts_with("POST") { 5 } else { 0 };
    let body = read_exact(&mut socket, length).await;
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
    socket.write_all(answer.as_bytes()).await.unwrap();
    socket.write_all(&body).await.unwrap();
    socket.write_all(&b"alone"[length..]).await.unwrap();
}

/// A sample of the metrics page.
fn metric(scene: &Scene, name: &str) -> u64 {
    let page = scene.parts.proxy.metrics.encode();
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

fn waits(scene: &Scene, outcome: &str) -> u64 {
    let name = format!("causeway_proxy_waits_total{{backend=\"b0\",outcome=\"{outcome}\"}}");
    metric(scene, &name)
}

/// Returns when so many wait for `b0`.
async fn waiting(scene: &Scene, count: u64) {
    let waited = async {
        while metric(scene, "causeway_proxy_requests_waiting{backend=\"b0\"}") != count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waited).await.expect("they wait");
}

#[tokio::test]
async fn a_client_waits_for_the_backend_that_it_belongs_to_and_stays_there() {
    let (other, _other) = mirror().await;
    let away = Away::new();
    let scene = Scene::before(&[away.address(), other]).await;
    let cases = [
        (GET, "200", "alone"),
        (POST, "200", "hello"),
        (UPGRADE, "101", ""),
    ];
    let mut clients = Vec::new();
    for (request, status, body) in cases {
        clients.push((scene.send(request).await, status, body));
    }
    waiting(&scene, 3).await;
    let _backend = serve(away.comes_back(), answer);
    for (mut client, status, body) in clients {
        let received = read_all(&mut client).await;
        assert!(
            received.starts_with(&format!("HTTP/1.1 {status} ")),
            "{received}"
        );
        assert!(received.ends_with(&format!("\r\n\r\n{body}")), "{received}");
        assert_eq!(header(&received, "set-cookie"), None);
    }
    assert_eq!((waits(&scene, "returned"), waits(&scene, "moved")), (3, 0));
    waiting(&scene, 0).await;
}

#[tokio::test]
async fn a_client_is_bound_elsewhere_when_it_has_waited_for_long_enough() {
    let (other, _other) = backend(answer).await;
    let away = Away::new();
    let scene = Scene::configured(&[away.address(), other], "affinity: { hold: 1s }\n").await;
    let (get, post, upgrade) = tokio::join!(scene.ask(GET), scene.ask(POST), scene.ask(UPGRADE));
    for received in [get, post, upgrade] {
        let cookie = header(&received, "set-cookie").expect("it is bound anew");
        assert!(cookie.starts_with("causeway=u1.b1."), "{received}");
    }
    assert_eq!((waits(&scene, "moved"), waits(&scene, "returned")), (3, 0));
}

#[tokio::test]
async fn what_failed_is_the_answer_to_a_client_that_waited_in_vain_and_has_nowhere_to_go() {
    let away = Away::new();
    let scene = Scene::configured(&[away.address()], "affinity: { hold: 1s }\n").await;
    let (get, post, upgrade) = tokio::join!(scene.ask(GET), scene.ask(POST), scene.ask(UPGRADE));
    for received in [get, post, upgrade] {
        assert!(received.starts_with("HTTP/1.1 503 "), "{received}");
    }
    assert_eq!(waits(&scene, "moved"), 3);
}

#[tokio::test]
async fn nobody_waits_any_longer_for_a_backend_that_is_given_up() {
    let (other, _other) = backend(answer).await;
    let away = Away::new();
    let scene = Scene::configured(&[away.address(), other], "affinity: { hold: 1m }\n").await;
    let mut clients = Vec::new();
    for request in [GET, POST, UPGRADE] {
        clients.push(scene.send(request).await);
    }
    waiting(&scene, 3).await;
    for pool in scene.parts.proxy.pools().iter() {
        let backend = &pool.backends()[0];
        pool.probed(backend, ProbeResult::Draining, std::time::Instant::now());
    }
    for client in &mut clients {
        let received = read_all(client).await;
        assert!(header(&received, "set-cookie").is_some(), "{received}");
    }
    assert_eq!(waits(&scene, "moved"), 3);
}

#[tokio::test]
async fn nobody_waits_any_longer_when_the_edge_ends() {
    let (other, _other) = backend(answer).await;
    let away = Away::new();
    let scene = Scene::configured(&[away.address(), other], "affinity: { hold: 1m }\n").await;
    let mut clients = Vec::new();
    for request in [GET, POST, UPGRADE] {
        clients.push(scene.send(request).await);
    }
    waiting(&scene, 3).await;
    scene.parts.connections.drain();
    for client in &mut clients {
        let received = read_all(client).await;
        assert!(header(&received, "set-cookie").is_some(), "{received}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_up() {
    let away = Away::new();
    let scene = Scene::configured(&[away.address()], "affinity: { hold: 1m }\n").await;
    let unread = POST.replace("Length: 5", "Length: 6");
    for (count, request) in (1..).zip([GET, POST, unread.as_str(), UPGRADE]) {
        let client = scene.send(request).await;
        waiting(&scene, 1).await;
        drop(client);
        waiting(&scene, 0).await;
        assert_eq!(waits(&scene, "left"), count, "{request}");
    }
}

#[tokio::test]
async fn a_client_that_finds_the_waiting_room_full_is_bound_elsewhere_at_once() {
    let (other, _other) = backend(answer).await;
    let away = Away::new();
    let settings = "affinity: { hold: 1m }\nlimits: { waiting: 1 }\n";
    let scene = Scene::configured(&[away.address(), other], settings).await;
    let first = scene.send(GET).await;
    waiting(&scene, 1).await;
    for (count, request) in (1..).zip([GET, UPGRADE]) {
        let received = scene.ask(request).await;
        assert!(header(&received, "set-cookie").is_some(), "{received}");
        assert_eq!(waits(&scene, "full"), count);
    }
    waiting(&scene, 1).await;
    drop(first);
}

#[tokio::test]
async fn a_client_whose_request_is_cut_off_by_a_restart_waits_for_it() {
    let (other, _other) = mirror().await;
    for request in [GET, UPGRADE] {
        let before = Away::new();
        let after = Away::at(before.address());
        let scene = Scene::before(&[before.address(), other]).await;
        let listener = before.comes_back();
        let mut client = scene.send(request).await;
        let (mut socket, _) = listener.accept().await.unwrap();
        read_head(&mut socket).await;
        // In this order, so that nobody is there when the edge dials again.
        drop(listener);
        drop(socket);
        waiting(&scene, 1).await;
        let _backend = serve(after.comes_back(), answer);
        let received = read_all(&mut client).await;
        let switched = received.starts_with("HTTP/1.1 101 ");
        assert!(switched || received.ends_with("alone"), "{received}");
        assert_eq!(header(&received, "set-cookie"), None);
    }
}

#[tokio::test]
async fn a_post_that_is_cut_off_is_not_sent_again() {
    let (other, _other) = mirror().await;
    let (hangs_up, _hangs_up) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    let scene = Scene::before(&[hangs_up, other]).await;
    let received = scene.ask(POST).await;
    assert!(received.starts_with("HTTP/1.1 502 "), "{received}");
}

#[tokio::test]
async fn a_request_that_kills_its_backends_connections_is_sent_back_once_and_then_elsewhere() {
    let (other, _other) = backend(answer).await;
    let (hangs_up, _hangs_up) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    for request in [GET, UPGRADE] {
        let scene = Scene::before(&[hangs_up, other]).await;
        let received = scene.ask(request).await;
        let cookie = header(&received, "set-cookie").expect("it is bound anew");
        assert!(cookie.starts_with("causeway=u1.b1."), "{received}");
        assert_eq!(scene.parts.proxy.metrics.retries.get(), 2);
    }
}
