//! One table: what a client sends, and all that it gets until the connection ends.

use super::*;
use crate::protocol::disconnect::Disconnect;

const LIMIT: usize = 1000;

struct Case {
    name: &'static str,
    sent: Vec<u8>,
    received: Vec<(u8, Bytes)>,
}

fn case<const N: usize>(name: &'static str, sent: &[&[u8]], received: [(u8, Bytes); N]) -> Case {
    let (sent, received) = (sent.concat(), received.to_vec());
    Case {
        name,
        sent,
        received,
    }
}

/// A close frame without a reason, as a reply.
fn response(code: u16) -> (u8, Bytes) {
    (0x88, Bytes::copy_from_slice(&code.to_be_bytes()))
}

fn frame(first: u8, payload: &[u8]) -> (u8, Bytes) {
    (first, Bytes::copy_from_slice(payload))
}

/// Only the header of a frame, which claims a payload of `len` bytes.
fn header(first: u8, len: u64) -> Vec<u8> {
    let mut header = vec![first, 0x80 | 127];
    header.extend(len.to_be_bytes());
    header.extend([0; 4]);
    header
}

#[rustfmt::skip] // One case a line or two.
fn cases() -> Vec<Case> {
    let end = masked_close(1000);
    let protocol = close(Disconnect::PROTOCOL);
    let not_utf8 = close(Disconnect::NOT_UTF8);
    let too_large = close(Disconnect::TOO_LARGE);
    let full = vec![b'x'; LIMIT];
    let over = vec![b'x'; LIMIT + 1];
    vec![
        // Messages.
        case("text", &[&masked_text("a"), &end], [text("a"), response(1000)]),
        case("empty text", &[&masked_text(""), &end], [text(""), response(1000)]),
        case("binary", &[&masked(0x82, &[0, 0xff]), &end], [frame(0x82, &[0, 0xff]), response(1000)]),
        case("text beyond the basic plane", &[&masked_text("\u{1f600}\u{ffff}\u{0}"), &end], [text("\u{1f600}\u{ffff}\u{0}"), response(1000)]),
        case("many in one read", &[&masked_text("a"), &masked_text("b"), &masked(0x82, b"c"), &end], [text("a"), text("b"), frame(0x82, b"c"), response(1000)]),
        case("as large as allowed", &[&masked(0x81, &full), &end], [frame(0x81, &full), response(1000)]),
        // Fragments.
        case("fragments", &[&masked(0x01, b"a"), &masked(0x00, b"b"), &masked(0x80, b"c"), &end], [text("abc"), response(1000)]),
        case("empty fragments", &[&masked(0x02, b""), &masked(0x00, b""), &masked(0x80, b""), &end], [frame(0x82, b""), response(1000)]),
        case("a character cut by a fragment", &[&masked(0x01, &[0xc3]), &masked(0x80, &[0xa4]), &end], [text("ä"), response(1000)]),
        case("a ping between fragments", &[&masked(0x01, b"a"), &masked(0x89, b"p"), &masked(0x80, b"b"), &end], [frame(0x8a, b"p"), text("ab"), response(1000)]),
        case("a continuation of nothing", &[&masked(0x80, b"a")], [protocol.clone()]),
        case("a continuation of nothing, not final", &[&masked(0x00, b"a")], [protocol.clone()]),
        case("a message within a message", &[&masked(0x01, b"a"), &masked_text("b")], [protocol.clone()]),
        // Headers.
        case("no mask", &[&[0x81, 1, b'a']], [protocol.clone()]),
        case("RSV1", &[&masked(0xc1, b"a")], [protocol.clone()]),
        case("RSV2", &[&masked(0xa1, b"a")], [protocol.clone()]),
        case("RSV3", &[&masked(0x91, b"a")], [protocol.clone()]),
        case("RSV1 on a ping", &[&masked(0xc9, b"a")], [protocol.clone()]),
        case("reserved data opcode", &[&masked(0x83, b"a")], [protocol.clone()]),
        case("last reserved data opcode", &[&masked(0x87, b"a")], [protocol.clone()]),
        case("reserved control opcode", &[&masked(0x8b, b"a")], [protocol.clone()]),
        case("last reserved control opcode", &[&masked(0x8f, b"a")], [protocol.clone()]),
        case("a good message before a bad one", &[&masked_text("a"), &masked(0x83, b"")], [text("a"), protocol.clone()]),
        // Control frames.
        case("ping", &[&masked(0x89, b"p"), &end], [frame(0x8a, b"p"), response(1000)]),
        case("empty ping", &[&masked(0x89, b""), &end], [frame(0x8a, b""), response(1000)]),
        case("two pings", &[&masked(0x89, b"p"), &masked(0x89, b"q"), &end], [frame(0x8a, b"p"), frame(0x8a, b"q"), response(1000)]),
        case("the largest ping", &[&masked(0x89, &full[..125]), &end], [frame(0x8a, &full[..125]), response(1000)]),
        case("a ping too large", &[&masked(0x89, &full[..126])], [protocol.clone()]),
        case("a fragmented ping", &[&masked(0x09, b"p")], [protocol.clone()]),
        case("a fragmented close", &[&masked(0x08, &[0x03, 0xe8])], [protocol.clone()]),
        case("an unsolicited pong", &[&masked(0x8a, b"p"), &end], [response(1000)]),
        // Sizes.
        case("one byte too large", &[&masked(0x81, &over)], [too_large.clone()]),
        case("a claim that is too large", &[&header(0x81, LIMIT as u64 + 1)], [too_large.clone()]),
        case("a claim beyond any memory", &[&header(0x82, u64::MAX >> 1)], [too_large.clone()]),
        case("a length with its highest bit set", &[&header(0x82, u64::MAX)], [too_large.clone()]),
        case("fragments too large together", &[&masked(0x01, &full), &masked(0x80, b"x")], [too_large.clone()]),
        // Text.
        case("a byte that is never UTF-8", &[&masked(0x81, &[0xff])], [not_utf8.clone()]),
        case("an overlong form", &[&masked(0x81, &[0xc0, 0x80])], [not_utf8.clone()]),
        case("a surrogate", &[&masked(0x81, &[0xed, 0xa0, 0x80])], [not_utf8.clone()]),
        case("half a character at the end", &[&masked(0x81, &[b'a', 0xc3])], [not_utf8.clone()]),
        case("fragments that are not UTF-8", &[&masked(0x01, &[0xc3]), &masked(0x80, b"a")], [not_utf8.clone()]),
        // Closing.
        case("close", &[&end], [response(1000)]),
        case("close without a code", &[&masked(0x88, b"")], [frame(0x88, b"")]),
        case("close with a reason", &[&masked(0x88, b"\x0b\xb8bye")], [frame(0x88, b"\x0b\xb8bye")]),
        case("close with our own code", &[&masked_close(4999)], [response(4999)]),
        case("close with half a code", &[&masked(0x88, &[3])], [protocol.clone()]),
        case("close with a reason that is not UTF-8", &[&masked(0x88, &[0x03, 0xe8, 0xff])], [not_utf8.clone()]),
        case("data behind a close", &[&end, &masked_text("a")], [response(1000)]),
        case("a close within a message", &[&masked(0x01, b"a"), &end], [response(1000)]),
        // The end without a close frame.
        case("nothing at all", &[], []),
        case("half a header", &[&[0x81]], []),
        case("half a frame", &[&masked_text("abc")[..7]], []),
    ]
}

async fn received(node: &mut Node, endpoint: &Arc<Endpoint>, pieces: &[&[u8]]) -> Vec<(u8, Bytes)> {
    let mut peer = node.connect(endpoint, Transport::Websocket).await;
    for piece in pieces {
        peer.send(piece).await;
        // So that pieces arrive one by one, and the server is in every state between them.
        tokio::task::yield_now().await;
    }
    peer.0.shutdown().await.unwrap();
    peer.read_to_end().await
}

fn limited() -> Arc<Endpoint> {
    endpoint("/ws", |it| {
        it.mode = Mode::Echo;
        it.message_bytes_max = LIMIT;
    })
}

#[tokio::test]
async fn the_server_responds_to_frames_as_rfc_6455_requires() {
    let (mut node, endpoint) = (Node::start(), limited());
    for case in cases() {
        let received = received(&mut node, &endpoint, &[&case.sent]).await;
        assert_eq!(received, case.received, "{}", case.name);
    }
    node.all_served().await;
}

#[tokio::test]
async fn it_makes_no_difference_how_the_bytes_are_split() {
    let (mut node, endpoint) = (Node::start(), limited());
    for case in cases().into_iter().filter(|case| case.sent.len() < 200) {
        let pieces: Vec<&[u8]> = case.sent.chunks(1).collect();
        // Bytes after the end of a connection cannot be sent one by one.
        if case.name == "data behind a close" {
            continue;
        }
        let received = received(&mut node, &endpoint, &pieces).await;
        assert_eq!(received, case.received, "{}", case.name);
    }
    node.all_served().await;
}

#[tokio::test]
async fn a_reserved_close_code_is_a_protocol_error() {
    let (mut node, endpoint) = (Node::start(), limited());
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
        let frames = received(&mut node, &endpoint, &[&masked_close(code)]).await;
        assert_eq!(frames.len(), 1, "{code}");
        assert_eq!(&frames[0].1[..2], 1002u16.to_be_bytes(), "{code}");
    }
}

#[tokio::test]
async fn bytes_after_the_request_are_read_first() {
    let (mut node, endpoint) = (Node::start(), echo());
    let read_ahead = [masked_text("early"), masked_text("cut")[..5].to_vec()].concat();
    let mut peer = node
        .connect_with(&endpoint, Transport::Websocket, read_ahead.into())
        .await;
    peer.send(&masked_text("cut")[5..]).await;
    assert_eq!(peer.read_until("cut").await, [text("early"), text("cut")]);
}

#[tokio::test]
async fn sockjs_frames_carry_messages() {
    let mut node = Node::start();
    let endpoint = endpoint("/echo", |_| {});
    let mut peer = node.connect(&endpoint, Transport::SockjsWebsocket).await;
    for message in [
        r#"["a","b"]"#,
        "",
        "[]",
        r#""bare""#,
        r#"["\ud83d\ude00 \ud800"]"#,
    ] {
        peer.send(&masked_text(message)).await;
    }
    peer.send(&masked_text("[\"broken")).await;
    peer.0.shutdown().await.unwrap();
    assert_eq!(
        peer.read_to_end().await,
        [
            text("o"),
            text(r#"a["a"]"#),
            text(r#"a["b"]"#),
            text(r#"a["bare"]"#),
            text(r#"a["\ud83d\ude00 \ufffd"]"#),
            close(Disconnect::BROKEN_FRAMING),
        ],
    );
}
