//! Response heads, and how the body of a response ends.
//!
//! Decides which responses are valid, for every path through the edge: lenient where other proxies are and it is safe (line
//! folding, whitespace before a colon, a repeated length), else an error before anything is sent to the client.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use pingora::http::ResponseHeader;

use crate::http::fields::{Fields, Response};
use crate::http::http1::{Chunks, HEADERS_MOST, Head, Parsed, Span};

/// The status line of a response, and whether its connection can be reused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StatusLine {
    status: StatusCode,
    reason: Span,
    /// Whether the backend keeps the connection open for another request.
    persists: bool,
}

/// The head of a response.
pub(crate) type ResponseHead = Head<StatusLine>;

/// Why a backend's response is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadResponse {
    #[error("the response head is not HTTP/1")]
    NotHttp,
    #[error("the response head has more headers than limits.headers")]
    TooManyHeaders,
    #[error("the response has contradictory Content-Length headers, or one that is not a number")]
    Length,
    #[error("the response has a transfer coding other than chunked")]
    Coding,
    #[error("the Connection header of the response names too many headers")]
    Nominations,
    #[error("the response switches protocols, but the request asked for no upgrade")]
    UnexpectedUpgrade,
    #[error("the response accepts an upgrade without switching protocols")]
    NotSwitched,
    #[error("the response has an invalid chunk")]
    Chunk,
}

/// How the rest of a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Bytes(u64),
    Chunks(Chunks),
    /// Until the connection ends.
    UntilClose,
}

impl ResponseHead {
    /// Parses a complete head of at most `headers_max` headers.
    ///
    /// # Errors
    ///
    /// [`BadResponse::NotHttp`] or [`BadResponse::TooManyHeaders`].
    pub(crate) fn parse(mut bytes: BytesMut, headers_max: usize) -> Result<Self, BadResponse> {
        unfold(&mut bytes);
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MOST];
        let headers = &mut headers[..headers_max.min(HEADERS_MOST)];
        let mut found = httparse::Response::new(&mut []);
        let mut rules = httparse::ParserConfig::default();
        rules.allow_spaces_after_header_name_in_responses(true);
        let parsed = rules.parse_response_with_uninit_headers(&mut found, &bytes, headers);
        if parsed == Err(httparse::Error::TooManyHeaders) {
            return Err(BadResponse::TooManyHeaders);
        }
        let is_complete =
            matches!(parsed, Ok(httparse::Status::Complete(length)) if length == bytes.len());
        let (Some(code), Some(version), true) = (found.code, found.version, is_complete) else {
            return Err(BadResponse::NotHttp);
        };
        let line = StatusLine {
            status: StatusCode::from_u16(code).map_err(|_| BadResponse::NotHttp)?,
            reason: match found.reason {
                Some(reason) if !reason.is_empty() => Span::of(reason.as_bytes(), &bytes),
                _ => Span { from: 0, to: 0 },
            },
            persists: version == 1,
        };
        let mut head = Parsed::new(line, found.headers, &bytes).with(bytes);
        head.line.persists = match head.line.persists {
            true => !head.lists("connection", "close"),
            false => head.lists("connection", "keep-alive"),
        };
        Ok(head)
    }

    /// Whether the backend keeps the connection open for another request.
    pub(crate) fn persists(&self) -> bool {
        self.line.persists
    }

    /// The head for HTTP/2, with `status`. `None` if a header is not valid there.
    pub(crate) fn to_http2(&self, status: StatusCode) -> Option<http::Response<()>> {
        let mut response = http::Response::new(());
        *response.status_mut() = status;
        for (name, value) in self.fields() {
            let name = HeaderName::from_bytes(name).ok()?;
            let value = HeaderValue::from_bytes(value).ok()?;
            response.headers_mut().try_append(name, value).ok()?;
        }
        Some(response)
    }

    /// Writes the head for an HTTP/1 client.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(self.line.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.line.reason.in_head(&self.bytes));
        out.extend_from_slice(b"\r\n");
        self.write_fields(out);
    }
}

impl Response for ResponseHead {
    fn status(&self) -> StatusCode {
        self.line.status
    }
}

/// How the body of `response` to a request with `method` ends (RFC 9112, 6.3). Leaves at most one framing header in the head: no
/// length together with chunks, no repeated length, and none at all where there can be no body.
///
/// # Errors
///
/// [`BadResponse::Length`] or [`BadResponse::Coding`] if the framing is not valid.
pub(crate) fn settle_framing(
    response: &mut impl Response,
    method: &Method,
) -> Result<Framing, BadResponse> {
    let status = response.status();
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        response.remove("content-length");
        response.remove("transfer-encoding");
        return Ok(Framing::Bytes(0));
    }
    if status == StatusCode::NOT_MODIFIED || *method == Method::HEAD {
        // The length is the one that the body would have (RFC 9110, 8.6).
        settle_length(response)?;
        response.remove("transfer-encoding");
        return Ok(Framing::Bytes(0));
    }
    if response.has("transfer-encoding") {
        let mut codings = response.values("transfer-encoding");
        let only = codings.next().unwrap_or_default().trim_ascii();
        if !only.eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(BadResponse::Coding);
        }
        drop(codings);
        response.remove("content-length");
        return Ok(Framing::Chunks(Chunks::lenient()));
    }
    let length = settle_length(response)?;
    Ok(length.map_or(Framing::UntilClose, Framing::Bytes))
}

/// The length in the head; a repeated header is reduced to one.
fn settle_length(response: &mut impl Response) -> Result<Option<u64>, BadResponse> {
    let mut lengths = response.values("content-length").map(decimal);
    let Some(first) = lengths.next() else {
        return Ok(None);
    };
    let length = first.ok_or(BadResponse::Length)?;
    let (mut others, mut differs) = (0, false);
    for other in lengths {
        others += 1;
        differs |= other != Some(length);
    }
    if differs {
        return Err(BadResponse::Length);
    }
    if others > 0 {
        response.set("Content-Length", length.into());
    }
    Ok(Some(length))
}

/// Writes a response of the edge itself to a request with `method`, with `connection` as `Connection` header.
pub(crate) fn write_own(
    head: &ResponseHeader,
    body: &[u8],
    method: &Method,
    connection: Option<&str>,
    out: &mut Vec<u8>,
) {
    let reason = head.status.canonical_reason().unwrap_or_default();
    let parts = ["HTTP/1.1 ", head.status.as_str(), " ", reason, "\r\n"];
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
    if let Some(connection) = connection {
        for part in ["Connection: ", connection, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    for (name, value) in &head.headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if *method != Method::HEAD {
        out.extend_from_slice(body);
    }
}

fn decimal(value: &[u8]) -> Option<u64> {
    let is_digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| is_digits)?;
    text.parse().ok()
}

/// Joins folded header lines, as old servers write them (RFC 9112, 5.2).
fn unfold(head: &mut [u8]) {
    for at in 1..head.len().saturating_sub(1) {
        if head[at] == b'\n' && matches!(head[at + 1], b' ' | b'\t') {
            head[at] = b' ';
            if head[at - 1] == b'\r' {
                head[at - 1] = b' ';
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ResponseHead, BadResponse> {
        ResponseHead::parse(BytesMut::from(text), 4)
    }

    fn written(head: &ResponseHead) -> String {
        let mut out = Vec::new();
        head.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_response_head_is_forwarded_unchanged() {
        for text in [
            "HTTP/1.1 200 OK\r\nServer: a\r\netag: \"b\"\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 999 \r\n\r\n",
        ] {
            assert_eq!(written(&parse(text).unwrap()), text);
        }
        let folded = parse("HTTP/1.0 200 OK\r\nX: a\r\n\tb\r\nY : c\n\n").unwrap();
        assert_eq!(
            written(&folded),
            "HTTP/1.1 200 OK\r\nX: a  \tb\r\nY: c\r\n\r\n"
        );
    }

    #[test]
    fn an_invalid_response_head_is_an_error() {
        for text in [
            "",
            "HTTP/1.1\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert_eq!(parse(text).err(), Some(BadResponse::NotHttp), "{text:?}");
        }
    }

    #[test]
    fn the_framing_of_a_body_follows_method_status_and_headers() {
        let chunks = || Ok(Framing::Chunks(Chunks::lenient()));
        let cases = [
            ("GET", "200 OK", "", Ok(Framing::UntilClose)),
            (
                "GET",
                "200 OK",
                "Content-Length: 7\r\n",
                Ok(Framing::Bytes(7)),
            ),
            (
                "HEAD",
                "200 OK",
                "Content-Length: 7\r\n",
                Ok(Framing::Bytes(0)),
            ),
            (
                "GET",
                "304 Not Modified",
                "Content-Length: 7\r\n",
                Ok(Framing::Bytes(0)),
            ),
            (
                "GET",
                "204 No Content",
                "Transfer-Encoding: chunked\r\n",
                Ok(Framing::Bytes(0)),
            ),
            ("GET", "103 Early Hints", "", Ok(Framing::Bytes(0))),
            (
                "GET",
                "200 OK",
                "Content-Length: 7\r\nContent-Length: 7\r\n",
                Ok(Framing::Bytes(7)),
            ),
            (
                "GET",
                "200 OK",
                "Content-Length: 7\r\nContent-Length: 8\r\n",
                Err(BadResponse::Length),
            ),
            (
                "GET",
                "200 OK",
                "Content-Length: +7\r\n",
                Err(BadResponse::Length),
            ),
            (
                "GET",
                "200 OK",
                "Content-Length:\r\n",
                Err(BadResponse::Length),
            ),
            (
                "GET",
                "200 OK",
                "Transfer-Encoding: Chunked\r\nContent-Length: 7\r\n",
                chunks(),
            ),
            (
                "GET",
                "200 OK",
                "Transfer-Encoding: gzip, chunked\r\n",
                Err(BadResponse::Coding),
            ),
            (
                "GET",
                "200 OK",
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Err(BadResponse::Coding),
            ),
        ];
        for (method, status, headers, framing) in cases {
            let mut head = parse(&format!("HTTP/1.1 {status}\r\n{headers}\r\n")).unwrap();
            let method: Method = method.parse().unwrap();
            assert_eq!(
                settle_framing(&mut head, &method),
                framing,
                "{method} {status} {headers}"
            );
            if framing == chunks() {
                assert!(!head.has("content-length"));
            }
        }
    }

    #[test]
    fn a_connection_persists_by_version_and_connection_header() {
        let cases = [
            ("HTTP/1.1", "", true),
            ("HTTP/1.1", "Connection: x, Close\r\n", false),
            ("HTTP/1.1", "Connection: keep-alive\r\n", true),
            ("HTTP/1.0", "", false),
            ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
        ];
        for (version, headers, persists) in cases {
            let head = parse(&format!("{version} 200 OK\r\n{headers}\r\n")).unwrap();
            assert_eq!(head.persists(), persists, "{version} {headers}");
        }
    }
}
