//! Limits, from the first rejection to the next request that is admitted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::scene::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const KEPT: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// The number of rejections by `limit` in the metrics.
pub(super) fn rejections<F: Front>(scene: &SceneOf<F>, limit: &str) -> String {
    let page = scene.components.proxy.metrics.encode();
    let name = format!("causeway_proxy_limited_total{{limit=\"{limit}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_default().to_owned()
}

/// Repeats `attempt` until the response has `status`: the end of other requests is detected with a delay.
async fn until_status<F: Front>(scene: &SceneOf<F>, attempt: &str, status: &str) -> TcpStream {
    let trying = async {
        loop {
            let mut client = scene.send(attempt).await;
            let head = read_head(&mut client).await;
            if head.starts_with(&format!("HTTP/1.1 {status} ")) {
                return client;
            }
            assert!(
                head.starts_with("HTTP/1.1 429 ") || head.starts_with("HTTP/1.1 503 "),
                "{head}"
            );
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, trying).await.expect("in time")
}

/// A backend that switches protocols and keeps the connection.
async fn switching() -> (std::net::SocketAddr, tokio::task::JoinSet<()>) {
    backend(|mut socket| async move {
        read_head(&mut socket).await;
        let response =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        socket.write_all(response.as_bytes()).await.unwrap();
        let _ = socket.read(&mut [0]).await;
    })
    .await
}

/// A backend that never responds, and the number of its requests.
async fn silent() -> (
    std::net::SocketAddr,
    tokio::task::JoinSet<()>,
    Arc<AtomicUsize>,
) {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let (address, tasks) = backend(move |mut socket| {
        let counting = Arc::clone(&counting);
        async move {
            read_head(&mut socket).await;
            counting.fetch_add(1, Ordering::SeqCst);
            let _ = socket.read(&mut [0]).await;
        }
    })
    .await;
    (address, tasks, count)
}

async fn until_count(count: &AtomicUsize, wanted: usize) {
    let waiting = async {
        while count.load(Ordering::SeqCst) < wanted {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("in time");
}

#[tokio::test]
async fn connections_of_an_address_above_the_limit_get_429_until_one_ends() {
    let (address, _backend) = mirror().await;
    let scene = Scene::configured(&[address], "limits: { connections_per_address: 2 }\n").await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = scene.send(KEPT).await;
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
        held.push(client);
    }
    let response = scene.request(GET).await;
    assert!(response.starts_with("HTTP/1.1 429 "), "{response}");
    assert_eq!(header(&response, "retry-after"), Some("2"));
    assert_eq!(rejections(&scene, "connections_per_address"), "1");
    held.pop();
    until_status(&scene, GET, "200").await;
}

#[tokio::test]
async fn the_connection_rate_of_an_address_is_limited() {
    let (address, _backend) = mirror().await;
    let settings = "limits: { connection_rate_per_address: { per_second: 1, burst: 3 } }\n";
    let scene = Scene::configured(&[address], settings).await;
    let mut refusals = 0;
    for _ in 0..20 {
        match scene.request(GET).await {
            response if response.starts_with("HTTP/1.1 429 ") => refusals += 1,
            response => assert!(response.starts_with("HTTP/1.1 200 "), "{response}"),
        }
    }
    // On any machine: three at once, and one more for each second that has passed.
    assert!(refusals > 0);
    assert_eq!(
        rejections(&scene, "connection_rate_per_address"),
        refusals.to_string()
    );
    until_status(&scene, GET, "200").await;
}

#[tokio::test]
async fn connections_of_a_trusted_proxy_are_not_limited_and_its_clients_are() {
    let (address, _backend, count) = silent().await;
    let settings = "limits: { connections_per_address: 1, requests_per_address: 1 }\ntrusted_proxies: [127.0.0.0/8]\n";
    let scene = Scene::configured(&[address], settings).await;
    let of = |client| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n"
        )
    };
    let _first = scene.send(of("192.0.2.1")).await;
    until_count(&count, 1).await;
    let _second = scene.send(of("192.0.2.2")).await;
    until_count(&count, 2).await;
    let response = scene.request(of("192.0.2.1")).await;
    assert!(response.starts_with("HTTP/1.1 429 "), "{response}");
    assert_eq!(rejections(&scene, "requests_per_address"), "1");
}

async fn requests_above_the_limit_get_503<F: Front>() {
    let (address, _backend, count) = silent().await;
    let scene = SceneOf::<F>::configured(&[address], "limits: { requests: 1 }\n").await;
    let first = scene.send(KEPT).await;
    until_count(&count, 1).await;
    let response = scene.request(GET).await;
    assert!(
        response.starts_with("HTTP/1.1 503 ") && response.ends_with("too many requests\n"),
        "{response}"
    );
    assert_eq!(header(&response, "retry-after"), Some("2"));
    assert!(rejections(&scene, "requests") != "0");
    drop(first);
    let going = async {
        while count.load(Ordering::SeqCst) < 2 {
            let mut client = scene.send(KEPT).await;
            // The response of the edge, or none for the request that was admitted.
            let head = read_head(&mut client);
            let _ = tokio::time::timeout(std::time::Duration::from_millis(100), head).await;
        }
    };
    tokio::time::timeout(SOON, going)
        .await
        .expect("the permit is released");
}

#[tokio::test]
async fn requests_above_the_limit_get_503_until_one_ends() {
    requests_above_the_limit_get_503::<Own>().await;
}

#[tokio::test]
async fn requests_are_limited_in_a_pingora_service_too() {
    requests_above_the_limit_get_503::<Mounted>().await;
}

#[tokio::test]
async fn tunnels_are_limited_in_total_and_per_client() {
    let (address, _backend) = switching().await;
    for (limit, status) in [("tunnels", "503"), ("tunnels_per_address", "429")] {
        let scene = Scene::configured(&[address], &format!("limits: {{ {limit}: 2 }}\n")).await;
        let mut tunnels = Vec::new();
        for _ in 0..2 {
            let mut client = scene.send(UPGRADE).await;
            assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
            tunnels.push(client);
        }
        let response = scene.request(UPGRADE).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{response}"
        );
        assert_eq!(rejections(&scene, limit), "1");
        tunnels.pop();
        until_status(&scene, UPGRADE, "101").await;
    }
}

#[tokio::test]
async fn a_backend_at_its_limit_of_tunnels_is_skipped_and_with_all_at_their_limit_clients_get_503()
{
    let (first, _first) = switching().await;
    let (second, _second) = switching().await;
    let scene = Scene::configured(&[first, second], "limits: { tunnels_per_backend: 1 }\n").await;
    let mut tunnels = Vec::new();
    for _ in 0..2 {
        // They are bound to the first backend, which may have one more tunnel.
        let bound = UPGRADE.replace("Host", "Cookie: causeway=b0.1\r\nHost");
        let mut client = scene.send(bound).await;
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
        tunnels.push(client);
    }
    let open = |id: &str| {
        let pools = scene.components.proxy.pools();
        let backends = pools.iter().flat_map(|pool| pool.backends());
        let backend = backends
            .into_iter()
            .find(|backend| backend.id.as_str() == id);
        backend.unwrap().status(std::time::Instant::now()).tunnels
    };
    assert_eq!((open("b0"), open("b1")), (1, 1));
    let response = scene.request(UPGRADE).await;
    assert!(
        response.starts_with("HTTP/1.1 503 ") && response.ends_with("too many tunnels\n"),
        "{response}"
    );
    assert_eq!(rejections(&scene, "tunnels_per_backend"), "1");
    tunnels.pop();
    until_status(&scene, UPGRADE, "101").await;
}

/// A backend that reads bodies to their end (a `!` if there is no length), and responds with 204.
pub(super) async fn reading() -> (std::net::SocketAddr, tokio::task::JoinSet<()>) {
    backend(|mut socket| async move {
        let head = read_head(&mut socket).await;
        let length = header(&head, "content-length").map(|length| length.parse().unwrap());
        let is_chunked = header(&head, "transfer-encoding").is_some();
        match length {
            Some(length) => drop(read_exact(&mut socket, length).await),
            None if is_chunked => while !matches!(socket.read_u8().await, Ok(b'!') | Err(_)) {},
            None => {}
        }
        let _ = socket
            .write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            .await;
    })
    .await
}

async fn the_size_of_bodies_is_limited<F: Front>() {
    let (address, _backend) = reading().await;
    let scene = SceneOf::<F>::configured(&[address], "limits: { body_size: 1000B }\n").await;
    for (length, status) in [
        (999, "204"),
        (1000, "204"),
        (1001, "413"),
        (1_000_000, "413"),
    ] {
        let body = "x".repeat(length);
        let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close";
        let declared = format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}");
        let response = scene.request(declared).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{length}: {response}"
        );
        // The backend waits for its last byte.
        let body = format!("{}!", &body[1..]);
        let (half, rest) = body.split_at(length / 2);
        let chunk = |data: &str| format!("{:x}\r\n{data}\r\n", data.len());
        let chunks = format!("{}{}0\r\n\r\n", chunk(half), chunk(rest));
        let streamed = format!("{head}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let response = scene.request(streamed).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{length}: {response}"
        );
    }
    assert_eq!(rejections(&scene, "body_size"), "4");
    let pools = scene.components.proxy.pools();
    let states = pools.iter().flat_map(|pool| pool.backends());
    for backend in states {
        assert_ne!(
            backend.state(),
            crate::balancer::pool::State::Suspect,
            "it did nothing wrong"
        );
    }
}

#[tokio::test]
async fn a_body_above_the_limit_is_413_with_or_without_a_length() {
    the_size_of_bodies_is_limited::<Own>().await;
}

#[tokio::test]
async fn bodies_are_limited_in_a_pingora_service_too() {
    the_size_of_bodies_is_limited::<Mounted>().await;
}

#[tokio::test]
async fn the_body_of_an_upgrade_that_is_not_allowed_is_limited_too() {
    let (address, _backend) = reading().await;
    let scene = Scene::configured(&[address], "limits: { body_size: 1000B }\n").await;
    let response = scene
        .request("POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: foo\r\nContent-Length: 1001\r\n\r\n")
        .await;
    assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
}

/// A backend that sends each request to `seen`, and responds with `name` on each `release`.
async fn one_at_a_time(
    name: &'static str,
    seen: tokio::sync::mpsc::Sender<&'static str>,
    release: Arc<tokio::sync::Semaphore>,
) -> (std::net::SocketAddr, tokio::task::JoinSet<()>) {
    backend(move |mut socket| {
        let (seen, release) = (seen.clone(), Arc::clone(&release));
        async move {
            while !read_head(&mut socket).await.is_empty() {
                let _ = seen.send(name).await;
                release.acquire().await.unwrap().forget();
                let response = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
                    name.len()
                );
                socket.write_all(response.as_bytes()).await.unwrap();
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_request_is_queued_at_a_backend_that_is_at_its_limit() {
    let (seen, mut sees) = tokio::sync::mpsc::channel(9);
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let (only, _only) = one_at_a_time("b0", seen, Arc::clone(&release)).await;
    let settings = "limits: { requests_per_backend: 1, queue_per_backend: 1, queue_time: 1m }\n";
    let scene = Scene::configured(&[only], settings).await;
    let mut first = scene.send(GET).await;
    assert_eq!(
        tokio::time::timeout(SOON, sees.recv()).await.unwrap(),
        Some("b0")
    );
    let mut second = scene.send(GET).await;
    // The queue holds one request: the next one gets 503 at once.
    let full = loop {
        let mut third = scene.send(GET).await;
        let reading = tokio::time::timeout(Duration::from_millis(200), read_head(&mut third));
        // Unless it arrived before the second.
        if let Ok(head) = reading.await {
            break head;
        }
    };
    assert!(full.starts_with("HTTP/1.1 503 "), "{full}");
    assert!(header(&full, "retry-after").is_some());
    release.add_permits(9);
    for client in [&mut first, &mut second] {
        let response = read_all(client).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
}

#[tokio::test]
async fn a_busy_backend_is_skipped_except_by_clients_that_are_bound_to_it() {
    let (seen, mut sees) = tokio::sync::mpsc::channel(9);
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let (first, _first) = one_at_a_time("b0", seen.clone(), Arc::clone(&release)).await;
    let (other, _other) = one_at_a_time("b1", seen, Arc::clone(&release)).await;
    let settings = "limits: { requests_per_backend: 1, queue_time: 1m }\n";
    let scene = Scene::configured(&[first, other], settings).await;
    let bound = GET.replace("Host: a", "Host: a\r\nCookie: causeway=u1.b0.1");
    let mut next = async || tokio::time::timeout(SOON, sees.recv()).await.unwrap();
    let mut clients = vec![scene.send(&bound).await];
    assert_eq!(next().await, Some("b0"));
    clients.push(scene.send(GET).await);
    assert_eq!(next().await, Some("b1"), "the busy one is skipped");
    clients.push(scene.send(&bound).await);
    release.add_permits(1);
    assert_eq!(next().await, Some("b0"), "its own client was queued");
    release.add_permits(9);
    for mut client in clients {
        let response = read_all(&mut client).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
}

#[tokio::test]
async fn a_request_that_is_queued_for_too_long_gets_503() {
    let (seen, mut sees) = tokio::sync::mpsc::channel(9);
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let (only, _only) = one_at_a_time("b0", seen, Arc::clone(&release)).await;
    let settings = "limits: { requests_per_backend: 1, queue_time: 100ms }\n";
    let scene = Scene::configured(&[only], settings).await;
    let first = scene.send(GET).await;
    assert_eq!(
        tokio::time::timeout(SOON, sees.recv()).await.unwrap(),
        Some("b0")
    );
    let response = scene.request(GET).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    drop(first);
}
