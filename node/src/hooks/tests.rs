//! Questions to a real server, in order and out of order.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::http::HeaderName;
use ::http::HeaderValue;
use causeway_conf::Secret;
use parking_lot::Mutex;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::*;
use crate::auth::grant::RefreshGrant;
use crate::config::Config;
use crate::protocol::Codec;

/// What a backend does with each question.
#[derive(Clone)]
enum Behaviour {
    /// Writes these bytes and keeps the connection.
    Says(Vec<u8>),
    /// Writes these bytes and closes it.
    SaysAndCloses(Vec<u8>),
    /// Reads, and says nothing.
    Hangs,
    /// Closes a connection that was used before without a word, and responds on a new one.
    ClosesUsed(Vec<u8>),
    /// Responds when the test says so.
    Waits(Arc<Notify>, Vec<u8>),
}

/// A backend on a port of its own, with all that it was asked.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Clone)]
struct Asked {
    head: String,
    body: Value,
}

impl Asked {
    fn header(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let ours = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        ours.map(|(_, value)| value).collect()
    }
}

async fn server(behaviour: Behaviour) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Mutex<Vec<Asked>>>::default();
    let connections = Arc::<AtomicUsize>::default();
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let (asked, connections) = (Arc::clone(&asked), Arc::clone(&connections));
        async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                serving.spawn(serve(stream, behaviour.clone(), Arc::clone(&asked)));
            }
        }
    });
    Server {
        address,
        asked,
        connections,
        _tasks: tasks,
    }
}

async fn serve(mut stream: TcpStream, behaviour: Behaviour, asked: Arc<Mutex<Vec<Asked>>>) {
    for count in 0.. {
        let Some(hook_request) = read(&mut stream).await else {
            return;
        };
        asked.lock().push(hook_request);
        let (response, goes_on) = match &behaviour {
            Behaviour::Says(response) => (response, true),
            Behaviour::SaysAndCloses(response) => (response, false),
            Behaviour::Hangs => std::future::pending().await,
            Behaviour::ClosesUsed(_) if 0 < count => return,
            Behaviour::ClosesUsed(response) => (response, true),
            Behaviour::Waits(told, response) => {
                told.notified().await;
                (response, true)
            }
        };
        if stream.write_all(response).await.is_err() || !goes_on {
            return;
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = std::str::from_utf8(&bytes).unwrap();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            let head = head.to_owned();
            return Some(Asked { head, body });
        }
    }
}

fn ok(body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn hooks_with(server: SocketAddr, change: impl FnOnce(&mut config::Hooks)) -> Arc<Hooks> {
    let mut config = Config::default_without_file().hooks;
    let hook = |path: &str| {
        Some(config::Hook {
            address: format!("http://{server}{path}").parse().unwrap(),
            timeout: Duration::from_secs(30),
            open_max: 64,
        })
    };
    config.connect = hook("/connect");
    config.refresh = hook("/refresh");
    config.subscribe = hook("/subscribe");
    config.sub_refresh = hook("/sub_refresh");
    config.publish = hook("/publish");
    config.rpc = hook("/rpc?a=1");
    config.lifecycle = hook("/lifecycle");
    change(&mut config);
    Hooks::new(config, Metrics::new())
}

/// The same, with other limits of the hook for rpc.
fn hooks_with_rpc(server: SocketAddr, change: impl FnOnce(&mut config::Hook)) -> Arc<Hooks> {
    hooks_with(server, |config| change(config.rpc.as_mut().unwrap()))
}

fn hooks(server: &Server) -> Arc<Hooks> {
    hooks_with(server.address, |_| {})
}

static NOTHING: Bytes = Bytes::new();

static NO_HEADERS: LazyLock<ClientHeaders> = LazyLock::new(ClientHeaders::default);

fn asker<'a>(headers: &'a ClientHeaders, meta: &'a Bytes) -> HookClient<'a> {
    HookClient {
        client: "c-1",
        transport: "websocket",
        codec: Codec::Json,
        user: "42",
        meta,
        values: &[],
        headers: [headers, &NO_HEADERS],
    }
}

async fn call(hooks: &Hooks) -> Result<Bytes, Refusal> {
    let headers = ClientHeaders::default();
    let data = Bytes::from_static(b"{\"a\": 1}");
    hooks.rpc(&asker(&headers, &NOTHING), "get", &data).await
}

/// The one line that the last failure would be in the log.
async fn failure(hooks: &Hooks) -> String {
    let (headers, hook_request) = (ClientHeaders::default(), json!({}));
    let calls = hooks.calls.of(Hook::Rpc).unwrap();
    let asked = hooks
        .backend
        .call(calls, [&headers; 2], &hook_request)
        .await;
    let read = asked.and_then(|response| response::rpc(&response));
    read.unwrap_err().to_string()
}

#[tokio::test]
async fn every_request_says_which_client_it_is_about_and_what_is_wanted() {
    let server = server(Behaviour::Says(ok(&json!({"result": {}})))).await;
    let hooks = hooks(&server);
    let (headers, meta) = (
        ClientHeaders::default(),
        Bytes::from_static(b"{\"plan\":\"pro\"}"),
    );
    let values = [("cart".to_owned(), Bytes::from_static(b"{\"items\":2}"))];
    let json_asker = HookClient {
        values: &values,
        ..asker(&headers, &meta)
    };
    let binary_asker = HookClient {
        codec: Codec::Protobuf,
        user: "",
        meta: &NOTHING,
        values: &[],
        ..json_asker
    };
    let connecting = Connecting {
        name: "js",
        version: "1.0",
        data: &Bytes::from_static(b"[1]"),
        channels: &["news".to_owned()],
    };
    hooks.connect(&binary_asker, &connecting).await.unwrap();
    hooks.refresh(&json_asker).await.unwrap();
    let data = Bytes::from_static(b"\"x\"");
    hooks
        .subscribe(&json_asker, "chat:1", "tok", &data)
        .await
        .unwrap();
    hooks.sub_refresh(&json_asker, "chat:1").await.unwrap();
    let bytes = Bytes::from_static(b"\xff\x00");
    hooks
        .publish(&binary_asker, "chat:1", &bytes, DataKind::Binary)
        .await
        .unwrap();
    hooks.rpc(&json_asker, "get", &NOTHING).await.unwrap();

    let asked = server.asked.lock().clone();
    let lines: Vec<_> = asked
        .iter()
        .map(|asked| asked.head.lines().next().unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            "/connect",
            "/refresh",
            "/subscribe",
            "/sub_refresh",
            "/publish",
            "/rpc?a=1"
        ]
        .map(|path| format!("POST {path} HTTP/1.1"))
    );
    assert_eq!(asked[0].header("content-type"), ["application/json"]);
    let about = json!({"client": "c-1", "transport": "websocket", "protocol": "json", "encoding": "json",
        "user": "42", "meta": {"plan": "pro"}, "values": {"cart": {"items": 2}}});
    let binary = json!({"client": "c-1", "transport": "websocket", "protocol": "protobuf", "encoding": "binary"});
    let with = |about: &Value, more: Value| {
        let mut about = about.as_object().unwrap().clone();
        about.extend(more.as_object().unwrap().clone());
        Value::Object(about)
    };
    let bodies: Vec<_> = asked.iter().map(|asked| asked.body.clone()).collect();
    assert_eq!(
        bodies,
        [
            with(
                &binary,
                json!({"name": "js", "version": "1.0", "data": [1], "channels": ["news"]})
            ),
            about.clone(),
            with(
                &about,
                json!({"channel": "chat:1", "token": "tok", "data": "x"})
            ),
            with(&about, json!({"channel": "chat:1"})),
            with(&binary, json!({"channel": "chat:1", "b64data": "/wA="})),
            with(&about, json!({"method": "get"})),
        ]
    );
    assert_eq!(server.connections.load(Ordering::Relaxed), 1, "it is kept");
}

#[tokio::test]
async fn what_is_granted_is_what_the_response_says() {
    let result = json!({"result": {
        "user": "7", "expire_at": 99, "info": {"a": 1}, "b64data": "AAE=", "channels": ["a"],
        "subs": {"b": {"override": {"presence": {"value": false}}}}, "meta": {"m": 1},
        "expired": false, "skip_history": true, "data": {"ignored": "b64data goes before"},
        "override": {"join_leave": {"value": true}}, "unknown": 1,
    }});
    let server = server(Behaviour::Says(ok(&result))).await;
    let hooks = hooks(&server);
    let (headers, data) = (ClientHeaders::default(), Bytes::new());
    let asker = asker(&headers, &NOTHING);
    let connecting = Connecting {
        name: "",
        version: "",
        data: &data,
        channels: &[],
    };
    let bytes = Bytes::from_static(&[0, 1]);
    let connected = hooks.connect(&asker, &connecting).await.unwrap();
    assert_eq!(connected.user, "7");
    assert_eq!(connected.expire_at, Some(99));
    assert_eq!(connected.info, "{\"a\":1}");
    assert_eq!(connected.data, bytes);
    assert_eq!(connected.meta, "{\"m\":1}");
    assert_eq!(connected.subs["b"].overrides.presence, Some(false));
    assert!(connected.subs.contains_key("a"));

    let refreshed = RefreshGrant {
        expire_at: Some(99),
        info: Some(Bytes::from_static(b"{\"a\":1}")),
    };
    assert_eq!(hooks.refresh(&asker).await, Ok(Refreshed::For(refreshed)));
    let subscribed = hooks.subscribe(&asker, "a", "", &data).await.unwrap();
    assert_eq!(subscribed.expire_at, Some(99));
    assert_eq!(subscribed.data, bytes);
    assert_eq!(subscribed.overrides.join_leave, Some(true));
    let published = PublishGrant {
        data: Some(bytes.clone()),
        skip_history: true,
    };
    assert_eq!(
        hooks.publish(&asker, "a", &data, DataKind::Binary).await,
        Ok(published)
    );
    assert_eq!(hooks.rpc(&asker, "", &data).await, Ok(bytes));
}

#[tokio::test]
async fn an_application_refuses_in_its_own_words() {
    let error = |code, message: &str, temporary| {
        let message = message.to_owned();
        Refusal::Error(ProtocolError {
            code,
            message,
            temporary,
        })
    };
    let deep = (0..61).fold(json!(1), |inner, _| json!([inner]));
    let disconnect = |code, reason: &str| Refusal::Disconnect {
        code,
        reason: reason.to_owned(),
    };
    for (response, expected) in [
        (
            json!({"error": {"code": 400, "message": "no"}}),
            error(400, "no", false),
        ),
        (
            json!({"error": {"code": 1999, "temporary": true}}),
            error(1999, "", true),
        ),
        (json!({"error": {"code": 100}}), error(100, "", false)),
        (json!({"error": {"code": 4000}}), error(4000, "", false)),
        (json!({"error": {"code": 99}}), Refusal::Failed),
        (json!({"error": {"code": -1}}), Refusal::Failed),
        (
            json!({"disconnect": {"code": 4000, "reason": "go"}}),
            disconnect(4000, "go"),
        ),
        (json!({"disconnect": {"code": 4999}}), disconnect(4999, "")),
        (json!({"disconnect": {"code": 3000}}), disconnect(3000, "")),
        (json!({"disconnect": {"code": 2999}}), Refusal::Failed),
        (json!({"disconnect": {"code": 5000}}), Refusal::Failed),
        (
            json!({"disconnect": {"code": 4000, "reason": "x".repeat(124)}}),
            Refusal::Failed,
        ),
        (
            json!({"disconnect": {"code": 4500}, "result": {}}),
            disconnect(4500, ""),
        ),
        (
            json!({"error": {"code": 400}, "result": {}}),
            error(400, "", false),
        ),
        (json!({"result": null}), Refusal::Failed),
        (json!({}), Refusal::Failed),
        (json!([]), Refusal::Failed),
        (json!({"result": {"b64data": "?"}}), Refusal::Failed),
        (json!({"result": 7}), Refusal::Failed),
        (json!({"result": {"data": deep}}), Refusal::Failed),
    ] {
        let server = server(Behaviour::Says(ok(&response))).await;
        assert_eq!(call(&hooks(&server)).await, Err(expected), "{response}");
    }
}

#[tokio::test]
async fn null_is_a_response_to_a_call_and_changes_no_publication() {
    let server = server(Behaviour::Says(ok(&json!({"result": {"data": null}})))).await;
    let hooks = hooks(&server);
    assert_eq!(call(&hooks).await, Ok(Bytes::from_static(b"null")));
    let headers = ClientHeaders::default();
    let asker = asker(&headers, &NOTHING);
    let published = hooks.publish(&asker, "a", &NOTHING, DataKind::Json).await;
    assert_eq!(published, Ok(PublishGrant::default()));
}

#[tokio::test]
async fn what_is_published_in_a_channel_of_json_is_json() {
    let server = server(Behaviour::Says(ok(&json!({"result": {"b64data": "/w=="}})))).await;
    let hooks = hooks(&server);
    let headers = ClientHeaders::default();
    let asker = asker(&headers, &NOTHING);
    let json = hooks.publish(&asker, "a", &NOTHING, DataKind::Json).await;
    assert_eq!(json, Err(Refusal::Failed));
    let bytes = hooks.publish(&asker, "a", &NOTHING, DataKind::Binary).await;
    assert_eq!(bytes.unwrap().data, Some(Bytes::from_static(b"\xff")));
}

#[tokio::test]
async fn a_client_whose_time_is_over_goes() {
    let server = server(Behaviour::Says(ok(&json!({"result": {"expired": true}})))).await;
    let headers = ClientHeaders::default();
    let refreshed = hooks(&server).refresh(&asker(&headers, &NOTHING)).await;
    assert_eq!(refreshed, Ok(Refreshed::Expired));
}

#[tokio::test]
async fn a_backend_that_is_out_of_order_grants_nothing_and_the_log_can_say_why() {
    let large = ok(&json!({"result": {"data": "x".repeat(100_000)}}));
    let chunked = |body: &str| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        format!("{head}{:x}\r\n{body}\r\n", body.len()).into_bytes()
    };
    for (behaviour, expected) in [
        (
            Behaviour::Says(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_vec()),
            "expected status 200, found 500 Internal Server Error",
        ),
        (
            Behaviour::Says(
                b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n".to_vec(),
            ),
            "expected status 200, found 302 Found",
        ),
        (
            Behaviour::Says(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
            "expected status 200, found 204 No Content",
        ),
        (
            Behaviour::SaysAndCloses(b"\x16\x03garbage\r\n\r\n".to_vec()),
            "cannot reach the backend",
        ),
        (
            Behaviour::SaysAndCloses(Vec::new()),
            "cannot reach the backend",
        ),
        (
            Behaviour::SaysAndCloses(
                b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"result\"".to_vec(),
            ),
            "the response is incomplete",
        ),
        (
            Behaviour::SaysAndCloses(chunked("{\"result\": {}}")),
            "the response is incomplete",
        ),
        (
            Behaviour::Says(large),
            "the response has more than 65536 bytes (setting hooks.response_size)",
        ),
        (
            Behaviour::SaysAndCloses(chunked(&"x".repeat(100_000))),
            "the response has more than 65536 bytes (setting hooks.response_size)",
        ),
        (
            Behaviour::Says(ok(&json!("<html>"))),
            "expected {\"result\": {...}}, {\"error\": {...}} or {\"disconnect\": {...}}",
        ),
        (
            Behaviour::Says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xff".to_vec()),
            "expected {\"result\": {...}}, {\"error\": {...}} or {\"disconnect\": {...}}",
        ),
    ] {
        let server = server(behaviour).await;
        let hooks = hooks(&server);
        assert_eq!(failure(&hooks).await, expected);
        assert_eq!(call(&hooks).await, Err(Refusal::Failed), "{expected}");
    }
}

#[tokio::test]
async fn a_backend_that_is_not_there_is_no_grant() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let hooks = hooks_with(address, |_| {});
    assert_eq!(call(&hooks).await, Err(Refusal::Failed));
}

#[tokio::test]
async fn a_question_is_given_up_in_time() {
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"result\"".to_vec();
    for behaviour in [Behaviour::Hangs, Behaviour::Says(half)] {
        let server = server(behaviour).await;
        let hooks = hooks_with_rpc(server.address, |rpc| {
            rpc.timeout = Duration::from_millis(200);
        });
        assert_eq!(
            failure(&hooks).await,
            "no response within 200ms (setting `timeout` of the hook)"
        );
    }
}

#[tokio::test]
async fn a_connection_that_the_backend_gave_up_costs_no_response() {
    let server = server(Behaviour::ClosesUsed(ok(&json!({"result": {}})))).await;
    let hooks = hooks(&server);
    let mut failures = 0;
    for _ in 0..4 {
        failures += usize::from(call(&hooks).await.is_err());
    }
    // A question that went out over a connection at its end may have been received, so it is not asked twice.
    assert!(failures <= 2, "{failures}");
    assert!(2 <= server.connections.load(Ordering::Relaxed));
}

#[tokio::test]
async fn no_more_questions_are_open_than_the_limit_says() {
    const OPEN_MAX: usize = 2;
    let told = Arc::new(Notify::new());
    let response = ok(&json!({"result": {"data": 1}}));
    let server = server(Behaviour::Waits(Arc::clone(&told), response)).await;
    let hooks = hooks_with_rpc(server.address, |rpc| rpc.open_max = OPEN_MAX);
    let mut asking = JoinSet::new();
    for _ in 0..5 {
        let hooks = Arc::clone(&hooks);
        asking.spawn(async move { call(&hooks).await });
    }
    for answered in 0..5 {
        let open = OPEN_MAX.min(5 - answered);
        while server.asked.lock().len() < answered + open {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Whoever waits had every chance to go ahead, and did not.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(server.asked.lock().len(), answered + open);
        told.notify_one();
        let response = asking.join_next().await.unwrap().unwrap();
        assert_eq!(response, Ok(Bytes::from_static(b"1")));
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), OPEN_MAX);
}

#[tokio::test]
async fn who_finds_no_place_in_time_is_told_so() {
    let server = server(Behaviour::Hangs).await;
    let hooks = hooks_with_rpc(server.address, |rpc| {
        rpc.open_max = 1;
        rpc.timeout = Duration::from_millis(200);
    });
    assert_eq!(
        failure(&hooks).await,
        "no response within 200ms (setting `timeout` of the hook)"
    );
    let calls = hooks.calls.of(Hook::Rpc).unwrap();
    let _permit = calls.permits.acquire().await.unwrap();
    assert_eq!(
        failure(&hooks).await,
        "1 requests were already open (setting `open` of the hook) for 200ms"
    );
}

#[tokio::test]
async fn a_hook_that_takes_all_of_its_places_holds_up_no_other() {
    let server = server(Behaviour::Says(ok(&json!({"result": {}})))).await;
    let hooks = hooks_with_rpc(server.address, |rpc| rpc.open_max = 1);
    let calls = hooks.calls.of(Hook::Rpc).unwrap();
    let _permit = calls.permits.acquire().await.unwrap();
    let headers = ClientHeaders::default();
    let connecting = Connecting {
        name: "",
        version: "",
        data: &NOTHING,
        channels: &[],
    };
    let asker = asker(&headers, &NOTHING);
    assert!(hooks.connect(&asker, &connecting).await.is_ok());
}

#[tokio::test]
async fn headers_go_along_if_the_operator_wants_it_and_never_in_the_nodes_name() {
    let server = server(Behaviour::Says(ok(&json!({"result": {}})))).await;
    let name = |name| HeaderName::from_static(name);
    let hooks = hooks_with(server.address, |config| {
        config.forward_headers = vec![name("cookie"), name("x-real-ip"), name("x-node")];
        config.headers = vec![(name("x-node"), Secret::new("secret".to_owned()))];
    });
    let mut request = HeaderMap::new();
    for (key, value) in [
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("authorization", "none of the backend's business"),
        ("x-node", "forged"),
        ("content-length", "1"),
    ] {
        request.append(name(key), HeaderValue::from_static(value));
    }
    let forwarded = hooks.forwarded(&request);
    let asked = hooks.rpc(&asker(&forwarded, &NOTHING), "", &NOTHING).await;
    assert_eq!(asked, Ok(Bytes::new()));
    let asked = server.asked.lock().pop().unwrap();
    assert_eq!(asked.header("cookie"), ["a=1", "b=2"]);
    assert_eq!(asked.header("x-node"), ["secret"]);
    assert!(asked.header("authorization").is_empty());
    assert_eq!(asked.header("content-length").len(), 1);
}

#[tokio::test]
async fn who_is_asked_without_an_address_says_so() {
    let server = server(Behaviour::Hangs).await;
    let hooks = hooks_with(server.address, |config| config.rpc = None);
    assert!(!hooks.has_rpc());
    assert_eq!(call(&hooks).await, Err(Refusal::Failed));
    assert_eq!(server.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn lifecycle_events_are_taken_by_any_status_that_says_so_and_by_no_other() {
    let events = json!({ "events": [{ "id": "0-1-0" }] });
    let outcome = |line| async move {
        let response = format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n");
        let server = server(Behaviour::Says(response.into_bytes())).await;
        let hooks = hooks(&server);
        (
            hooks
                .lifecycle(&json!({ "events": [{ "id": "0-1-0" }] }))
                .await,
            server,
            hooks,
        )
    };
    for line in ["200 OK", "202 Accepted"] {
        let (taken, server, hooks) = outcome(line).await;
        assert_eq!(taken, Ok(()), "{line}");
        let asked = server.asked.lock().clone();
        assert!(asked[0].head.starts_with("POST /lifecycle HTTP/1.1\r\n"));
        assert_eq!(asked[0].body, events);
        let counted = r#"hooks_total{hook="lifecycle",outcome="granted"} 1"#;
        assert!(hooks.metrics.render().contains(counted));
    }
    for line in ["302 Found", "400 Bad Request", "503 Service Unavailable"] {
        assert_eq!(outcome(line).await.0, Err(NotTaken), "{line}");
    }
}
