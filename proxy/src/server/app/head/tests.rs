use std::future::pending;

use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::*;
use crate::request::error;

const LIMITS: HeadLimits = HeadLimits {
    deadline: Duration::from_secs(10),
    idle: Duration::from_secs(75),
    size_max: 64,
};
const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn connection() -> (DuplexStream, Connection) {
    let (client, inner) = duplex(64 * 1024);
    (client, Connection::new(Box::new(inner)))
}

/// A head of exactly `length` bytes.
fn head_of(length: usize) -> Vec<u8> {
    let frame = b"GET / HTTP/1.1\r\nA: \r\n\r\n".len();
    format!(
        "GET / HTTP/1.1\r\nA: {}\r\n\r\n",
        "x".repeat(length - frame)
    )
    .into_bytes()
}

#[tokio::test]
async fn a_head_split_at_any_byte_is_read() {
    for cut in 1..HEAD.len() {
        let (mut client, mut client_side) = connection();
        let writer = async {
            client.write_all(&HEAD[..cut]).await.unwrap();
            tokio::task::yield_now().await;
            client
                .write_all(&[&HEAD[cut..], b"body"].concat())
                .await
                .unwrap();
        };
        let (head, ()) = tokio::join!(read(&mut client_side, LIMITS, pending()), writer);
        assert_eq!(head, Ok(HEAD.len()), "cut at {cut}");
        assert_eq!(&client_side.ahead[..], &[HEAD, b"body"].concat()[..]);
    }
}

#[tokio::test]
async fn line_ends_before_a_request_line_are_dropped() {
    let (mut client, mut client_side) = connection();
    client
        .write_all(&[b"\r\n\r\n", HEAD].concat())
        .await
        .unwrap();
    assert_eq!(
        read(&mut client_side, LIMITS, pending()).await,
        Ok(HEAD.len())
    );
    assert_eq!(&client_side.ahead[..], HEAD);
}

#[tokio::test]
async fn a_head_may_be_as_large_as_the_limit_and_not_a_byte_larger() {
    for (length, expected) in [
        (63, Ok(63)),
        (64, Ok(64)),
        (65, Err(HeadError::TooLarge)),
        (6000, Err(HeadError::TooLarge)),
    ] {
        let (mut client, mut client_side) = connection();
        client.write_all(&head_of(length)).await.unwrap();
        assert_eq!(
            read(&mut client_side, LIMITS, pending()).await,
            expected,
            "{length} bytes"
        );
    }
}

#[tokio::test]
async fn a_head_without_an_end_is_rejected_at_the_limit_and_not_read_further() {
    let (mut client, mut client_side) = connection();
    client.write_all(&[b'x'; 64]).await.unwrap();
    assert_eq!(
        read(&mut client_side, LIMITS, pending()).await,
        Err(HeadError::LineTooLong)
    );
    let (mut client, mut client_side) = connection();
    client.write_all(b"GET / HTTP/1.1\r\nA: ").await.unwrap();
    client.write_all(&[b'x'; 64]).await.unwrap();
    assert_eq!(
        read(&mut client_side, LIMITS, pending()).await,
        Err(HeadError::TooLarge)
    );
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_in_is_rejected_at_its_deadline_and_not_before() {
    let (mut client, mut client_side) = connection();
    let started = Instant::now();
    let drip = async {
        loop {
            client.write_all(b"x").await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let result = tokio::select! { result = read(&mut client_side, LIMITS, pending()) => result, () = drip => unreachable!() };
    assert_eq!(result, Err(HeadError::Timeout));
    assert_eq!(started.elapsed(), LIMITS.deadline);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_without_a_response_after_the_idle_timeout() {
    let (_client, mut client_side) = connection();
    let started = Instant::now();
    assert_eq!(
        read(&mut client_side, LIMITS, pending()).await,
        Err(HeadError::NoRequest)
    );
    assert_eq!(started.elapsed(), LIMITS.idle);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_when_the_edge_drains_but_a_head_under_way_is_read() {
    let (mut client, mut client_side) = connection();
    assert_eq!(
        read(&mut client_side, LIMITS, async {}).await,
        Err(HeadError::Drained)
    );
    client.write_all(HEAD).await.unwrap();
    assert_eq!(
        read(&mut client_side, LIMITS, async {}).await,
        Ok(HEAD.len())
    );
}

#[tokio::test]
async fn a_disconnect_before_a_head_and_one_within_it_are_different_errors() {
    let (client, mut client_side) = connection();
    drop(client);
    assert_eq!(
        read(&mut client_side, LIMITS, pending()).await,
        Err(HeadError::NoRequest)
    );
    let (mut client, mut client_side) = connection();
    client.write_all(b"GET /").await.unwrap();
    drop(client);
    assert_eq!(
        read(&mut client_side, LIMITS, pending()).await,
        Err(HeadError::Broken)
    );
}

/// The body length of a head without a request that switches.
fn body_length(head: &str) -> Result<BodyLength, Rejection> {
    parse_head(&mut head.as_bytes().to_vec(), 256).map(|head| head.body)
}

#[test]
fn the_body_length_comes_from_the_framing_headers() {
    for (headers, body) in [
        ("", BodyLength::Bytes(0)),
        ("Content-Length: 12\r\n", BodyLength::Bytes(12)),
        ("content-length: 0\r\n", BodyLength::Bytes(0)),
        ("Transfer-Encoding: Chunked\r\n", BodyLength::Chunked),
    ] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        assert_eq!(body_length(&head), Ok(body), "{headers:?}");
    }
}

#[test]
fn a_head_with_more_than_one_reading_is_rejected_with_the_status_of_its_rfc() {
    let heads: [(&str, u16); 43] = [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: b\rC: d\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: b\0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nÄ: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 400),
        ("GET http://u@a/ HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        ("GET / x HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775808\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: , chunked\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            501,
        ),
    ];
    for (head, status) in heads {
        let rejected =
            body_length(head).map_err(|rejection| error::error_response(rejection).status.as_u16());
        assert_eq!(rejected, Err(status), "{head:?}");
    }
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "A: b\r\n".repeat(256)
    );
    assert_eq!(body_length(&many), Err(Rejection::HeadTooLarge));
}

#[test]
fn a_later_minor_version_of_http_1_is_read_as_http_1_1() {
    let mut head = b"GET / HTTP/1.7\r\nHost: a\r\n\r\n".to_vec();
    parse_head(&mut head, 256).unwrap();
    assert!(head.starts_with(b"GET / HTTP/1.1\r\n"));
}

#[test]
fn an_upgrade_is_requested_only_by_both_headers_on_http_1_1() {
    let upgrade = |version: &str, headers: &str| {
        let head = format!("GET /ws?a=b HTTP/{version}\r\nHost: a:80\r\n{headers}\r\n");
        parse_head(&mut head.into_bytes(), 256).unwrap().upgrade
    };
    let expected = UpgradeRequest {
        host: Some("a:80".into()),
        target: "/ws?a=b".into(),
        protocols: vec!["websocket".into()],
    };
    assert_eq!(
        upgrade(
            "1.1",
            "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
        ),
        Some(expected)
    );
    assert_eq!(
        upgrade("1.0", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        None
    );
    assert_eq!(
        upgrade("1.1", "Connection: keep-alive\r\nUpgrade: websocket\r\n"),
        None
    );
    assert_eq!(upgrade("1.1", "Connection: Upgrade\r\n"), None);
    let several = upgrade("1.1", "Connection: upgrade\r\nUpgrade: h2c, websocket\r\n").unwrap();
    assert_eq!(several.protocols, ["h2c", "websocket"]);
}
