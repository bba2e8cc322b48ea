//! Plain HTTP requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::scene::*;

const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_request_has_forwarding_headers_and_its_response_binds_the_client() {
    let (address, _backend) = mirror().await;
    let scene = Scene::before(&[address]).await;
    let response = scene.request("GET /a?b=c HTTP/1.1\r\nHost: example.com\r\nX-Forwarded-For: 6.6.6.6\r\nCookie: mine=1\r\nConnection: close\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    let (head, request) = response.split_once("\r\n\r\n").unwrap();
    assert!(
        header(head, "set-cookie").unwrap().starts_with("causeway="),
        "{head}"
    );
    assert!(request.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{request}");
    assert_eq!(header(request, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(header(request, "host"), Some("example.com"));
    assert_eq!(header(request, "cookie"), Some("mine=1"));
    assert!(header(request, "x-request-id").is_some());
}

#[tokio::test]
async fn a_bound_client_keeps_its_backend_and_its_cookie_is_neither_set_again_nor_forwarded() {
    let (first, _first) = mirror().await;
    let (second, _second) = mirror().await;
    let scene = Scene::before(&[first, second]).await;
    let response = scene.request(GET).await;
    let cookie = header(&response, "set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    for _ in 0..4 {
        let response = scene
            .request(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert_eq!(header(&response, "set-cookie"), None);
        assert!(!response.contains("causeway="), "{response}");
    }
}

#[tokio::test]
async fn a_body_is_streamed_both_ways() {
    let (address, _backend) = backend(|mut socket| async move {
        read_head(&mut socket).await;
        socket
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n")
            .await
            .unwrap();
        let mut left = 300_000;
        let mut piece = vec![0; 4096];
        while left > 0 {
            let count = socket.read(&mut piece).await.unwrap();
            assert!(count > 0);
            socket.write_all(&piece[..count]).await.unwrap();
            left -= count;
        }
    })
    .await;
    let scene = Scene::before(&[address]).await;
    let body: Vec<u8> = (0..300_000_u32)
        .map(|index| b'a' + (index % 23) as u8)
        .collect();
    let mut client = scene
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\nConnection: close\r\n\r\n")
        .await;
    let (mut reading, mut writing) = client.split();
    let (sent, received) = tokio::join!(writing.write_all(&body), async {
        let mut received = Vec::new();
        reading.read_to_end(&mut received).await.unwrap();
        received
    });
    sent.unwrap();
    assert!(received.ends_with(&body));
}

#[tokio::test]
async fn a_request_is_sent_to_another_backend_if_one_refuses_connections() {
    let (address, _backend) = mirror().await;
    let scene = Scene::before(&[closed_port().await, closed_port().await, address]).await;
    for _ in 0..3 {
        let response = scene
            .request("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    }
}

#[tokio::test]
async fn without_a_backend_the_response_is_503_with_retry_after() {
    let scene = Scene::before(&[closed_port().await]).await;
    let response = scene.request(GET).await;
    assert!(
        response.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
        "{response}"
    );
    assert!(header(&response, "retry-after").is_some());
    assert!(
        response.ends_with("\r\n\r\nno backend available\n"),
        "{response}"
    );
}

#[tokio::test]
async fn a_backend_that_does_not_respond_is_a_504() {
    let (address, _backend) = backend(|mut socket| async move {
        read_all(&mut socket).await;
    })
    .await;
    let scene = Scene::configured(&[address], "timeouts: { upstream_read: 1s }\n").await;
    let response = scene.request(GET).await;
    assert!(response.starts_with("HTTP/1.1 504 "), "{response}");
}

#[tokio::test]
async fn a_get_that_timed_out_is_sent_to_another_backend_if_its_own_is_down_but_a_post_is_not() {
    for (method, status) in [("GET", "200"), ("POST", "504")] {
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
        let (other, _other) = mirror().await;
        let settings = "timeouts: { upstream_read: 2s }\n";
        let scene = Scene::configured(&[silent, other], settings).await;
        let mut client = scene
            .send(format!("{method} /a HTTP/1.1\r\nHost: a\r\nCookie: causeway=u1.b0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
            .await;
        tokio::time::timeout(SOON, asks.recv()).await.unwrap();
        mark_down(&scene, "b0");
        let response = read_all(&mut client).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{response}"
        );
    }
}

#[tokio::test]
async fn the_last_failure_is_the_response_when_no_backend_is_left_to_try() {
    let (dying, _dying) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    let scene = Scene::before(&[dying]).await;
    let response = scene.request(GET).await;
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
    // There were retries left.
    assert_eq!(scene.components.proxy.metrics.retries.get(), 1);
}

#[tokio::test]
async fn a_post_whose_backend_disconnects_is_a_502_and_is_not_sent_again() {
    let seen = Arc::new(AtomicUsize::new(0));
    let script = {
        let seen = Arc::clone(&seen);
        move |mut socket| {
            let seen = Arc::clone(&seen);
            async move {
                read_head(&mut socket).await;
                seen.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let (first, _first) = backend(script.clone()).await;
    let (second, _second) = backend(script).await;
    let scene = Scene::before(&[first, second]).await;
    let response = scene
        .request("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        .await;
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_get_whose_backend_disconnects_is_sent_to_another() {
    let (dying, _dying) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    let (living, _living) = mirror().await;
    let scene = Scene::before(&[dying, living]).await;
    for _ in 0..2 {
        let response = scene.request(GET).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    }
}

#[tokio::test]
async fn without_a_retry_budget_only_requests_that_no_backend_has_received_are_retried() {
    let (dying, _dying) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    let (living, _living) = mirror().await;
    let settings = "limits: { retry_budget: 0 }\n";
    for (first, others) in [(closed_port().await, "200"), (dying, "502")] {
        let scene = Scene::configured(&[first, living], settings).await;
        // The pick is round robin: one of the two requests goes to the first backend.
        let mut seen = [scene.request(GET).await, scene.request(GET).await]
            .map(|response| response[9..12].to_owned());
        seen.sort_unstable();
        assert_eq!(seen, ["200", others]);
    }
}

#[tokio::test]
async fn a_client_that_disconnects_from_a_long_poll_ends_it_at_the_backend() {
    let (left, mut gone) = mpsc::channel(1);
    let (address, _backend) = backend(move |mut socket| {
        let left = left.clone();
        async move {
            read_head(&mut socket).await;
            left.send("parked").await.unwrap();
            read_all(&mut socket).await;
            left.send("gone").await.unwrap();
        }
    })
    .await;
    let scene = Scene::before(&[address]).await;
    for request in [
        "POST /s/x/xhr HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let client = scene.send(request).await;
        assert_eq!(gone.recv().await, Some("parked"));
        drop(client);
        let ended = tokio::time::timeout(SOON, gone.recv()).await;
        assert_eq!(ended.expect("the backend sees it"), Some("gone"));
    }
}

#[tokio::test]
async fn a_backend_can_release_its_client_to_another_backend() {
    let release = "HTTP/1.1 303 See Other\r\nLocation: /\r\nCauseway-Release: 1\r\nCauseway-Node: n\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (first, _first) = responding(release).await;
    let (second, _second) = responding(release).await;
    let scene = Scene::before(&[first, second]).await;
    let bound = |response: &str| {
        header(response, "set-cookie")
            .unwrap()
            .split('.')
            .nth(1)
            .unwrap()
            .to_owned()
    };
    let mut response = scene.request(GET).await;
    for _ in 0..3 {
        let before = bound(&response);
        assert_eq!(header(&response, "causeway-release"), None);
        assert_eq!(header(&response, "causeway-node"), Some("n"));
        let cookie = header(&response, "set-cookie")
            .unwrap()
            .split(';')
            .next()
            .unwrap()
            .to_owned();
        response = scene
            .request(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert_ne!(bound(&response), before);
    }
}

#[tokio::test]
async fn a_path_without_a_route_gets_the_configured_response() {
    let (address, _backend) = mirror().await;
    let scene = Scene::configured(
        &[address],
        "no_route: { status: 421, body: \"elsewhere\\n\" }\n",
    )
    .await;
    let response = scene
        .request("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        response.starts_with("HTTP/1.1 421 ") && response.ends_with("elsewhere\n"),
        "{response}"
    );
}

#[tokio::test]
async fn an_upgrade_that_no_route_allows_is_an_ordinary_request() {
    let (address, _backend) = mirror().await;
    let scene = Scene::before(&[address]).await;
    let response = scene.request("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n").await;
    let (head, request) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{response}");
    assert_eq!(header(request, "upgrade"), None, "{request}");
    assert_eq!(header(request, "http2-settings"), None, "{request}");
}

#[tokio::test]
async fn an_upgrade_with_post_is_an_ordinary_request() {
    let (address, _backend) = mirror().await;
    let scene = Scene::before(&[address]).await;
    let response = scene.request("POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: WebSocket\r\nContent-Length: 0\r\n\r\n").await;
    let (head, request) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{response}");
    assert!(request.starts_with("POST / HTTP/1.1\r\n"), "{request}");
    assert_eq!(header(request, "upgrade"), None, "{request}");
}

#[tokio::test]
async fn the_response_to_a_preflight_sets_no_cookie() {
    let (first, _first) = mirror().await;
    let (second, _second) = mirror().await;
    let scene = Scene::before(&[first, second]).await;
    let path = "/sockjs/000/session/xhr";
    let cors = "Host: a\r\nOrigin: http://b\r\nConnection: close\r\n";
    let preflight = scene
        .request(format!(
            "OPTIONS {path} HTTP/1.1\r\n{cors}Access-Control-Request-Method: POST\r\n\r\n"
        ))
        .await;
    assert!(preflight.starts_with("HTTP/1.1 200 OK"), "{preflight}");
    assert_eq!(header(&preflight, "set-cookie"), None);
    assert_eq!(header(&preflight, "cache-control"), None);
    // The request after it is the first of its session: its response sets the cookie.
    let first = scene
        .request(format!(
            "POST {path} HTTP/1.1\r\n{cors}Content-Length: 0\r\n\r\n"
        ))
        .await;
    assert!(header(&first, "set-cookie").is_some(), "{first}");
    // An OPTIONS request that is not a preflight is like any other.
    let options = scene
        .request(format!("OPTIONS / HTTP/1.1\r\n{cors}\r\n"))
        .await;
    assert!(header(&options, "set-cookie").is_some(), "{options}");
}

#[tokio::test]
async fn with_cookies_off_sessions_keep_their_backend_and_cookies_have_no_effect() {
    let (first, _first) = responding("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").await;
    let (second, _second) = responding("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2").await;
    let scene = Scene::configured(&[first, second], "affinity: { cookie: none }").await;
    for session in 0..8 {
        let poll = format!(
            "POST /sockjs/0/s{session}/xhr HTTP/1.1\r\nHost: a\r\nCookie: none=u1.b0.1; causeway=u1.b0.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        let before = scene.request(&poll).await;
        assert_eq!(header(&before, "set-cookie"), None, "{before}");
        for _ in 0..4 {
            let response = scene.request(&poll).await;
            assert_eq!(response.bytes().last(), before.bytes().last(), "{response}");
        }
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.extend(scene.request(GET).await.bytes().last());
    }
    assert!(seen.contains(&b'1') && seen.contains(&b'2'), "{seen:?}");
}

#[tokio::test]
async fn an_http_1_0_client_gets_no_chunks_and_its_connection_is_closed() {
    let (address, _backend) = responding(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
    )
    .await;
    let scene = Scene::before(&[address]).await;
    let response = scene
        .request("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
        .await;
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert_eq!(header(head, "transfer-encoding"), None, "{head}");
    assert_eq!(header(head, "connection"), Some("close"), "{head}");
    assert_eq!(body, "hello!");
}

#[tokio::test]
async fn every_address_of_a_host_name_is_tried() {
    // As for `localhost`: ::1 is first, and the backend listens on 127.0.0.1 only.
    let (address, _backend) = mirror().await;
    let dead = closed_port().await;
    let scene = Scene::configured_at(&["two.test:80".to_owned()], "limits: { retries: 0 }\n").await;
    for _ in 0..2 {
        scene
            .components
            .names
            .pin("two.test", 80, &[dead, dead, address]);
        let response = scene.request(GET).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    }
}
