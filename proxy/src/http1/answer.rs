//! The head of an answer, and how its body ends.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use pingora::ErrorType::InvalidHTTPHeader;
use pingora::OrErr;
use pingora::http::ResponseHeader;

use crate::fields::{Answer, Fields};
use crate::http1::{Chunks, HEADERS_MAX, Head, Parsed, Span};

/// What stands in the first line of an answer, and what its connection can do behind it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StatusLine {
    status: StatusCode,
    reason: Span,
    /// Whether the backend lets the connection carry another request.
    persists: bool,
}

/// The head of an answer.
pub(crate) type AnswerHead = Head<StatusLine>;

/// What a backend sent that cannot be read as an answer in one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadAnswer {
    #[error("the head of the answer is not HTTP/1")]
    NotHttp,
    #[error("the answer has several lengths, or one that is not a number")]
    Length,
    #[error("the answer has a transfer coding besides chunked")]
    Coding,
}

/// How much of a body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Bytes(u64),
    Chunks(Chunks),
    /// All that comes before the connection ends.
    UntilClose,
}

impl AnswerHead {
    /// Reads a complete head.
    ///
    /// # Errors
    ///
    /// [`BadAnswer::NotHttp`].
    pub(crate) fn parse(mut bytes: BytesMut) -> Result<Self, BadAnswer> {
        unfold(&mut bytes);
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut found = httparse::Response::new(&mut []);
        let mut rules = httparse::ParserConfig::default();
        rules.allow_spaces_after_header_name_in_responses(true);
        let parsed = rules.parse_response_with_uninit_headers(&mut found, &bytes, &mut headers);
        let whole =
            matches!(parsed, Ok(httparse::Status::Complete(length)) if length == bytes.len());
        let (Some(code), Some(version), true) = (found.code, found.version, whole) else {
            return Err(BadAnswer::NotHttp);
        };
        let line = StatusLine {
            status: StatusCode::from_u16(code).map_err(|_| BadAnswer::NotHttp)?,
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

    /// Whether the backend lets the connection carry another request.
    pub(crate) fn persists(&self) -> bool {
        self.line.persists
    }

    /// How the body of this answer to `method` ends (RFC 9112, 6.3). Takes out a length that does not count beside chunks.
    ///
    /// # Errors
    ///
    /// [`BadAnswer`] if that cannot be told.
    pub(crate) fn framing(&mut self, method: &Method) -> Result<Framing, BadAnswer> {
        let status = self.line.status;
        let bodiless = status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        if bodiless || *method == Method::HEAD {
            return Ok(Framing::Bytes(0));
        }
        if self.has("transfer-encoding") {
            let mut codings = self.values("transfer-encoding");
            let only = codings.next().unwrap_or_default().trim_ascii();
            if !only.eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
                return Err(BadAnswer::Coding);
            }
            drop(codings);
            self.remove("content-length");
            return Ok(Framing::Chunks(Chunks::default()));
        }
        let mut lengths = self.values("content-length").map(decimal);
        let Some(length) = lengths.next() else {
            return Ok(Framing::UntilClose);
        };
        if lengths.any(|other| other != length) {
            return Err(BadAnswer::Length);
        }
        length.map(Framing::Bytes).ok_or(BadAnswer::Length)
    }

    /// The same head as Pingora has it, with another status if HTTP/2 has one.
    pub(crate) fn to_pingora(&self, status: StatusCode) -> pingora::Result<ResponseHeader> {
        let mut head = ResponseHeader::build_no_case(status, None)?;
        for (name, value) in self.fields() {
            let name = HeaderName::from_bytes(name).or_err(InvalidHTTPHeader, "a name")?;
            let value = HeaderValue::from_bytes(value).or_err(InvalidHTTPHeader, "a value")?;
            head.append_header(name, value)?;
        }
        Ok(head)
    }

    /// Writes it as the client gets it.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(self.line.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.line.reason.in_head(&self.bytes));
        out.extend_from_slice(b"\r\n");
        self.write_fields(out);
    }
}

impl Answer for AnswerHead {
    fn status(&self) -> StatusCode {
        self.line.status
    }
}

/// Writes an answer of the edge itself to a request with `method`. `last` is whether its connection ends with it.
pub(crate) fn write_own(
    head: &ResponseHeader,
    body: &[u8],
    method: &Method,
    last: bool,
    out: &mut Vec<u8>,
) {
    let reason = head.status.canonical_reason().unwrap_or_default();
    let parts = ["HTTP/1.1 ", head.status.as_str(), " ", reason, "\r\n"];
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
    if last {
        out.extend_from_slice(b"Connection: close\r\n");
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
    let plain = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| plain)?;
    text.parse().ok()
}

/// Makes one line of a header that goes on in the next, as old servers write them (RFC 9112, 5.2).
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

    fn parse(text: &str) -> Result<AnswerHead, BadAnswer> {
        AnswerHead::parse(BytesMut::from(text))
    }

    fn written(head: &AnswerHead) -> String {
        let mut out = Vec::new();
        head.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_answer_goes_out_as_it_came() {
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
    fn what_is_no_answer_is_refused() {
        for text in [
            "",
            "HTTP/1.1\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert_eq!(parse(text).err(), Some(BadAnswer::NotHttp), "{text:?}");
        }
    }

    #[test]
    fn a_body_ends_in_one_way() {
        let chunks = || Ok(Framing::Chunks(Chunks::default()));
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
                Err(BadAnswer::Length),
            ),
            (
                "GET",
                "200 OK",
                "Content-Length: +7\r\n",
                Err(BadAnswer::Length),
            ),
            (
                "GET",
                "200 OK",
                "Content-Length:\r\n",
                Err(BadAnswer::Length),
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
                Err(BadAnswer::Coding),
            ),
            (
                "GET",
                "200 OK",
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Err(BadAnswer::Coding),
            ),
        ];
        for (method, status, headers, framing) in cases {
            let mut head = parse(&format!("HTTP/1.1 {status}\r\n{headers}\r\n")).unwrap();
            let method: Method = method.parse().unwrap();
            assert_eq!(
                head.framing(&method),
                framing,
                "{method} {status} {headers}"
            );
            if framing == chunks() {
                assert!(!head.has("content-length"));
            }
        }
    }

    #[test]
    fn a_connection_persists_as_its_version_has_it() {
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
