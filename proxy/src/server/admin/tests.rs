//! The responses of the admin endpoints.

use super::*;
use crate::balancer::pool::ProbeResult;
use crate::config::{Config, PoolId};
use crate::server::components::Components;

const TOKEN: &str = "0123456789abcdef";

fn admin() -> Arc<Admin> {
    let file = format!(
        "pools:
  - {{name: a, backends: [{{id: n1, address: '127.0.0.1:9001', weight: 2, zone: z}}]}}
  - {{name: b, backends: [{{id: n2, address: 'unix:/run/b.sock', maintenance: true}}]}}
routes: [{{pool: a}}]
admin: {{token: {TOKEN}}}
affinity: {{hold: 0s}}
log: {{access: off}}
health: {{fall: 1}}"
    );
    let config = Config::parse("f", &file).unwrap_or_else(|errors| panic!("{errors}"));
    Components::new(&config).unwrap().admin(Vec::new(), None)
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
            "configured_weight": 2, "generation": null, "operator": null, "closing": 0, "backup": false, "state": "down", "since": null, "lasts": null, "why": "it refuses connections", "tunnels": 1, "in_flight": 0,
            "waiting": 0,
        },
        {
            "pool": "b", "id": "n2", "address": "unix:/run/b.sock", "weight": 1,
            "configured_weight": 1, "generation": null, "operator": null, "closing": 0, "zone": null, "backup": false, "state": "maintenance", "since": null, "lasts": null, "why": "by configuration", "tunnels": 0,
            "in_flight": 0, "waiting": 0,
        },
    ]);
    assert_eq!(list, expected);
}

#[test]
fn metrics_are_served() {
    let (status, body) = page(&admin(), "/metrics");
    assert_eq!(status, 200);
    assert!(body.contains("causeway_proxy_state{backend=\"n1\",state=\"unknown\"} 1"));
}

/// The whole response to `request`, over Pingora's server session.
async fn respond(request: &str) -> String {
    respond_by(&admin(), request).await
}

async fn respond_by(admin: &Arc<Admin>, request: &str) -> String {
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
    let app = AdminApp::over_tcp(Arc::clone(admin));
    Arc::new(app).process_new_http(session, &shutdown).await;
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

/// A request to act, with a token and a body.
fn post(path: &str, token: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// The status of a response, and its body as JSON.
fn parsed(response: &str) -> (u16, Value) {
    let status = response.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = response.split_once("\r\n\r\n").unwrap();
    (status, serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn unknown_paths_are_not_found_and_wrong_methods_are_refused_before_the_token() {
    for path in ["/", "/ready/", "/backends/n1", "/backends/n1/stop"] {
        let response = respond(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(parsed(&response).0, 404, "{path}");
    }
    for path in ["/backends/n1/drain", "/reload", "/tunnels/1/close"] {
        let response = respond(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(parsed(&response).0, 405, "{path}");
        let head = response.to_ascii_lowercase();
        assert!(head.contains("allow: post\r\n"), "{response}");
    }
}

#[tokio::test]
async fn without_the_token_nothing_happens_and_it_is_counted() {
    let admin = admin();
    for token in ["", "0123456789abcdeX"] {
        let response = respond_by(&admin, &post("/backends/n1/drain", token, "")).await;
        assert_eq!(parsed(&response).0, 401);
        let head = response.to_ascii_lowercase();
        assert!(head.contains("www-authenticate: bearer\r\n"), "{response}");
    }
    let listed = respond_by(&admin, "GET /tunnels HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(parsed(&listed).0, 401);
    let (_, metrics) = page(&admin, "/metrics");
    let denied = "admin_actions_total{action=\"drain\",outcome=\"denied\"} 2";
    assert!(metrics.contains(denied), "{metrics}");
    assert!(!metrics.contains(TOKEN));
}

#[tokio::test]
async fn an_action_responds_with_what_it_has_done() {
    let admin = admin();
    probe(&admin, ProbeResult::Good);
    let last = respond_by(&admin, &post("/backends/n1/drain", TOKEN, "")).await;
    let (status, error) = parsed(&last);
    assert_eq!(status, 409);
    let error = error["error"].as_str().unwrap();
    assert!(error.contains("no other backend of pool \"a\""), "{error}");
    let body = r#"{"force": true, "spread": "0s"}"#;
    let done = respond_by(&admin, &post("/backends/n1/drain", TOKEN, body)).await;
    let (status, backend) = parsed(&done);
    assert_eq!(status, 200, "{done}");
    assert_eq!(backend["state"], "draining");
    assert_eq!(backend["operator"], "drain");
    assert_eq!(backend["why"], "by an operator");
    let (_, metrics) = page(&admin, "/metrics");
    for line in [
        "overrides{backend=\"n1\",override=\"drain\"} 1",
        "admin_actions_total{action=\"drain\",outcome=\"refused\"} 1",
        "admin_actions_total{action=\"drain\",outcome=\"done\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn input_that_is_not_valid_is_refused_with_the_reason() {
    let long = format!("{{\"force\": {}true}}", " ".repeat(input::BODY_BYTES_MAX));
    for (path, body, status) in [
        ("/backends/n9/ready", "", 404),
        ("/backends/n1/weight", "{}", 400),
        ("/backends/n1/weight", "{\"weight\": 0}", 400),
        ("/backends/n1/drain", "{\"spread\": \"2h\"}", 400),
        ("/backends/n1/drain", "nothing", 400),
        ("/backends/n1/drain", &long, 413),
        ("/backends/n2/ready", "", 409),
        ("/tunnels/x/close", "", 400),
        ("/tunnels/7/close", "{\"code\": 1000}", 400),
        ("/tunnels/7/close", "", 404),
        ("/rebalance", "", 400),
        ("/reload", "{\"dry_run\": true}", 409),
    ] {
        let response = respond(&post(path, TOKEN, body)).await;
        let (found, error) = parsed(&response);
        assert_eq!(found, status, "{path} {error}");
        assert!(error["error"].is_string(), "{path}");
    }
}
