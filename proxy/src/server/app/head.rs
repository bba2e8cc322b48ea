//! Reads and parses one request head: complete within one deadline and one size limit, or rejected.
//!
//! Invariant: a head that passes [`parse_head`] has only one reading (see [`strict`]).

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::timeout;

use crate::downstream::Connection;
use crate::http::fields;
use crate::http::http1::{BodyLength, HEADERS_MOST, Parsed, RequestLine, find_end};
use crate::request::error::Rejection;
use crate::request::forward::may_upgrade;
use crate::server::app::strict;

/// The limits of a head, in time and size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    /// From the first byte of the head to its last.
    pub(crate) deadline: Duration,
    /// Before the first byte.
    pub(crate) idle: Duration,
    pub(crate) size_max: usize,
}

/// Why no head could be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    /// The edge drains before there is a request: what becomes of the connection is said apart.
    #[error("the edge drains")]
    Drained,
    /// The client disconnected, or was idle for too long: there is no request to respond to.
    #[error("the client sent no request")]
    NoRequest,
    /// The connection ended within a head.
    #[error("the client disconnected within a request head")]
    Broken,
    #[error("the head was not complete within its deadline")]
    Timeout,
    #[error("the head is larger than the limit")]
    TooLarge,
    #[error("the request line alone is larger than the limit")]
    LineTooLong,
}

/// Waits for a head and returns its length, counted from the start of `client.ahead`.
///
/// `idle_ended` ends the wait for the first byte only.
///
/// # Cancel safety
///
/// Nothing is lost: what was read is in `client.ahead`.
pub(crate) async fn read(
    client: &mut Connection,
    limits: HeadLimits,
    idle_ended: impl Future<Output = ()>,
) -> Result<usize, HeadError> {
    skip_empty_lines(&mut client.ahead);
    if client.ahead.is_empty() {
        let first = tokio::select! {
            biased;
            first = timeout(limits.idle, poll_fn(|cx| client.poll_read_ahead(cx))) => first,
            () = idle_ended => return Err(HeadError::Drained),
        };
        match first {
            Ok(Ok(count)) if count > 0 => {}
            _ => return Err(HeadError::NoRequest),
        }
    }
    match timeout(limits.deadline, read_rest(client, limits.size_max)).await {
        Ok(head) => head,
        Err(_) => Err(HeadError::Timeout),
    }
}

async fn read_rest(client: &mut Connection, size_max: usize) -> Result<usize, HeadError> {
    let mut searched = 0;
    loop {
        if searched == 0 {
            skip_empty_lines(&mut client.ahead);
        }
        match find_end(&client.ahead, searched) {
            Some(end) if end <= size_max => return Ok(end),
            Some(_) => return Err(too_large(&client.ahead, size_max)),
            None if size_max <= client.ahead.len() => {
                return Err(too_large(&client.ahead, size_max));
            }
            None => searched = client.ahead.len().saturating_sub(2),
        }
        match poll_fn(|cx| client.poll_read_ahead(cx)).await {
            Ok(0) => return Err(HeadError::Broken),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(HeadError::Broken),
        }
    }
}

/// Whether the whole head or already its first line is larger than `size_max`.
fn too_large(head: &[u8], size_max: usize) -> HeadError {
    match head[..size_max.min(head.len())].contains(&b'\n') {
        true => HeadError::TooLarge,
        false => HeadError::LineTooLong,
    }
}

/// Drops line ends before a request line: some clients send one after a body (RFC 9112, 2.2).
fn skip_empty_lines(bytes: &mut BytesMut) {
    let count = bytes
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    if count > 0 {
        let _ = bytes.split_to(count);
    }
}

/// A parsed head, and what it says about the bytes after it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CheckedHead {
    pub(crate) head: Parsed<RequestLine>,
    pub(crate) body: BodyLength,
    pub(crate) upgrade: Option<UpgradeRequest>,
}

/// What a request to switch protocols asks for, as far as routing needs it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UpgradeRequest {
    pub(crate) host: Option<String>,
    pub(crate) target: String,
    /// The protocols that the client offers, in order of preference.
    pub(crate) protocols: Vec<String>,
}

/// Parses and checks a complete head.
///
/// # Errors
///
/// The error response, if it is not a request with only one reading.
pub(crate) fn parse_head(head: &mut [u8], headers_max: usize) -> Result<CheckedHead, Rejection> {
    strict::normalize_version(head);
    let head = &*head;
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MOST];
    let headers = &mut headers[..headers_max.min(HEADERS_MOST)];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, headers) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Rejection::Malformed("an empty line within the head")),
        Err(error) => return Err(strict::rejection(head, error)),
    }
    let body = strict::check(head, &request)?;
    let named = |name: &'static str| {
        request
            .headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
    };
    // As in `Fields`: a value that is not ASCII is not a list of tokens.
    let text = |name| named(name).filter_map(|header| fields::text(header.value));
    let tokens = |name| {
        text(name)
            .flat_map(|value| value.split(','))
            .map(|token| token.trim().to_ascii_lowercase())
    };
    let asks = request.version == Some(1) && tokens("connection").any(|token| token == "upgrade");
    let method = request.method.unwrap_or_default();
    let protocols: Vec<String> = tokens("upgrade")
        .filter(|token| !token.is_empty() && may_upgrade(method, token))
        .collect();
    let upgrade = (asks && !protocols.is_empty()).then(|| UpgradeRequest {
        host: text("host").next().map(str::to_owned),
        target: request.path.unwrap_or("/").to_owned(),
        protocols,
    });
    let parsed = Parsed::request(&request, head).ok_or(Rejection::Malformed("no request line"))?;
    Ok(CheckedHead {
        head: parsed,
        body,
        upgrade,
    })
}

/// The target and the `Host` of a complete head; `None` if it is not HTTP, or has several hosts (RFC 9112, 3.2).
pub(crate) fn target(head: &[u8]) -> Option<(String, Option<String>)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MOST];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).ok()?.is_complete().then_some(())?;
    let mut hosts = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("host"));
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(std::str::from_utf8(host.value).ok()?.trim().to_owned()),
        (Some(_), Some(_)) => return None,
    };
    Some((request.path?.to_owned(), host))
}

#[cfg(test)]
mod tests;
