//! The head of a request.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::{Method, Version};
use httparse::Request as Found;
use pingora::http::RequestHeader;

use crate::fields::Request;
use crate::http1::{HEADERS_MAX, Head, Parsed, Span};
use crate::target::Target;

/// What stands in the first line of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RequestLine {
    method: Method,
    version: Version,
    target: Span,
    /// What is asked for instead of that.
    instead: Option<String>,
}

/// The head of a request.
pub(crate) type RequestHead = Head<RequestLine>;

impl Parsed<RequestLine> {
    /// The request that httparse has found at the start of `head`; `None` if it has no method.
    pub(crate) fn request(found: &Found<'_, '_>, head: &[u8]) -> Option<Self> {
        let line = RequestLine {
            method: Method::from_bytes(found.method?.as_bytes()).ok()?,
            version: match found.version? {
                0 => Version::HTTP_10,
                _ => Version::HTTP_11,
            },
            target: Span::of(found.path?.as_bytes(), head),
            instead: None,
        };
        Some(Self::new(line, found.headers, head))
    }

    pub(crate) fn version(&self) -> Version {
        self.line.version
    }
}

impl RequestHead {
    /// The same head as Pingora has it; `None` if it is not one of HTTP/1.1.
    pub(crate) fn of(request: &RequestHeader) -> Option<Self> {
        let mut bytes = BytesMut::new();
        for part in [request.method.as_str().as_bytes(), b" ", request.raw_path()] {
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(b" HTTP/1.1\r\n");
        request.header_to_h1_wire(&mut bytes);
        bytes.extend_from_slice(b"\r\n");
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut found = Found::new(&mut []);
        let parsed = found.parse_with_uninit_headers(&bytes, &mut headers);
        match parsed {
            Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
            _ => return None,
        }
        Some(Parsed::request(&found, &bytes)?.with(bytes))
    }

    /// Writes it as a backend gets it.
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
        match &self.line.instead {
            Some(target) => target.as_bytes(),
            None => self.line.target.in_head(&self.bytes),
        }
    }

    fn set_target(&mut self, target: String) {
        self.line.instead = Some(target);
    }

    fn authority(&self) -> Option<&str> {
        // So begin nearly all targets.
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
    use http::HeaderValue;

    use super::*;
    use crate::fields::Fields;

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
    fn what_is_not_changed_goes_out_as_it_came() {
        let text = "GET /a?b HTTP/1.1\r\nhOST: a\r\nX-A: 1\r\nx-a:\r\nX-A: 2, 3\r\n\r\n";
        let head = head(text);
        assert_eq!(written(&head), text.replace("x-a:", "x-a: "));
        let values: Vec<&[u8]> = head.values("x-a").collect();
        assert_eq!(values, [&b"1"[..], b"", b"2, 3"]);
        assert_eq!(head.text("host"), Some("a"));
    }

    #[test]
    fn what_is_removed_is_gone_and_what_is_set_is_there_once() {
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

    #[test]
    fn another_target_takes_the_place_of_the_first() {
        let mut head = head("GET http://x/a?b HTTP/1.0\r\n\r\n");
        head.set_target("/a?b".to_owned());
        assert_eq!(written(&head), "GET /a?b HTTP/1.1\r\n\r\n");
        assert_eq!((head.path(), head.version()), ("/a", Version::HTTP_10));
    }
}
