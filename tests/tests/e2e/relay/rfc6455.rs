//! What RFC 6455 asks of a server, case by case, on raw bytes: an echo endpoint of a node directly, the same one through the
//! edge, and npm's ws in the same run as a yardstick.
//!
//! The node and the edge must do what the table says; where ws does something else, [`WS_DIFFERS`] says so. The output is a table.

use std::{fmt, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::{Buf as _, Bytes};
use causeway_tests::harness::{
    clients,
    edge::{self, Edge},
    http::Connection,
    node::{self, Node},
    process::Process,
    scratch::Scratch,
    websocket,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::tcp::OwnedWriteHalf,
    task::yield_now,
    time::timeout,
};

/// How long one case may take; the largest messages are 16 MiB, on a machine that may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// The largest message of each server.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Cases with less than this to send are also sent byte by byte.
const CHOPPED_BYTES_MAX: usize = 300;

const FIN: u8 = 0x80;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

const NORMAL: u16 = 1000;
const PROTOCOL: u16 = 1002;
const NOT_UTF8: u16 = 1007;
const TOO_LARGE: u16 = 1009;

/// Where ws behaves otherwise than the table says, and why neither is wrong.
const WS_DIFFERS: &[(&str, &str)] = &[
    (
        "code 1014",
        "registered since; only gateways send it, to clients",
    ),
    (
        "a bad fragment of a message that never ends",
        "ws looks at text when it is complete",
    ),
    ("a second fragment that makes the first one bad", "likewise"),
    ("a bad fragment, a ping between", "likewise"),
];

/// What a server sent: a frame, whose first byte has FIN, RSV and opcode, or a close frame, of which only the code matters.
#[derive(Clone, PartialEq, Eq)]
enum Heard {
    Frame(u8, Bytes),
    Close(Option<u16>),
    /// The connection was reset instead of closed.
    Reset,
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(first, payload) => {
                let start = String::from_utf8_lossy(&payload[..payload.len().min(12)]).into_owned();
                write!(f, "{first:02x}:{}:{start:?}", payload.len())
            }
            Self::Close(Some(code)) => write!(f, "close {code}"),
            Self::Close(None) => f.write_str("close"),
            Self::Reset => f.write_str("reset"),
        }
    }
}

/// What a client sends on a new connection, and all that it hears until the server has closed it.
struct Case {
    /// Of RFC 6455.
    section: &'static str,
    name: String,
    sent: Vec<u8>,
    heard: Vec<Heard>,
    /// Whether the client talks on behind its close frame. Nobody reads that, so the connection may end with a reset.
    talks_on: bool,
}

impl Case {
    fn talking_on(self) -> Self {
        Self {
            talks_on: true,
            ..self
        }
    }

    /// Whether it makes sense to send it byte by byte too.
    fn is_chopped(&self) -> bool {
        self.sent.len() < CHOPPED_BYTES_MAX && !self.talks_on
    }
}

fn case(
    section: &'static str,
    name: impl Into<String>,
    sent: &[&[u8]],
    heard: impl Into<Vec<Heard>>,
) -> Case {
    Case {
        section,
        name: name.into(),
        sent: sent.concat(),
        heard: heard.into(),
        talks_on: false,
    }
}

/// A frame as a client sends it, with the length in as few bytes as possible.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, payload.len() as u64);
    let mask = mask();
    let masked = payload.iter().zip(mask.iter().cycle());
    frame.extend(masked.map(|(byte, mask)| byte ^ mask));
    frame
}

/// The header of a frame that claims a payload of `length` bytes.
fn header(first: u8, length: u64) -> Vec<u8> {
    let mut header = vec![first];
    match length {
        0..126 => header.push(0x80 | length as u8),
        126..65_536 => {
            header.push(0x80 | 126);
            header.extend((length as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend(length.to_be_bytes());
        }
    }
    header.extend(mask());
    header
}

const fn mask() -> [u8; 4] {
    [0x37, 0xfa, 0x21, 0x3d]
}

fn text(text: impl AsRef<[u8]>) -> Vec<u8> {
    frame(FIN | TEXT, text.as_ref())
}

fn close(code: u16) -> Vec<u8> {
    frame(FIN | CLOSE, &code.to_be_bytes())
}

fn heard(first: u8, payload: impl AsRef<[u8]>) -> Heard {
    Heard::Frame(first, Bytes::copy_from_slice(payload.as_ref()))
}

fn echoed(text: impl AsRef<[u8]>) -> Heard {
    heard(FIN | TEXT, text)
}

fn ended() -> Heard {
    Heard::Close(Some(NORMAL))
}

fn failed(code: u16) -> Vec<Heard> {
    vec![Heard::Close(Some(code))]
}

fn cases() -> Vec<Case> {
    let mut cases = framing();
    cases.extend(fragmentation());
    cases.extend(control_frames());
    cases.extend(closing());
    cases.extend(close_codes());
    cases.extend(utf8());
    cases.extend(sizes());
    cases
}

#[rustfmt::skip] // One case a line or two.
fn framing() -> Vec<Case> {
    let end = close(NORMAL);
    let mut cases = vec![
        case("5.1", "a frame without a mask", &[&[0x81, 2, b'h', b'i']], failed(PROTOCOL)),
        case("5.1", "a ping without a mask", &[&[0x89, 0]], failed(PROTOCOL)),
        case("5.2", "a message", &[&text("hi"), &end], [echoed("hi"), ended()]),
        case("5.2", "an empty message", &[&text(""), &end], [echoed(""), ended()]),
        case("5.2", "binary", &[&frame(0x82, &[0, 0xff, 0xc0]), &end], [heard(0x82, [0, 0xff, 0xc0]), ended()]),
        case("5.2", "three messages in one segment", &[&text("a"), &frame(0x82, b"b"), &text("c"), &end],
            [echoed("a"), heard(0x82, "b"), echoed("c"), ended()]),
        case("5.2", "a good message, then a bad one", &[&text("a"), &frame(0x83, b"")], [vec![echoed("a")], failed(PROTOCOL)].concat()),
        case("5.2", "a length in more bytes than it needs", &[&[0x81, 0x80 | 126, 0, 1], &mask(), &[b'a' ^ mask()[0]], &end], [echoed("a"), ended()]),
        case("5.2", "a length with its highest bit set", &[&header(0x82, u64::MAX)], failed(TOO_LARGE)),
        case("5.2", "the largest length that there is", &[&header(0x82, u64::MAX >> 1)], failed(TOO_LARGE)),
    ];
    for rsv in 1..8_u8 {
        let name = format!("reserved bits {rsv:03b}");
        cases.push(case("5.2", &name, &[&frame(FIN | rsv << 4 | TEXT, b"a")], failed(PROTOCOL)));
        cases.push(case("5.2", format!("{name} on a ping"), &[&frame(FIN | rsv << 4 | PING, b"a")], failed(PROTOCOL)));
    }
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        let name = format!("reserved opcode {opcode:x}");
        cases.push(case("5.2", &name, &[&frame(FIN | opcode, b"a")], failed(PROTOCOL)));
        cases.push(case("5.2", format!("{name} and a message"), &[&frame(FIN | opcode, b""), &text("a")], failed(PROTOCOL)));
    }
    cases
}

#[rustfmt::skip]
fn fragmentation() -> Vec<Case> {
    let end = close(NORMAL);
    let hundred: Vec<u8> = (0..100_u8).map(|number| b'a' + number % 26).collect();
    let last = hundred.len() - 1;
    let one_by_one: Vec<u8> = hundred.iter().enumerate().flat_map(|(at, byte)| {
        let opcode = if at == 0 { TEXT } else { 0 };
        frame(if at == last { FIN | opcode } else { opcode }, &[*byte])
    }).collect();
    vec![
        case("5.4", "two fragments", &[&frame(TEXT, b"a"), &frame(FIN, b"b"), &end], [echoed("ab"), ended()]),
        case("5.4", "two fragments of binary", &[&frame(BINARY, b"a"), &frame(FIN, b"b"), &end], [heard(0x82, "ab"), ended()]),
        case("5.4", "a hundred fragments of one byte", &[&one_by_one, &end], [echoed(&hundred), ended()]),
        case("5.4", "empty fragments", &[&frame(TEXT, b""), &frame(0, b""), &frame(FIN, b""), &end], [echoed(""), ended()]),
        case("5.4", "empty fragments around a full one", &[&frame(TEXT, b""), &frame(0, b"a"), &frame(FIN, b""), &end], [echoed("a"), ended()]),
        case("5.4", "pings between fragments", &[&frame(TEXT, b"a"), &frame(0x89, b"1"), &frame(0, b"b"), &frame(0x89, b"2"), &frame(FIN, b"c"), &end],
            [heard(0x8a, "1"), heard(0x8a, "2"), echoed("abc"), ended()]),
        case("5.4", "a pong between fragments", &[&frame(TEXT, b"a"), &frame(0x8a, b"1"), &frame(FIN, b"b"), &end], [echoed("ab"), ended()]),
        case("5.4", "a ping between fragments is answered before the message ends", &[&frame(TEXT, b"a"), &frame(0x89, b"1"), &end], [heard(0x8a, "1"), ended()]),
        case("5.4", "a close between fragments", &[&frame(TEXT, b"a"), &end], [ended()]),
        case("5.4", "two fragmented messages", &[&frame(TEXT, b"a"), &frame(FIN, b"b"), &frame(BINARY, b"c"), &frame(FIN, b"d"), &end],
            [echoed("ab"), heard(0x82, "cd"), ended()]),
        case("5.4", "a continuation of nothing", &[&frame(FIN, b"a")], failed(PROTOCOL)),
        case("5.4", "a continuation of nothing, with more to come", &[&frame(0, b"a")], failed(PROTOCOL)),
        case("5.4", "a continuation after a whole message", &[&text("a"), &frame(FIN, b"b")], [vec![echoed("a")], failed(PROTOCOL)].concat()),
        case("5.4", "a continuation after the last fragment", &[&frame(TEXT, b"a"), &frame(FIN, b"b"), &frame(FIN, b"c")],
            [vec![echoed("ab")], failed(PROTOCOL)].concat()),
        case("5.4", "a message within a message", &[&frame(TEXT, b"a"), &text("b")], failed(PROTOCOL)),
        case("5.4", "a fragment of another message", &[&frame(TEXT, b"a"), &frame(BINARY, b"b")], failed(PROTOCOL)),
        case("5.4", "a fragment with a reserved bit", &[&frame(TEXT, b"a"), &frame(FIN | 0x40, b"b")], failed(PROTOCOL)),
    ]
}

#[rustfmt::skip]
fn control_frames() -> Vec<Case> {
    let end = close(NORMAL);
    let longest = [b'x'; 125];
    let mut cases = vec![
        case("5.5", "a fragmented ping", &[&frame(PING, b"a"), &frame(FIN, b"b")], failed(PROTOCOL)),
        case("5.5", "a fragmented pong", &[&frame(PONG, b"a")], failed(PROTOCOL)),
        case("5.5", "a fragmented close", &[&frame(CLOSE, &NORMAL.to_be_bytes())], failed(PROTOCOL)),
        case("5.5", "a ping of 126 bytes", &[&frame(0x89, &[b'x'; 126])], failed(PROTOCOL)),
        case("5.5", "a pong of 126 bytes", &[&frame(0x8a, &[b'x'; 126])], failed(PROTOCOL)),
        case("5.5", "a close of 126 bytes", &[&frame(0x88, &[[3, 0xe8].as_slice(), &[b'x'; 124]].concat())], failed(PROTOCOL)),
        case("5.5.2", "a ping that is not text", &[&frame(0x89, &[0, 0xff, 0xfe]), &end], [heard(0x8a, [0, 0xff, 0xfe]), ended()]),
        case("5.5.3", "a pong that nobody asked for", &[&frame(0x8a, b"a"), &end], [ended()]),
        case("5.5.3", "a pong, then a ping", &[&frame(0x8a, b"a"), &frame(0x89, b"b"), &end], [heard(0x8a, "b"), ended()]),
    ];
    for payload in [&b""[..], b"a", &longest] {
        let name = format!("a ping of {}", payload.len());
        cases.push(case("5.5.2", name, &[&frame(0x89, payload), &end], [heard(0x8a, payload), ended()]));
    }
    let pings: Vec<u8> = (0..10_u8).flat_map(|number| frame(0x89, &[b'0' + number])).collect();
    let pongs = (0..10_u8).map(|number| heard(0x8a, [b'0' + number]));
    cases.push(case("5.5.3", "ten pings", &[&pings, &end], pongs.chain([ended()]).collect::<Vec<_>>()));
    cases
}

#[rustfmt::skip]
fn closing() -> Vec<Case> {
    let end = close(NORMAL);
    let with_reason = |reason: &[u8]| frame(0x88, &[&NORMAL.to_be_bytes(), reason].concat());
    vec![
        case("5.5.1", "close", &[&end], [ended()]),
        case("5.5.1", "a close without a code", &[&frame(0x88, b"")], [Heard::Close(None)]),
        case("5.5.1", "half a code", &[&frame(0x88, &[3])], failed(PROTOCOL)),
        case("5.5.1", "a reason", &[&with_reason(b"bye")], [ended()]),
        case("5.5.1", "the longest reason", &[&with_reason(&[b'x'; 123])], [ended()]),
        case("5.5.1", "a reason that is not UTF-8", &[&with_reason(&[0xce, 0xba, 0xe1, 0xbd])], failed(NOT_UTF8)),
        case("5.5.1", "a message after it", &[&end, &text("a")], [ended()]).talking_on(),
        case("5.5.1", "a ping after it", &[&end, &frame(0x89, b"a")], [ended()]).talking_on(),
        case("5.5.1", "a second close", &[&end, &close(1001)], [ended()]).talking_on(),
        case("5.5.1", "rubbish after it", &[&end, &[0xff; 100]], [ended()]).talking_on(),
        case("5.5.1", "a message before it", &[&text("a"), &end], [echoed("a"), ended()]),
    ]
}

fn close_codes() -> Vec<Case> {
    // 1012 and 1013 were registered after the RFC, as its section 11.7 provides for.
    let good = [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999,
    ];
    let bad = [
        0, 1, 999, 1004, 1005, 1006, 1014, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
    ];
    let good = good.map(|code| {
        let heard = [Heard::Close(Some(code))];
        case("7.4", format!("code {code}"), &[&close(code)], heard)
    });
    let bad = bad.map(|code| {
        case(
            "7.4",
            format!("code {code}"),
            &[&close(code)],
            failed(PROTOCOL),
        )
    });
    good.into_iter().chain(bad).collect()
}

#[rustfmt::skip]
fn utf8() -> Vec<Case> {
    let end = close(NORMAL);
    let mut cases = vec![
        case("8.1", "a character in every split", &[
            &frame(TEXT, &[0xf0]), &frame(0, &[0x9f]), &frame(0, &[0x98]), &frame(FIN, &[0x80]), &end,
        ], [echoed("\u{1f600}"), ended()]),
        case("8.1", "half a character at the end", &[&text([b'a', 0xc3])], failed(NOT_UTF8)),
        case("8.1", "half a character in the last fragment", &[&frame(TEXT, b"a"), &frame(FIN, &[0xc3])], failed(NOT_UTF8)),
        case("8.1", "half a character, and another one", &[&frame(TEXT, &[0xc3]), &frame(FIN, b"a")], failed(NOT_UTF8)),
        case("8.1", "binary is not looked at", &[&frame(0x82, &[0xff, 0xc0, 0x80]), &end], [heard(0x82, [0xff, 0xc0, 0x80]), ended()]),
        case("8.1", "a bad message after a good one", &[&text("a"), &text([0xff])], [vec![echoed("a")], failed(NOT_UTF8)].concat()),
        // As it arrives: the message is not complete when it is refused.
        case("8.1", "a bad fragment of a message that never ends", &[&frame(TEXT, &[b'a', 0xff])], failed(NOT_UTF8)),
        case("8.1", "a second fragment that makes the first one bad", &[&frame(TEXT, &[0xf0, 0x9f]), &frame(0, b"a")], failed(NOT_UTF8)),
        case("8.1", "a bad fragment, a ping between", &[&frame(TEXT, b"a"), &frame(0x89, b"p"), &frame(0, &[0xed, 0xa0, 0x80])],
            [vec![heard(0x8a, "p")], failed(NOT_UTF8)].concat()),
    ];
    for good in ['\0', '\u{7f}', '\u{80}', '\u{7ff}', '\u{800}', '\u{d7ff}', '\u{e000}', '\u{fffd}', '\u{fffe}', '\u{ffff}', '\u{10000}', '\u{10ffff}'] {
        let good = String::from(good);
        cases.push(case("8.1", format!("{}", good.escape_unicode()), &[&text(&good), &end], [echoed(&good), ended()]));
    }
    let bad: [(&str, &[u8]); 15] = [
        ("a continuation byte alone", &[0x80]),
        ("the last continuation byte alone", &[0xbf]),
        ("a lead byte, then ASCII", &[0xc3, b'a']),
        ("three of four bytes, then ASCII", &[0xf0, 0x9f, 0x98, b'a']),
        ("an overlong slash in two bytes", &[0xc0, 0xaf]),
        ("an overlong slash in three bytes", &[0xe0, 0x80, 0xaf]),
        ("an overlong slash in four bytes", &[0xf0, 0x80, 0x80, 0xaf]),
        ("the longest overlong form of two bytes", &[0xc1, 0xbf]),
        ("the longest overlong form of three bytes", &[0xe0, 0x9f, 0xbf]),
        ("the longest overlong form of four bytes", &[0xf0, 0x8f, 0xbf, 0xbf]),
        ("the first surrogate", &[0xed, 0xa0, 0x80]),
        ("the last surrogate", &[0xed, 0xbf, 0xbf]),
        ("a pair of surrogates", &[0xed, 0xa0, 0xbd, 0xed, 0xb8, 0x80]),
        ("the first code point that is none", &[0xf4, 0x90, 0x80, 0x80]),
        ("a byte that is never there", &[0xfe]),
    ];
    for (name, bytes) in bad {
        cases.push(case("8.1", name, &[&text(bytes)], failed(NOT_UTF8)));
        cases.push(case("8.1", format!("{name}, within text"), &[&text([b"ab", bytes, b"cd"].concat())], failed(NOT_UTF8)));
    }
    cases
}

#[rustfmt::skip]
fn sizes() -> Vec<Case> {
    let end = close(NORMAL);
    let mut cases = Vec::new();
    for size in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537, 1 << 20, MESSAGE_BYTES_MAX] {
        let payload: Vec<u8> = (0..size).map(|at| b'a' + (at % 26) as u8).collect();
        cases.push(case("5.2", format!("text of {size}"), &[&text(&payload), &end], [echoed(&payload), ended()]));
        cases.push(case("5.2", format!("binary of {size}"), &[&frame(0x82, &payload), &end], [heard(0x82, &payload), ended()]));
    }
    let largest = vec![b'x'; MESSAGE_BYTES_MAX];
    let pieces = largest.chunks(64 << 10);
    let count = pieces.len();
    let fragmented: Vec<u8> = pieces.enumerate().flat_map(|(at, piece)| {
        let opcode = if at == 0 { BINARY } else { 0 };
        frame(if at + 1 == count { FIN | opcode } else { opcode }, piece)
    }).collect();
    cases.push(case("5.4", "the largest message in fragments", &[&fragmented, &end], [heard(0x82, &largest), ended()]));
    cases.push(case("7.4.1", "a claim of one byte more", &[&header(0x82, MESSAGE_BYTES_MAX as u64 + 1)], failed(TOO_LARGE)));
    cases.push(case("7.4.1", "one byte more in a second fragment", &[&frame(BINARY, &largest), &frame(FIN, b"x")], failed(TOO_LARGE)));
    cases.push(case("7.4.1", "a small message after the largest", &[&frame(0x82, &largest), &text("a"), &end],
        [heard(0x82, &largest), echoed("a"), ended()]));
    cases
}

/// A server that the cases are run on.
#[derive(Clone, Copy)]
struct Server {
    address: SocketAddr,
    path: &'static str,
    /// Whether it closes the TCP connection by itself in every case (section 7.1.1). ws waits for the client after an error.
    closes: bool,
}

impl Server {
    /// All that it sends in response to `sent`, which goes out at once or byte by byte.
    async fn hear(self, sent: &[u8], chopped: bool) -> Result<Vec<Heard>> {
        let mut connection = Connection::open(self.address).await?;
        let head = websocket::handshake(self.address, self.path, &[]);
        connection.send(head).await?;
        let response = connection.head().await?;
        ensure!(response.status == 101, "{response:?}");
        let (stream, unread) = connection.into_parts();
        let (mut reading, mut writing) = stream.into_split();
        let talk = async {
            // The writing half stays open until all has been read: dropping it would tell the server that the client is done.
            let ((), heard) = tokio::join!(self.send(&mut writing, sent, chopped), async {
                let mut received = unread;
                loop {
                    match reading.read_buf(&mut received).await {
                        Ok(0) => break split(received.into()),
                        Ok(_) => {}
                        Err(_) => {
                            let mut heard = split(received.into())?;
                            heard.push(Heard::Reset);
                            break Ok(heard);
                        }
                    }
                }
            });
            heard
        };
        timeout(DEADLINE, talk).await.context("it does not close")?
    }

    /// A server that has refused something need not take the rest.
    async fn send(self, writing: &mut OwnedWriteHalf, sent: &[u8], chopped: bool) {
        for piece in sent.chunks(if chopped { 1 } else { sent.len() }) {
            if writing.write_all(piece).await.is_err() {
                return;
            }
            yield_now().await;
        }
        if !self.closes {
            writing.shutdown().await.ok();
        }
    }
}

/// Takes what a server sent apart: section 5.1 (no mask) and 5.2 (lengths in as few bytes as possible) hold for all of it.
fn split(mut received: Bytes) -> Result<Vec<Heard>> {
    let mut heard = Vec::new();
    while !received.is_empty() {
        ensure!(2 <= received.len(), "half a header");
        let (first, second) = (received.get_u8(), received.get_u8());
        let length = match second {
            126 => {
                let length = usize::from(received.try_get_u16()?);
                ensure!(125 < length, "{length} fits in one byte");
                length
            }
            127 => {
                let length = usize::try_from(received.try_get_u64()?)?;
                ensure!(65_535 < length, "{length} fits in two bytes");
                length
            }
            length @ 0..126 => usize::from(length),
            _ => anyhow::bail!("a masked frame"),
        };
        ensure!(length <= received.len(), "half a frame");
        let payload = received.split_to(length);
        heard.push(match first & 0xf {
            CLOSE => Heard::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code))),
            _ => Heard::Frame(first, payload),
        });
    }
    Ok(heard)
}

/// The three servers.
struct Scene {
    node: Node,
    edge: Edge,
    ws: (Process, SocketAddr),
    _scratch: Scratch,
}

impl Scene {
    async fn start() -> Result<Self> {
        let scratch = Scratch::new("rfc6455")?;
        let endpoint = json!({ "path": "/raw", "protocol": "websocket", "mode": "echo", "message_size": "16MiB" });
        let settings = node::settings().with("endpoints", json!([endpoint]));
        let node = Node::start("n1", settings, scratch.path()).await?;
        let edge = Edge::start(&edge::settings(&[("n1", node.address)]), scratch.path()).await?;
        edge.backend_in_state("n1", "up").await?;
        let orders = json!({ "app": "raw", "name": "ws", "messageBytesMax": MESSAGE_BYTES_MAX });
        let command = clients::command("apps/server.mjs", &orders)?;
        let mut ws = Process::spawn("ws", command, scratch.path())?;
        let address = ws.listening("app").await?;
        Ok(Self {
            node,
            edge,
            ws: (ws, address),
            _scratch: scratch,
        })
    }

    /// Node, edge and ws.
    fn servers(&self) -> [Server; 3] {
        let server = |address, closes| Server {
            address,
            path: "/raw",
            closes,
        };
        [
            server(self.node.address, true),
            server(self.edge.address, true),
            server(self.ws.1, false),
        ]
    }
}

#[tokio::test]
async fn each_case_is_answered_as_its_section_says() -> Result<()> {
    let scene = Scene::start().await?;
    let [node, edge, ws] = scene.servers();
    let (mut wrong, mut differs) = (Vec::new(), Vec::new());
    println!("section  node  edge  ws    case");
    for case in cases() {
        let ways: &[bool] = if case.is_chopped() {
            &[false, true]
        } else {
            &[false]
        };
        let mut row = [true; 3];
        for &chopped in ways {
            let heard = tokio::join!(
                node.hear(&case.sent, chopped),
                edge.hear(&case.sent, chopped),
                ws.hear(&case.sent, chopped)
            );
            for (column, heard) in [heard.0, heard.1, heard.2].into_iter().enumerate() {
                let name = ["node", "edge", "ws"][column];
                let mut heard = heard.with_context(|| format!("{name}: {}", case.name))?;
                if case.talks_on && heard.last() == Some(&Heard::Reset) {
                    heard.pop();
                }
                if heard != case.heard {
                    row[column] = false;
                    let what = format!(
                        "{name}, {} {}: {heard:?} instead of {:?}",
                        case.section, case.name, case.heard
                    );
                    if name == "ws" {
                        println!("{what}");
                    } else {
                        wrong.push(what);
                    }
                }
            }
        }
        if !row[2] {
            differs.push(case.name.clone());
        }
        let [node, edge, ws] = row.map(|right| if right { "ok" } else { "-" });
        println!(
            "{:7}  {node:4}  {edge:4}  {ws:4}  {}",
            case.section, case.name
        );
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let known: Vec<&str> = WS_DIFFERS.iter().map(|(name, _)| *name).collect();
    assert_eq!(differs, known);
    Ok(())
}

#[tokio::test]
async fn extensions_and_subprotocols_are_declined_and_not_used() -> Result<()> {
    let scene = Scene::start().await?;
    for server in scene.servers() {
        let mut connection = Connection::open(server.address).await?;
        let offers = [
            (
                "Sec-WebSocket-Extensions",
                "permessage-deflate; client_max_window_bits, x-webkit-deflate-frame",
            ),
            ("Sec-WebSocket-Extensions", "permessage-bzip2"),
            ("Sec-WebSocket-Protocol", "chat, superchat"),
        ];
        let head = websocket::handshake(server.address, server.path, &offers);
        connection.send(head).await?;
        let response = connection.head().await?;
        assert_eq!(response.status, 101);
        assert_eq!(
            response.header("sec-websocket-extensions"),
            None,
            "section 9.1"
        );
        let accept = response.header("sec-websocket-accept");
        assert_eq!(accept, Some(websocket::ACCEPT), "section 4.2.2");
    }
    Ok(())
}
