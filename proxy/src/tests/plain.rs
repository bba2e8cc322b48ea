//! Plain HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::scene::*;

const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_request_reaches_the_backend_with_who_the_client_is_and_the_answer_binds_it() {
    let (address, _backend) = mirror().await;
    let scene = Scene::before(&[address]).await;
    let answer = scene.ask("GET /a?b=c HTTP/1.1\r\nHost: example.com\r\nX-Forwarded-For: 6.6.6.6\r\nCookie: mine=1\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let (head, request) = answer.split_once("\r\n\r\n").unwrap();
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
async fn a_bound_client_stays_and_its_cookie_is_neither_repeated_nor_shown() {
    let (first, _first) = mirror().await;
    let (second, _second) = mirror().await;
    let scene = Scene::before(&[first, second]).await;
    let answer = scene.ask(GET).await;
    let cookie = header(&answer, "set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    for _ in 0..4 {
        let answer = scene
            .ask(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert_eq!(header(&answer, "set-cookie"), None);
        assert!(!answer.contains("causeway="), "{answer}");
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
async fn a_backend_that_refuses_costs_nothing_but_another_attempt() {
    let (address, _backend) = mirror().await;
    let scene = Scene::before(&[nobody().await, nobody().await, address]).await;
    for _ in 0..3 {
        let answer = scene
            .ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn without_a_backend_the_answer_is_503_and_says_when_to_come_back() {
    let scene = Scene::before(&[nobody().await]).await;
    let answer = scene.ask(GET).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
        "{answer}"
    );
    assert!(header(&answer, "retry-after").is_some());
    assert!(
        answer.ends_with("\r\n\r\nno backend available\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_backend_that_says_nothing_is_a_504() {
    let (address, _backend) = backend(|mut socket| async move {
        read_all(&mut socket).await;
    })
    .await;
    let scene = Scene::configured(&[address], "timeouts: { upstream_read: 1s }\n").await;
    let answer = scene.ask(GET).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
}

#[tokio::test]
async fn a_get_that_timed_out_goes_elsewhere_if_its_backend_is_down_by_then_and_a_post_does_not() {
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
        gives_up(&scene, "b0");
        let answer = read_all(&mut client).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn what_failed_is_the_answer_when_nobody_is_left_to_try() {
    let (dying, _dying) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    let scene = Scene::before(&[dying]).await;
    let answer = scene.ask(GET).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    // There were retries left.
    assert_eq!(scene.parts.proxy.metrics.retries.get(), 1);
}

#[tokio::test]
async fn a_post_whose_backend_dies_is_a_502_and_is_not_sent_twice() {
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
    let answer = scene
        .ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        .await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_get_whose_backend_dies_is_sent_to_another() {
    let (dying, _dying) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    let (living, _living) = mirror().await;
    let scene = Scene::before(&[dying, living]).await;
    for _ in 0..2 {
        let answer = scene.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn without_a_budget_for_retries_only_what_no_backend_has_seen_goes_elsewhere() {
    let (dying, _dying) = backend(|mut socket| async move {
        read_head(&mut socket).await;
    })
    .await;
    let (living, _living) = mirror().await;
    let settings = "limits: { retry_budget: 0 }\n";
    for (first, others) in [(nobody().await, "200"), (dying, "502")] {
        let scene = Scene::configured(&[first, living], settings).await;
        // The pick goes round: one of the two comes to the first backend.
        let mut seen =
            [scene.ask(GET).await, scene.ask(GET).await].map(|answer| answer[9..12].to_owned());
        seen.sort_unstable();
        assert_eq!(seen, ["200", others]);
    }
}

#[tokio::test]
async fn a_client_that_leaves_a_parked_poll_ends_it_at_the_backend_too() {
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
        assert_eq!(ended.expect("the backend hears of it"), Some("gone"));
    }
}

#[tokio::test]
async fn a_backend_can_ask_for_its_client_to_be_bound_to_another() {
    let release = "HTTP/1.1 303 See Other\r\nLocation: /\r\nCauseway-Release: 1\r\nCauseway-Node: n\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (first, _first) = answering(release).await;
    let (second, _second) = answering(release).await;
    let scene = Scene::before(&[first, second]).await;
    let bound = |answer: &str| {
        header(answer, "set-cookie")
            .unwrap()
            .split('.')
            .nth(1)
            .unwrap()
            .to_owned()
    };
    let mut answer = scene.ask(GET).await;
    for _ in 0..3 {
        let before = bound(&answer);
        assert_eq!(header(&answer, "causeway-release"), None);
        assert_eq!(header(&answer, "causeway-node"), Some("n"));
        let cookie = header(&answer, "set-cookie")
            .unwrap()
            .split(';')
            .next()
            .unwrap()
            .to_owned();
        answer = scene
            .ask(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert_ne!(bound(&answer), before);
    }
}

#[tokio::test]
async fn a_path_without_a_route_gets_the_configured_answer() {
    let (address, _backend) = mirror().await;
    let scene = Scene::configured(
        &[address],
        "no_route: { status: 421, body: \"elsewhere\\n\" }\n",
    )
    .await;
    let answer = scene
        .ask("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 421 ") && answer.ends_with("elsewhere\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn an_upgrade_that_no_route_allows_is_an_ordinary_request() {
    let (address, _backend) = mirror().await;
    let scene = Scene::before(&[address]).await;
    let answer = scene.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n").await;
    let (head, request) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(header(request, "upgrade"), None, "{request}");
    assert_eq!(header(request, "http2-settings"), None, "{request}");
}

#[tokio::test]
async fn a_websocket_asked_for_with_post_is_for_the_backend_to_answer() {
    let (address, _backend) = mirror().await;
    let scene = Scene::before(&[address]).await;
    let answer = scene.ask("POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: WebSocket\r\nContent-Length: 0\r\n\r\n").await;
    let (head, request) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(request.starts_with("POST / HTTP/1.1\r\n"), "{request}");
    assert_eq!(header(request, "upgrade"), None, "{request}");
}

#[tokio::test]
async fn the_answer_to_a_preflight_binds_nobody() {
    let (first, _first) = mirror().await;
    let (second, _second) = mirror().await;
    let scene = Scene::before(&[first, second]).await;
    let path = "/sockjs/000/session/xhr";
    let cors = "Host: a\r\nOrigin: http://b\r\nConnection: close\r\n";
    let preflight = scene
        .ask(format!(
            "OPTIONS {path} HTTP/1.1\r\n{cors}Access-Control-Request-Method: POST\r\n\r\n"
        ))
        .await;
    assert!(preflight.starts_with("HTTP/1.1 200 OK"), "{preflight}");
    assert_eq!(header(&preflight, "set-cookie"), None);
    assert_eq!(header(&preflight, "cache-control"), None);
    // The request behind it is the first of its session: it gets the cookie.
    let first = scene
        .ask(format!(
            "POST {path} HTTP/1.1\r\n{cors}Content-Length: 0\r\n\r\n"
        ))
        .await;
    assert!(header(&first, "set-cookie").is_some(), "{first}");
    // An OPTIONS that no browser sent by itself is a request like any other.
    let options = scene.ask(format!("OPTIONS / HTTP/1.1\r\n{cors}\r\n")).await;
    assert!(header(&options, "set-cookie").is_some(), "{options}");
}

#[tokio::test]
async fn without_a_cookie_sessions_keep_their_backend_and_cookies_mean_nothing() {
    let (first, _first) = answering("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").await;
    let (second, _second) = answering("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2").await;
    let scene = Scene::configured(&[first, second], "affinity: { cookie: none }").await;
    for session in 0..8 {
        let poll = format!(
            "POST /sockjs/0/s{session}/xhr HTTP/1.1\r\nHost: a\r\nCookie: none=u1.b0.1; causeway=u1.b0.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        let before = scene.ask(&poll).await;
        assert_eq!(header(&before, "set-cookie"), None, "{before}");
        for _ in 0..4 {
            let answer = scene.ask(&poll).await;
            assert_eq!(answer.bytes().last(), before.bytes().last(), "{answer}");
        }
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.extend(scene.ask(GET).await.bytes().last());
    }
    assert!(seen.contains(&b'1') && seen.contains(&b'2'), "{seen:?}");
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks_and_its_connection_closed() {
    let (address, _backend) = answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
    )
    .await;
    let scene = Scene::before(&[address]).await;
    let answer = scene
        .ask("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
        .await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(header(head, "transfer-encoding"), None, "{head}");
    assert_eq!(header(head, "connection"), Some("close"), "{head}");
    assert_eq!(body, "hello!");
}

#[tokio::test]
async fn every_address_of_a_name_gets_its_chance() {
    // As `localhost` does: ::1 comes first, and the backend listens on 127.0.0.1 alone.
    let (address, _backend) = mirror().await;
    let dead = nobody().await;
    let scene = Scene::configured_at(&["two.test:80".to_owned()], "limits: { retries: 0 }\n").await;
    for _ in 0..2 {
        scene
            .parts
            .names
            .pin("two.test", 80, &[dead, dead, address]);
        let answer = scene.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}
