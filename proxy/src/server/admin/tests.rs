//! The responses of the admin endpoints.

use std::time::Duration;

use super::*;
use crate::balancer::pool::ProbeResult;
use crate::config::{Config, PoolId};
use crate::tls::Connectors;

fn admin() -> Admin {
    let file = "pools:
  - {name: a, backends: [{id: n1, address: '127.0.0.1:9001', weight: 2, zone: z}]}
  - {name: b, backends: [{id: n2, address: 'unix:/run/b.sock', maintenance: true}]}
routes: [{pool: a}]
affinity: {hold: 0s}
health: {fall: 1}";
    let config = Config::parse("f", file).unwrap();
    let metrics = Arc::new(Metrics::new());
    let pools = Pools::new(
        &config,
        &Connectors::default(),
        &metrics,
        Instant::now(),
        Duration::ZERO,
    );
    Admin {
        pools: watch::Sender::new(Arc::new(pools)).subscribe(),
        metrics,
        terminators: Vec::new(),
        draining: CancellationToken::new(),
    }
}

fn probe(admin: &Admin, result: ProbeResult) {
    let pools = admin.pools.borrow();
    let pool = pools.get(PoolId(0));
    pool.probed(&pool.backends()[0], result, Instant::now());
}

fn page(admin: &Admin, path: &str) -> (u16, String) {
    let (status, _, body) = admin.page(path, Instant::now());
    (status.as_u16(), body)
}

#[test]
fn the_edge_is_ready_from_the_first_ready_backend_until_it_drains() {
    let admin = admin();
    let no_backend = (503, "no backend is up\n".to_owned());
    assert_eq!(page(&admin, "/ready"), no_backend);
    probe(&admin, ProbeResult::Good);
    assert_eq!(page(&admin, "/ready"), (200, "ready\n".to_owned()));
    admin.draining.cancel();
    assert_eq!(page(&admin, "/ready"), (503, "draining\n".to_owned()));
    assert_eq!(page(&admin, "/live"), (200, "live\n".to_owned()));
}

#[test]
fn backends_are_listed_with_their_state_and_its_reason() {
    let admin = admin();
    probe(
        &admin,
        ProbeResult::Unreachable("it refuses connections".to_owned()),
    );
    let backend = admin.pools.borrow().get(PoolId(0)).backends().remove(0);
    let _tunnel = backend.open_tunnel();
    let (status, body) = page(&admin, "/backends");
    assert_eq!(status, 200);
    let mut list: serde_json::Value = serde_json::from_str(&body).unwrap();
    for entry in list.as_array_mut().unwrap() {
        let (since, lasts) = (entry["since"].take(), entry["lasts"].take());
        let unix = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let lasted = unix - since.as_f64().unwrap();
        // The two clocks were read one after the other.
        assert!(
            (-0.1..60.0).contains(&(lasted - lasts.as_f64().unwrap())),
            "{since} {lasts}"
        );
    }
    let expected = serde_json::json!([
        {
            "pool": "a", "id": "n1", "address": "127.0.0.1:9001", "weight": 2, "zone": "z",
            "backup": false, "state": "down", "since": null, "lasts": null, "why": "it refuses connections", "tunnels": 1, "in_flight": 0,
            "waiting": 0,
        },
        {
            "pool": "b", "id": "n2", "address": "unix:/run/b.sock", "weight": 1,
            "zone": null, "backup": false, "state": "maintenance", "since": null, "lasts": null, "why": "by configuration", "tunnels": 0,
            "in_flight": 0, "waiting": 0,
        },
    ]);
    assert_eq!(list, expected);
}

#[test]
fn metrics_are_served_and_unknown_paths_are_not_found() {
    let admin = admin();
    let (status, body) = page(&admin, "/metrics");
    assert_eq!(status, 200);
    assert!(body.contains("causeway_proxy_state{backend=\"n1\",state=\"unknown\"} 1"));
    for path in ["/", "/ready/", "/backends/n1"] {
        assert_eq!(page(&admin, path).0, 404, "{path}");
    }
}

/// The whole response to `request`, over Pingora's server session.
async fn respond(request: &'static str) -> String {
    use pingora::apps::HttpServerApp as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let stream = pingora::protocols::l4::stream::Stream::from(stream);
    let session = ServerSession::new_http1(Box::new(stream));
    let (_keep, shutdown) = tokio::sync::watch::channel(true);
    Arc::new(admin()).process_new_http(session, &shutdown).await;
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
async fn head_gets_the_headers_of_get_and_other_methods_are_not_allowed() {
    let get = respond("GET /live HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(get.starts_with("HTTP/1.1 200 OK\r\n"), "{get}");
    assert!(get.ends_with("\r\n\r\nlive\n"), "{get}");
    let head = respond("HEAD /live?x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(
        head.to_ascii_lowercase().contains("content-length: 5\r\n"),
        "{head}"
    );
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    let post = respond("POST /live HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    assert!(
        post.to_ascii_lowercase().contains("allow: get, head\r\n"),
        "{post}"
    );
}
