//! HTTP/2 by hand, frame by frame, so that it can be wrong.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Context as _, Result};
use causeway_tests::harness::tls;
use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_MAX_HEADER_LIST_SIZE.
pub(crate) const STREAMS_MAX: u16 = 3;
pub(crate) const HEAD_MAX: u16 = 6;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// A response with this status.
    Status(u16),
    /// Its stream is reset, or the connection is ended.
    Refused,
}

/// A frame: type, flags, stream, payload.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .unwrap_or_default()
        .to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields as literals without Huffman and without an index (RFC 7541, 6.2.2): they may hold anything.
pub(crate) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541, 5.1).
fn integer(block: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        return block.push(value as u8);
    }
    block.push(127);
    value -= 127;
    while 128 <= value {
        block.push((value % 128) as u8 | 128);
        value /= 128;
    }
    block.push(value as u8);
}

/// Headers in one frame or several, and the body behind them if there is one.
pub(crate) fn request(block: &[u8], body: Option<&[u8]>) -> Vec<u8> {
    let end = if body.is_none() { END_STREAM } else { 0 };
    let mut pieces = block.chunks(16_000).peekable();
    let mut frames = Vec::new();
    let (mut kind, mut flags) = (HEADERS, end);
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        frames.extend(frame(kind, flags | last, 1, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    if let Some(body) = body {
        frames.extend(frame(DATA, END_STREAM, 1, body));
    }
    frames
}

/// A connection that sends `frames`: what becomes of its first stream.
pub(crate) async fn ask(
    clients: &Arc<ClientConfig>,
    stream: TcpStream,
    frames: &[u8],
) -> Result<Response> {
    let mut stream = tls::handshake(clients, stream).await?;
    let opening = [PREFACE, &frame(SETTINGS, 0, 0, &[]), frames].concat();
    // It may be refused before all of it is sent.
    stream.write_all(&opening).await.ok();
    stream.flush().await.ok();
    loop {
        let Some((kind, flags, of, payload)) = read_frame(&mut stream).await else {
            return Ok(Response::Refused);
        };
        match kind {
            SETTINGS if flags & ACK == 0 => {
                stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await.ok();
                stream.flush().await.ok();
            }
            HEADERS if of == 1 => {
                let status = status(&payload).context("a response without a status")?;
                if 200 <= status {
                    return Ok(Response::Status(status));
                }
            }
            RST_STREAM if of == 1 => return Ok(Response::Refused),
            GOAWAY => return Ok(Response::Refused),
            _ => {}
        }
    }
}

/// What the other side says of itself at the start (RFC 9113, 6.5): settings by their numbers.
pub(crate) async fn settings(
    clients: &Arc<ClientConfig>,
    stream: TcpStream,
) -> Result<HashMap<u16, u32>> {
    let mut stream = tls::handshake(clients, stream).await?;
    let opening = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    stream.write_all(&opening).await?;
    stream.flush().await?;
    let (_, _, _, payload) = read_frame(&mut stream).await.context("no settings")?;
    let (pairs, _) = payload.as_chunks::<6>();
    let pairs = pairs.iter().map(|[a, b, c, d, e, f]| {
        (
            u16::from_be_bytes([*a, *b]),
            u32::from_be_bytes([*c, *d, *e, *f]),
        )
    });
    Ok(pairs.collect())
}

async fn read_frame(stream: &mut TlsStream<TcpStream>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, of @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((kind, flags, u32::from_be_bytes(of) & 0x7fff_ffff, payload))
}

/// The `:status` at the start of the first block of a connection: by its place in the static table, or spelled out behind it.
fn status(block: &[u8]) -> Option<u16> {
    let [first, rest @ ..] = block else {
        return None;
    };
    match first {
        0x20..=0x3f => status(rest),
        0x88..=0x8e => Some([200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)]),
        // `:status` has the places 8 to 14, and a literal may refer to any of them.
        0x48..=0x4e | 0x08..=0x0e | 0x18..=0x1f => {
            let [length, text @ ..] = rest else {
                return None;
            };
            let text = text.get(..usize::from(length & 0x7f))?;
            let digits = if length & 0x80 == 0 {
                String::from_utf8(text.to_vec()).ok()?
            } else {
                digits(text)
            };
            digits.parse().ok()
        }
        _ => None,
    }
}

/// Digits in Huffman's code (RFC 7541, B): 0 to 2 have five bits, the others six.
fn digits(coded: &[u8]) -> String {
    let bits: Vec<u8> = coded
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1))
        .collect();
    let number = |bits: &[u8]| bits.iter().fold(0_u8, |number, bit| number << 1 | bit);
    let (mut text, mut at) = (String::new(), 0);
    while let Some(five) = bits.get(at..at + 5).map(number) {
        let six = bits.get(at..at + 6).map(number);
        let (digit, length) = match (five, six) {
            (0..=2, _) => (five, 5),
            (_, Some(six @ 25..=31)) => (six - 22, 6),
            _ => break,
        };
        text.push(char::from(b'0' + digit));
        at += length;
    }
    text
}
