//! Request heads.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::{HeaderValue, Method, Version};
use httparse::Request as Found;
use pingora::http::RequestHeader;

use crate::http::fields::{Fields, Request};
use crate::http::http1::{HEADERS_MOST, Head, Parsed, Span};
use crate::http::target::Target;

/// The request line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RequestLine {
    method: Method,
    version: Version,
    target: Span,
    /// Replaces `target`, if set.
    new_target: Option<String>,
}

/// The head of a request.
pub(crate) type RequestHead = Head<RequestLine>;

impl Parsed<RequestLine> {
    /// From the result of httparse for `head`; `None` if a part of the request line is missing.
    pub(crate) fn request(found: &Found<'_, '_>, head: &[u8]) -> Option<Self> {
        let line = RequestLine {
            method: Method::from_bytes(found.method?.as_bytes()).ok()?,
            version: match found.version? {
                0 => Version::HTTP_10,
                _ => Version::HTTP_11,
            },
            target: Span::of(found.path?.as_bytes(), head),
            new_target: None,
        };
        Some(Self::new(line, found.headers, head))
    }

    pub(crate) fn version(&self) -> Version {
        self.line.version
    }
}

/// Why an HTTP/2 request cannot be converted to HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotHttp1 {
    #[error("a header value begins or ends with whitespace")]
    Padding,
    #[error("Host differs from :authority")]
    Hosts,
    #[error("Content-Length is not a number, or is contradictory")]
    Length,
    #[error("a header is not valid in HTTP/1")]
    Header,
    #[error("more headers than limits.headers")]
    TooManyHeaders,
}

impl RequestHead {
    /// Converts the head of an HTTP/2 request to HTTP/1: with a `Host`, and with one `Cookie` (RFC 9113, 8.2.3).
    ///
    /// # Errors
    ///
    /// [`NotHttp1`] if it has no valid or unambiguous form in HTTP/1.
    pub(crate) fn of_http2(
        request: &http::request::Parts,
        headers_max: usize,
    ) -> Result<Self, NotHttp1> {
        let headers = &request.headers;
        let padded = |value: &HeaderValue| value.as_bytes().trim_ascii().len() != value.len();
        if headers.values().any(padded) {
            return Err(NotHttp1::Padding);
        }
        let authority = request.uri.authority().map(http::uri::Authority::as_str);
        let mut hosts = headers.get_all(HOST).into_iter();
        let host = match (authority, hosts.next(), hosts.next()) {
            (_, Some(_), Some(_)) => return Err(NotHttp1::Hosts),
            (Some(authority), Some(host), _) if host.as_bytes() != authority.as_bytes() => {
                return Err(NotHttp1::Hosts);
            }
            (Some(authority), _, _) => Some(authority.as_bytes()),
            (None, host, _) => host.map(HeaderValue::as_bytes),
        };
        let mut lengths = headers.get_all(CONTENT_LENGTH).into_iter();
        let length = lengths.next();
        let is_number = |length: &HeaderValue| {
            !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit)
        };
        if !length.is_none_or(is_number) || lengths.any(|other| Some(other) != length) {
            return Err(NotHttp1::Length);
        }
        let target = request.uri.path_and_query();
        let target = target.map_or("/", http::uri::PathAndQuery::as_str);
        let mut bytes = BytesMut::with_capacity(512);
        for part in [request.method.as_str(), " ", target, " HTTP/1.1\r\n"] {
            bytes.extend_from_slice(part.as_bytes());
        }
        let mut write = |name: &[u8], value: &[u8]| {
            for part in [name, b": ", value, b"\r\n"] {
                bytes.extend_from_slice(part);
            }
        };
        if let Some(host) = host {
            write(b"host", host);
        }
        if let Some(length) = length {
            write(b"content-length", length.as_bytes());
        }
        let crumbs: Vec<&[u8]> = headers
            .get_all(COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if !crumbs.is_empty() {
            write(b"cookie", &crumbs.join(&b"; "[..]));
        }
        for (name, value) in headers {
            if ![HOST, CONTENT_LENGTH, COOKIE].contains(name) {
                write(name.as_ref(), value.as_bytes());
            }
        }
        bytes.extend_from_slice(b"\r\n");
        let mut found_headers = [const { MaybeUninit::uninit() }; HEADERS_MOST];
        let mut found = Found::new(&mut []);
        let headers_max = headers_max.min(HEADERS_MOST);
        let parsed = found.parse_with_uninit_headers(&bytes, &mut found_headers[..headers_max]);
        match parsed {
            Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(NotHttp1::TooManyHeaders),
            _ => return Err(NotHttp1::Header),
        }
        let mut parsed = Parsed::request(&found, &bytes).ok_or(NotHttp1::Header)?;
        parsed.line.version = Version::HTTP_2;
        Ok(parsed.with(bytes))
    }

    /// Converts Pingora's request head; `None` if it is not valid HTTP/1.1.
    pub(crate) fn of(request: &RequestHeader) -> Option<Self> {
        let mut bytes = BytesMut::new();
        for part in [request.method.as_str().as_bytes(), b" ", request.raw_path()] {
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(b" HTTP/1.1\r\n");
        request.header_to_h1_wire(&mut bytes);
        bytes.extend_from_slice(b"\r\n");
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MOST];
        let mut found = Found::new(&mut []);
        let parsed = found.parse_with_uninit_headers(&bytes, &mut headers);
        match parsed {
            Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
            _ => return None,
        }
        Some(Parsed::request(&found, &bytes)?.with(bytes))
    }

    /// Turns an extended CONNECT for a WebSocket into the HTTP/1.1 upgrade (RFC 8441, 5.1).
    pub(crate) fn make_websocket_upgrade(&mut self, key: HeaderValue) {
        self.line.method = Method::GET;
        self.set("Sec-WebSocket-Key", key);
        self.set("Upgrade", HeaderValue::from_static("websocket"));
    }

    /// Whether the client's connection ends after the response.
    pub(crate) fn ends_connection(&self) -> bool {
        match self.line.version {
            Version::HTTP_10 => !self.lists("connection", "keep-alive"),
            _ => self.lists("connection", "close"),
        }
    }

    /// Whether the client waits for a 100 before it sends its body (RFC 9110, 10.1.1).
    pub(crate) fn expects_continue(&self) -> bool {
        self.line.version != Version::HTTP_10 && self.lists("expect", "100-continue")
    }

    /// Writes the head for a backend.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.line.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.target());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        self.write_fields(out);
    }

    fn form(&self) -> Option<Target<'_>> {
        let target = std::str::from_utf8(self.target()).ok()?;
        Target::of(self.line.method.as_str(), target)
    }
}

impl Request for RequestHead {
    fn method(&self) -> &Method {
        &self.line.method
    }

    fn version(&self) -> Version {
        self.line.version
    }

    fn target(&self) -> &[u8] {
        match &self.line.new_target {
            Some(target) => target.as_bytes(),
            None => self.line.target.in_head(&self.bytes),
        }
    }

    fn set_target(&mut self, target: String) {
        self.line.new_target = Some(target);
    }

    fn authority(&self) -> Option<&str> {
        // A fast path: nearly all targets are paths.
        if self.target().starts_with(b"/") {
            return None;
        }
        match self.form()? {
            Target::Absolute { authority, .. } => Some(authority),
            Target::Origin(_) | Target::Asterisk => None,
        }
    }

    fn path(&self) -> &str {
        let path = match self.form() {
            Some(Target::Origin(path)) => path,
            Some(Target::Absolute { rest, .. }) if rest.starts_with('/') => rest,
            Some(Target::Asterisk) => return "*",
            Some(Target::Absolute { .. }) | None => return "/",
        };
        path.split('?').next().unwrap_or(path)
    }

    fn has_padding(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> RequestHead {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut found = Found::new(&mut headers);
        assert!(found.parse(text.as_bytes()).unwrap().is_complete());
        let parsed = Parsed::request(&found, text.as_bytes()).unwrap();
        parsed.with(BytesMut::from(text))
    }

    fn written(head: &RequestHead) -> String {
        let mut out = Vec::new();
        head.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_unchanged_head_is_forwarded_as_it_was_received() {
        let text = "GET /a?b HTTP/1.1\r\nhOST: a\r\nX-A: 1\r\nx-a:\r\nX-A: 2, 3\r\n\r\n";
        let head = head(text);
        assert_eq!(written(&head), text.replace("x-a:", "x-a: "));
        let values: Vec<&[u8]> = head.values("x-a").collect();
        assert_eq!(values, [&b"1"[..], b"", b"2, 3"]);
        assert_eq!(head.text("host"), Some("a"));
    }

    #[test]
    fn headers_can_be_removed_and_replaced() {
        let mut head = head("GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nCookie: b\r\nx-A: 2\r\n\r\n");
        head.append("X-A", HeaderValue::from_static("3"));
        head.set("X-a", HeaderValue::from_static("4"));
        head.remove("cookie");
        assert_eq!(
            written(&head),
            "GET / HTTP/1.1\r\nHost: a\r\nX-a: 4\r\n\r\n"
        );
        assert!(head.has("x-a") && !head.has("cookie"));
    }

    #[test]
    fn each_form_of_a_target_has_its_path_and_host() {
        let cases = [
            ("GET /a/b?c=/d HTTP/1.1", "/a/b", "h"),
            ("GET //a?b HTTP/1.1", "//a", "h"),
            ("GET http://x:80/a?b HTTP/1.1", "/a", "x:80"),
            ("GET http://x HTTP/1.1", "/", "x"),
            ("GET http://x?a HTTP/1.1", "/", "x"),
            ("OPTIONS * HTTP/1.1", "*", "h"),
        ];
        for (line, path, host) in cases {
            let head = head(&format!("{line}\r\nHost: h\r\n\r\n"));
            assert_eq!((head.path(), head.host()), (path, Some(host)), "{line}");
        }
    }

    /// The head of an HTTP/2 request.
    fn http2(uri: &str, headers: &[(&str, &str)]) -> http::request::Parts {
        let mut request = http::Request::builder().method("POST").uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_converted_http2_request_has_one_host_and_one_cookie() {
        let headers = [
            ("cookie", "a=1"),
            ("x", "y"),
            ("cookie", "b=2"),
            ("content-length", "3"),
        ];
        let head = RequestHead::of_http2(&http2("https://h:1/p?q", &headers), 9).unwrap();
        assert_eq!(
            written(&head),
            "POST /p?q HTTP/1.1\r\nhost: h:1\r\ncontent-length: 3\r\ncookie: a=1; b=2\r\nx: y\r\n\r\n"
        );
        assert_eq!(head.version(), Version::HTTP_2);
    }

    #[test]
    fn an_http2_request_that_is_ambiguous_in_http1_is_rejected() {
        let cases: [(&[(&str, &str)], NotHttp1); 5] = [
            (&[("x", " y")], NotHttp1::Padding),
            (&[("host", "other")], NotHttp1::Hosts),
            (
                &[("content-length", "1"), ("content-length", "2")],
                NotHttp1::Length,
            ),
            (&[("content-length", "+1")], NotHttp1::Length),
            (
                &[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")],
                NotHttp1::TooManyHeaders,
            ),
        ];
        for (headers, error) in cases {
            let made = RequestHead::of_http2(&http2("https://h/", headers), 4);
            assert_eq!(made.err(), Some(error), "{headers:?}");
        }
    }

    #[test]
    fn an_http_1_0_connection_ends_unless_keep_alive_is_requested() {
        for (text, ends) in [
            ("GET / HTTP/1.1\r\n\r\n", false),
            (
                "GET / HTTP/1.1\r\nConnection: a\r\nConnection: b, Close\r\n\r\n",
                true,
            ),
            ("GET / HTTP/1.0\r\n\r\n", true),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", false),
        ] {
            assert_eq!(head(text).ends_connection(), ends, "{text}");
        }
    }

    #[test]
    fn a_target_can_be_replaced() {
        let mut head = head("GET http://x/a?b HTTP/1.0\r\n\r\n");
        head.set_target("/a?b".to_owned());
        assert_eq!(written(&head), "GET /a?b HTTP/1.1\r\n\r\n");
        assert_eq!((head.path(), head.version()), ("/a", Version::HTTP_10));
    }
}
