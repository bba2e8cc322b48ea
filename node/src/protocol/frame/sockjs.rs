//! SockJS frames as text: what is written to a client and what is read from one.
//!
//! Owns no state. A *quoted* message is a JSON string in the escapes that every SockJS client
//! reads, made once for each publication however many sessions receive it.
//!
//! Invariant: what [`append_quoted`] writes is ASCII wherever an old browser or proxy is known to
//! break the code point, and [`decode_array`] reads it back to the same text.

use std::fmt;

use bytes::BufMut;
use bytes::BytesMut;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;

/// The frame that opens a session.
pub(crate) const OPEN: &str = "o";

/// The heartbeat frame.
pub(crate) const HEARTBEAT: &str = "h";

/// Why what a client sent cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFrame {
    /// Empty, or JSON that is not a list of messages: the response says what is expected.
    #[error("a json array of strings is expected")]
    NoPayload,
    /// Not JSON, or not UTF-8.
    #[error("not json in utf-8")]
    BrokenJson,
}

/// Appends `text` as a JSON string with the escapes of the SockJS protocol.
///
/// Beyond what JSON asks for, it escapes format characters that old JavaScript parsers drop and
/// everything outside the Basic Multilingual Plane (as two surrogates), in lower-case hexadecimal.
pub(crate) fn append_quoted(out: &mut BytesMut, text: &str) {
    out.reserve(text.len() + 2);
    out.put_u8(b'"');
    let mut copied = 0;
    for (at, character) in text.char_indices() {
        if !needs_escape(character) {
            continue;
        }
        out.put_slice(&text.as_bytes()[copied..at]);
        append_escape(out, character);
        copied = at + character.len_utf8();
    }
    out.put_slice(&text.as_bytes()[copied..]);
    out.put_u8(b'"');
}

/// Appends an `a[...]` frame of messages that are quoted already.
pub(crate) fn append_array<'a>(out: &mut BytesMut, quoted: impl IntoIterator<Item = &'a [u8]>) {
    out.put_slice(b"a[");
    for (index, message) in quoted.into_iter().enumerate() {
        if 0 < index {
            out.put_u8(b',');
        }
        out.put_slice(message);
    }
    out.put_u8(b']');
}

/// Appends a `c[code,"reason"]` frame: the last one of a session.
pub(crate) fn append_close(out: &mut BytesMut, code: u16, reason: &str) {
    out.put_slice(b"c[");
    out.put_slice(code.to_string().as_bytes());
    out.put_u8(b',');
    append_quoted(out, reason);
    out.put_u8(b']');
}

/// Appends a SockJS frame, which is free of control characters, as a string literal of a script.
///
/// `<` is escaped so that no message ends the script element around it.
pub(crate) fn append_literal(out: &mut BytesMut, frame: &[u8]) {
    out.reserve(frame.len() + 2);
    out.put_u8(b'"');
    for &byte in frame {
        match byte {
            b'"' | b'\\' => out.put_slice(&[b'\\', byte]),
            b'<' => append_unit(out, byte.into()),
            _ => out.put_u8(byte),
        }
    }
    out.put_u8(b'"');
}

/// Reads what a client sends on a WebSocket: an array of messages, one bare message, or nothing.
///
/// # Errors
///
/// [`BadFrame`]: the connection is to be closed.
pub(crate) fn decode_messages(body: &[u8]) -> Result<Vec<String>, BadFrame> {
    match body.trim_ascii_start().first() {
        None => Ok(Vec::new()),
        Some(b'[') => decode_array(body),
        Some(_) => decode::<Message>(body).map(|message| vec![message.0]),
    }
}

/// Reads the body of an `xhr_send`: a JSON array of messages.
///
/// JavaScript strings may hold half of a surrogate pair, which no UTF-8 text can: each becomes
/// U+FFFD, as in a browser's own encoder.
///
/// # Errors
///
/// [`BadFrame`]: the request is to be rejected; the session continues.
pub(crate) fn decode_array(body: &[u8]) -> Result<Vec<String>, BadFrame> {
    if body.trim_ascii().is_empty() {
        return Err(BadFrame::NoPayload);
    }
    let messages: Vec<Message> = decode(body)?;
    Ok(messages.into_iter().map(|message| message.0).collect())
}

fn decode<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, BadFrame> {
    // Checked first because messages are parsed as bytes below, where serde_json does not check UTF-8.
    let text = std::str::from_utf8(body).map_err(|_| BadFrame::BrokenJson)?;
    serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => BadFrame::NoPayload,
        _ => BadFrame::BrokenJson,
    })
}

fn needs_escape(character: char) -> bool {
    matches!(
        character,
        '"' | '\\'
            | '\0'..='\u{1f}'
            | '\u{200c}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fff0}'..
    )
}

fn append_escape(out: &mut BytesMut, character: char) {
    let short = match character {
        '"' | '\\' => character as u8,
        '\u{8}' => b'b',
        '\t' => b't',
        '\n' => b'n',
        '\u{c}' => b'f',
        '\r' => b'r',
        _ => {
            for unit in character.encode_utf16(&mut [0; 2]) {
                append_unit(out, *unit);
            }
            return;
        }
    };
    out.put_slice(&[b'\\', short]);
}

fn append_unit(out: &mut BytesMut, unit: u16) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.put_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.put_u8(DIGITS[usize::from((unit >> shift) & 0xf)]);
    }
}

/// A JavaScript string, its lone surrogates replaced.
struct Message(String);

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As bytes, serde_json gives a lone surrogate as three bytes instead of an error.
        deserializer.deserialize_bytes(MessageVisitor)
    }
}

struct MessageVisitor;

impl de::Visitor<'_> for MessageVisitor {
    type Value = Message;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Message, E> {
        String::from_utf8(bytes.to_vec())
            .or_else(|error| String::from_utf8(replace_surrogates(error.into_bytes())))
            .map(Message)
            .map_err(E::custom)
    }
}

/// Makes each encoded surrogate U+FFFD, which is three bytes long as well.
fn replace_surrogates(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while at + 2 < bytes.len() {
        if bytes[at] == 0xed && 0xa0 <= bytes[at + 1] {
            bytes[at..at + 3].copy_from_slice("\u{fffd}".as_bytes());
            at += 3;
        } else {
            at += 1;
        }
    }
    bytes
}

#[cfg(test)]
mod tests;
