//! SockJS sessions over HTTP: polls, streams, what comes between them, and how they end.

use super::*;

const ENDPOINTS: &str = "
endpoints:
  - { path: /echo, protocol: sockjs, mode: echo, response_limit: 4KiB }
  - { path: /brief, protocol: sockjs, mode: echo, disconnect_delay: 2s }
  - { path: /lively, protocol: sockjs, mode: echo, heartbeat: 100ms }
  - { path: /narrow, protocol: sockjs, mode: echo, outbox: 1KiB }
  - { path: /relay, protocol: sockjs, mode: relay }
  - { path: /mute, protocol: sockjs, mode: echo, read_only: true }
  - { path: /small, protocol: sockjs, mode: echo, message_size: 4B }
";

/// Opens a session by its first poll.
async fn open(node: &TestNode, session: &str) {
    let response = node.post(&format!("{session}/xhr"), "").await;
    assert_eq!((response.status, &response.body[..]), (200, "o\n"));
}

async fn send(node: &TestNode, session: &str, messages: &str) -> u16 {
    node.post(&format!("{session}/xhr_send"), messages)
        .await
        .status
}

async fn poll(node: &TestNode, session: &str) -> String {
    node.post(&format!("{session}/xhr"), "").await.body
}

/// Opens a stream and reads up to its first frame, which it returns.
async fn stream(node: &TestNode, session: &str) -> (Client, Option<String>) {
    let mut client = node.connect().await;
    client.post(&format!("{session}/xhr_streaming"), "").await;
    let head = client.head().await;
    assert_eq!(head.status, 200);
    assert_eq!(
        head.header("content-type"),
        Some("application/javascript; charset=UTF-8")
    );
    assert_eq!(client.chunk().await, Some("h".repeat(2048) + "\n"));
    let first = client.chunk().await;
    (client, first)
}

#[tokio::test]
async fn a_poll_opens_the_session_and_the_next_brings_all_that_waits() {
    let node = TestNode::start(ENDPOINTS);
    open(&node, "/echo/000/a").await;
    assert_eq!(send(&node, "/echo/000/a", r#"["x"]"#).await, 204);
    assert_eq!(send(&node, "/echo/999/a", r#"["y", "z"]"#).await, 204);
    assert_eq!(poll(&node, "/echo/1/a").await, "a[\"x\",\"y\",\"z\"]\n");
}

#[tokio::test]
async fn a_waiting_poll_is_answered_by_the_next_message() {
    let node = TestNode::start(ENDPOINTS);
    open(&node, "/echo/0/a").await;
    let mut waiting = node.connect().await;
    waiting.post("/echo/0/a/xhr", "").await;
    assert_eq!(send(&node, "/echo/0/a", r#"["x"]"#).await, 204);
    assert_eq!(waiting.response().await.body, "a[\"x\"]\n");
}

#[tokio::test]
async fn each_frame_of_a_stream_is_a_chunk_of_its_own() {
    let node = TestNode::start(ENDPOINTS);
    let (mut client, first) = stream(&node, "/echo/0/a").await;
    assert_eq!(first.as_deref(), Some("o\n"));
    for message in ["x", "y"] {
        send(&node, "/echo/0/a", &format!("[\"{message}\"]")).await;
        assert_eq!(client.chunk().await, Some(format!("a[\"{message}\"]\n")));
    }
}

#[tokio::test]
async fn a_stream_ends_at_its_limit_and_loses_nothing() {
    let node = TestNode::start(ENDPOINTS);
    let (mut client, _) = stream(&node, "/echo/0/a").await;
    let message = "x".repeat(128);
    for sent in 0..31 {
        assert_eq!(
            send(&node, "/echo/0/a", &format!("[\"{message}\"]")).await,
            204,
            "{sent}"
        );
        assert_eq!(client.chunk().await, Some(format!("a[\"{message}\"]\n")));
    }
    assert_eq!(client.chunk().await, None, "2 + 31 x 134 bytes reach 4096");
    send(&node, "/echo/0/a", r#"["after"]"#).await;
    let (_client, first) = stream(&node, "/echo/0/a").await;
    assert_eq!(first.as_deref(), Some("a[\"after\"]\n"));
}

#[tokio::test]
async fn an_old_client_gets_a_stream_without_chunks() {
    let node = TestNode::start(ENDPOINTS);
    let mut client = node.connect().await;
    client
        .send("POST /echo/0/a/xhr_streaming HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        .await;
    let head = client.head().await;
    assert_eq!(head.version, "HTTP/1.0");
    assert_eq!(
        (
            head.header("transfer-encoding"),
            head.header("content-length")
        ),
        (None, None)
    );
    assert_eq!(client.bytes(2049 + 2).await[2049..], *b"o\n");
}

#[tokio::test]
async fn a_second_receiver_is_refused_and_the_first_lives_on() {
    let node = TestNode::start(ENDPOINTS);
    let (mut first, _) = stream(&node, "/echo/0/a").await;
    let busy = "c[2010,\"Another connection still open\"]\n";
    assert_eq!(poll(&node, "/echo/0/a").await, busy);
    let (mut second, frame) = stream(&node, "/echo/0/a").await;
    assert_eq!(frame.as_deref(), Some(busy));
    assert_eq!(second.chunk().await, None);
    send(&node, "/echo/0/a", r#"["x"]"#).await;
    assert_eq!(first.chunk().await.as_deref(), Some("a[\"x\"]\n"));
}

#[tokio::test]
async fn a_client_that_goes_away_interrupts_its_session() {
    let node = TestNode::start(ENDPOINTS);
    for (session, receive) in [("/echo/0/stream", "xhr_streaming"), ("/echo/0/poll", "xhr")] {
        open(&node, session).await;
        let mut client = node.connect().await;
        client.post(&format!("{session}/{receive}"), "").await;
        // The receiver is there when another one is not let in.
        until(async || poll(&node, session).await.starts_with("c[2010")).await;
        drop(client);
        until(async || send(&node, session, "[]").await == 404).await;
        assert_eq!(
            poll(&node, session).await,
            "c[1002,\"Connection interrupted\"]\n"
        );
    }
}

#[tokio::test]
async fn a_session_without_a_receiver_ends_after_the_delay() {
    let node = TestNode::start(ENDPOINTS);
    open(&node, "/brief/0/a").await;
    until(async || send(&node, "/brief/0/a", "[]").await == 404).await;
    open(&node, "/brief/0/a").await;
}

#[tokio::test]
async fn a_quiet_receiver_receives_heartbeats() {
    let node = TestNode::start(ENDPOINTS);
    let (mut client, _) = stream(&node, "/lively/0/a").await;
    for _ in 0..2 {
        assert_eq!(client.chunk().await.as_deref(), Some("h\n"));
    }
    open(&node, "/lively/0/b").await;
    assert_eq!(poll(&node, "/lively/0/b").await, "h\n");
}

#[tokio::test]
async fn a_session_that_is_not_read_is_closed_as_slow() {
    let node = TestNode::start(ENDPOINTS);
    open(&node, "/narrow/0/a").await;
    let message = format!("[\"{}\"]", "x".repeat(400));
    for _ in 0..4 {
        assert_eq!(send(&node, "/narrow/0/a", &message).await, 204);
    }
    assert_eq!(
        poll(&node, "/narrow/0/a").await,
        "c[3008,\"reads too slowly\"]\n"
    );
    assert_eq!(
        poll(&node, "/narrow/0/a").await,
        "c[3008,\"reads too slowly\"]\n"
    );
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_little_and_delays_nobody() {
    let node = TestNode::start(
        "
endpoints: [ { path: /relay, protocol: sockjs, mode: relay, outbox: 1KiB, response_limit: 64MiB } ]
tcp: { send_buffer: 4KiB }
",
    );
    let (mut stalled, _) = stream(&node, "/relay/0/stalled").await;
    let message = format!("[\"{}\"]", "x".repeat(60_000));
    open(&node, "/relay/0/sender").await;
    until(async || {
        assert_eq!(send(&node, "/relay/0/sender", &message).await, 204);
        assert!(poll(&node, "/relay/0/sender").await.starts_with("a[\"x"));
        let metrics = node.get_from_admin("/metrics").await.body;
        metrics.contains("causeway_node_disconnects_total{code=\"3008\",reason=\"slow\"} 1")
    })
    .await;
    let mut last = String::new();
    while let Some(chunk) = stalled.chunk().await {
        last = chunk;
    }
    assert_eq!(last, "c[3008,\"reads too slowly\"]\n");
}

#[tokio::test]
async fn a_client_that_breaks_a_rule_is_sent_away() {
    let node = TestNode::start(ENDPOINTS);
    for (session, message, close) in [
        (
            "/mute/0/a",
            r#"["x"]"#,
            "c[1008,\"this endpoint is read-only\"]\n",
        ),
        (
            "/small/0/a",
            r#"["12345"]"#,
            "c[1009,\"message too large\"]\n",
        ),
    ] {
        open(&node, session).await;
        assert_eq!(send(&node, session, message).await, 204);
        assert_eq!(
            send(&node, session, message).await,
            204,
            "dropped without a word"
        );
        assert_eq!(poll(&node, session).await, close);
    }
    open(&node, "/small/0/b").await;
    assert_eq!(send(&node, "/small/0/b", r#"["1234"]"#).await, 204);
    assert_eq!(poll(&node, "/small/0/b").await, "a[\"1234\"]\n");
}

#[tokio::test]
async fn bad_messages_are_named_and_the_session_goes_on() {
    let node = TestNode::start(ENDPOINTS);
    open(&node, "/echo/0/a").await;
    for (body, text) in [
        ("", "Payload expected."),
        ("{}", "Payload expected."),
        ("\"x\"", "Payload expected."),
        ("[\"x", "Broken JSON encoding."),
        ("x", "Broken JSON encoding."),
    ] {
        let response = node.post("/echo/0/a/xhr_send", body).await;
        assert_eq!((response.status, &response.body[..]), (500, text), "{body}");
    }
    assert_eq!(
        send(&node, "/echo/0/a", r#"["\ud800", "\u0000😀"]"#).await,
        204
    );
    assert_eq!(
        poll(&node, "/echo/0/a").await,
        "a[\"\\ufffd\",\"\\u0000\\ud83d\\ude00\"]\n"
    );
}

#[tokio::test]
async fn unknown_sessions_are_not_found_and_not_made_by_sending() {
    let node = TestNode::start(ENDPOINTS);
    for body in ["", "[]", "[\"x\"]", "["] {
        assert_eq!(send(&node, "/echo/0/unknown", body).await, 404, "{body}");
    }
    open(&node, "/echo/0/unknown").await;
    assert_eq!(
        send(&node, "/relay/0/unknown", "[]").await,
        404,
        "an id is its endpoint's own"
    );
}

#[tokio::test]
async fn sessions_are_limited_in_number() {
    let node = TestNode::start(&format!("{ENDPOINTS}\nlimits: {{ sessions: 1 }}\n"));
    open(&node, "/brief/0/a").await;
    let response = node.post("/echo/0/b/xhr", "").await;
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").is_some());
    until(async || node.post("/echo/0/b/xhr", "").await.status == 200).await;
}

/// Opens a session for a client behind a proxy, and returns the status.
async fn open_for(node: &TestNode, session: &str, client: &str) -> raw::Response {
    node.request(&format!(
        "POST {session}/xhr HTTP/1.1\r\nHost: node\r\nX-Forwarded-For: {client}\r\n\
         Content-Length: 0\r\n\r\n"
    ))
    .await
}

#[tokio::test]
async fn half_open_sessions_of_one_address_are_limited_and_others_go_on() {
    let node = TestNode::start(&format!(
        "{ENDPOINTS}\ntrusted_proxies: [ 127.0.0.1 ]\nlimits: {{ sessions_per_address: 2 }}\n"
    ));
    // One with a receiver that waits does not count.
    let (mut streaming, _) = stream(&node, "/echo/0/streaming").await;
    assert_eq!(send(&node, "/echo/0/streaming", r#"["x"]"#).await, 204);
    assert_eq!(streaming.chunk().await.as_deref(), Some("a[\"x\"]\n"));
    for session in ["/echo/0/a", "/brief/0/b"] {
        assert_eq!(open_for(&node, session, "203.0.113.1").await.status, 200);
    }
    let refused = open_for(&node, "/echo/0/c", "203.0.113.1").await;
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(
        open_for(&node, "/echo/0/d", "203.0.113.2").await.status,
        200
    );
    let metrics = node.get_from_admin("/metrics").await.body;
    let refusals = "connections_refused_total{reason=\"sessions_per_address\"} 1\n";
    assert!(metrics.contains(refusals), "{metrics}");
    // Its own sessions go on, and one that ends makes room.
    assert_eq!(send(&node, "/echo/0/a", "[]").await, 204);
    until(async || open_for(&node, "/echo/0/c", "203.0.113.1").await.status == 200).await;
}

#[tokio::test]
async fn a_large_array_is_echoed_whole_however_small_the_outbox_is() {
    let node = TestNode::start(ENDPOINTS);
    open(&node, "/narrow/0/a").await;
    let messages: Vec<_> = (0..100).map(|count| format!("\"{count:0100}\"")).collect();
    let messages = messages.join(",");
    assert_eq!(
        send(&node, "/narrow/0/a", &format!("[{messages}]")).await,
        204
    );
    assert_eq!(poll(&node, "/narrow/0/a").await, format!("a[{messages}]\n"));
}

#[tokio::test]
async fn what_one_session_sends_all_others_receive_in_order() {
    let node = TestNode::start(ENDPOINTS);
    let (mut listener, _) = stream(&node, "/relay/0/listener").await;
    open(&node, "/relay/0/sender").await;
    let mut received = String::new();
    for count in 0..50 {
        assert_eq!(
            send(&node, "/relay/0/sender", &format!("[\"{count}\"]")).await,
            204
        );
    }
    while !received.contains("\"49\"") {
        let frame = listener.chunk().await.unwrap();
        received.push_str(frame.trim_start_matches("a[").trim_end_matches("]\n"));
        received.push(',');
    }
    let all: String = (0..50).map(|count| format!("\"{count}\",")).collect();
    assert_eq!(received, all);
}

/// For responses that are larger than what the kernel takes.
const LARGE: &str = "
endpoints:
  - { path: /large, protocol: sockjs, mode: echo, message_size: 1MiB, outbox: 16MiB, response_limit: 64MiB, disconnect_delay: 1m }
limits: { send_timeout: 300ms, body_size: 16MiB }
tcp: { send_buffer: 4KiB }
";

/// An array of messages that no kernel buffers whole.
fn large_array() -> String {
    let message = "x".repeat(1 << 20);
    format!("[\"{message}\"{}]", format!(",\"{message}\"").repeat(9))
}

#[tokio::test]
async fn a_receiver_that_reads_byte_by_byte_does_not_keep_its_session() {
    let node = TestNode::start(LARGE);
    let (mut client, _) = stream(&node, "/large/0/a").await;
    assert_eq!(send(&node, "/large/0/a", &large_array()).await, 204);
    until(async || {
        client.bytes(1).await;
        send(&node, "/large/0/a", "[]").await == 404
    })
    .await;
}

#[tokio::test]
async fn a_poll_whose_response_is_not_taken_does_not_keep_its_connection() {
    let node = TestNode::start(LARGE);
    open(&node, "/large/0/a").await;
    let mut client = node.connect().await;
    client.post("/large/0/a/xhr", "").await;
    until(async || poll(&node, "/large/0/a").await.starts_with("c[2010")).await;
    assert_eq!(send(&node, "/large/0/a", &large_array()).await, 204);
    until(async || {
        let metrics = node.get_from_admin("/metrics").await.body;
        metrics.contains("causeway_node_connections 0\n")
    })
    .await;
    let taken = client.rest().await.len();
    assert!(taken < 9 << 20, "{taken}");
}

#[tokio::test]
async fn messages_larger_than_64_kib_come_whole() {
    let node = TestNode::start(LARGE);
    let message = "\u{e9}x".repeat(150_000);
    let frame = format!("a[\"{message}\"]\n");
    open(&node, "/large/0/a").await;
    assert_eq!(
        send(&node, "/large/0/a", &format!("[\"{message}\"]")).await,
        204
    );
    assert!(poll(&node, "/large/0/a").await == frame);
    let (mut client, _) = stream(&node, "/large/0/b").await;
    assert_eq!(
        send(&node, "/large/0/b", &format!("[\"{message}\"]")).await,
        204
    );
    assert!(client.chunk().await == Some(frame));
}

#[tokio::test]
async fn nothing_is_lost_where_streams_end_at_128_kib() {
    let node = TestNode::start(
        "endpoints: [ { path: /echo, protocol: sockjs, mode: echo, outbox: 16MiB, disconnect_delay: 1m } ]",
    );
    let (mut client, _) = stream(&node, "/echo/0/a").await;
    let padding = "x".repeat(2000);
    let sending = async {
        for number in 0..200 {
            let message = format!("[\"{number} {padding}\"]");
            assert_eq!(send(&node, "/echo/0/a", &message).await, 204);
        }
    };
    let receiving = async {
        let mut numbers = Vec::new();
        let mut streams = 1;
        while numbers.len() < 200 {
            let Some(chunk) = client.chunk().await else {
                let (next, first) = stream(&node, "/echo/0/a").await;
                client = next;
                streams += 1;
                take_numbers(&first.unwrap(), &mut numbers);
                continue;
            };
            take_numbers(&chunk, &mut numbers);
        }
        (numbers, streams)
    };
    let ((), (numbers, streams)) = tokio::join!(sending, receiving);
    assert_eq!(numbers, (0..200).collect::<Vec<u32>>());
    assert!(
        2 < streams,
        "400 KB take more than {streams} streams of 128 KiB"
    );
}

/// The numbers at the front of the messages of a frame.
fn take_numbers(frame: &str, numbers: &mut Vec<u32>) {
    let messages = frame.trim_start_matches("a[").trim_end_matches("]\n");
    for message in messages.split(',') {
        let number = message.trim_start_matches('"').split(' ').next().unwrap();
        numbers.push(number.parse().unwrap());
    }
}

#[tokio::test]
async fn of_receivers_that_race_one_gets_everything_and_the_others_are_refused() {
    let node = TestNode::start(ENDPOINTS);
    open(&node, "/echo/0/a").await;
    let mut refused = 0;
    let mut waiting = JoinSet::new();
    let address = node.address;
    for _ in 0..20 {
        waiting.spawn(async move {
            let mut client = Client::connect(address).await;
            client.post("/echo/0/a/xhr", "").await;
            client.response().await.body
        });
    }
    while refused < 19 {
        let body = waiting.join_next().await.unwrap().unwrap();
        assert_eq!(body, "c[2010,\"Another connection still open\"]\n");
        refused += 1;
    }
    assert_eq!(send(&node, "/echo/0/a", r#"["x","y"]"#).await, 204);
    let body = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(body, "a[\"x\",\"y\"]\n");
}

#[tokio::test]
async fn who_guesses_a_session_receives_nothing_while_its_client_receives() {
    let node = TestNode::start(ENDPOINTS);
    let (mut client, _) = stream(&node, "/echo/0/secret").await;
    for wire in ["xhr", "xhr_streaming"] {
        let mut guess = node.connect().await;
        guess.post(&format!("/echo/1/secret/{wire}"), "").await;
        assert!(guess.response().await.body.contains("c[2010,"));
    }
    assert_eq!(send(&node, "/echo/0/secret2", r#"["x"]"#).await, 404);
    assert_eq!(send(&node, "/relay/0/secret", r#"["x"]"#).await, 404);
    assert_eq!(send(&node, "/echo/0/secret", r#"["mine"]"#).await, 204);
    assert_eq!(client.chunk().await.as_deref(), Some("a[\"mine\"]\n"));
}

#[tokio::test]
async fn polls_and_other_requests_follow_each_other_on_one_connection() {
    let node = TestNode::start(ENDPOINTS);
    let mut client = node.connect().await;
    client.post("/echo/0/a/xhr", "").await;
    assert_eq!(client.response().await.body, "o\n");
    for number in 0..5 {
        client.post("/echo/0/a/xhr", "").await;
        until(async || poll(&node, "/echo/0/a").await.starts_with("c[2010")).await;
        assert_eq!(
            send(&node, "/echo/0/a", &format!("[\"{number}\"]")).await,
            204
        );
        let response = client.response().await;
        assert_eq!(response.body, format!("a[\"{number}\"]\n"));
        assert_eq!(response.header("connection"), None);
        for name in ["date", "causeway-node", "cache-control", "content-type"] {
            assert!(response.header(name).is_some(), "{name}");
        }
        client.post("/echo/0/a/xhr_send", "[]").await;
        assert_eq!(client.response().await.status, 204);
    }
}

#[tokio::test]
async fn a_request_behind_a_waiting_poll_waits_and_the_end_behind_it_is_seen() {
    let node = TestNode::start(ENDPOINTS);
    open(&node, "/echo/0/a").await;
    let poll_and_more = "POST /echo/0/a/xhr HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n\
                         GET /live HTTP/1.1\r\nHost: node\r\n\r\n";
    let mut client = node.connect().await;
    client.send(poll_and_more).await;
    until(async || poll(&node, "/echo/0/a").await.starts_with("c[2010")).await;
    assert_eq!(send(&node, "/echo/0/a", r#"["x"]"#).await, 204);
    assert_eq!(client.response().await.body, "a[\"x\"]\n");
    assert_eq!(client.response().await.body, "alive\n");

    client.send(poll_and_more).await;
    until(async || poll(&node, "/echo/0/a").await.starts_with("c[2010")).await;
    drop(client);
    until(async || send(&node, "/echo/0/a", "[]").await == 404).await;
}

#[tokio::test]
async fn a_poll_that_is_the_last_on_its_connection_is_answered_and_closed() {
    let node = TestNode::start(ENDPOINTS);
    for head in [
        "HTTP/1.0\r\n",
        "HTTP/1.1\r\nHost: node\r\nConnection: close\r\n",
    ] {
        let session = format!("/echo/0/{}", head.len());
        open(&node, &session).await;
        let mut client = node.connect().await;
        client
            .send(format!(
                "POST {session}/xhr {head}Content-Length: 0\r\n\r\n"
            ))
            .await;
        until(async || poll(&node, &session).await.starts_with("c[2010")).await;
        assert_eq!(send(&node, &session, r#"["x"]"#).await, 204);
        let rest = String::from_utf8(client.rest().await).unwrap();
        assert!(rest.ends_with("\r\n\r\na[\"x\"]\n"), "{rest}");
        assert!(rest.to_ascii_lowercase().contains("connection: close\r\n"));
    }
}
