//! What is asked for, as it came over HTTP/1 or HTTP/2, and as a backend gets it.
//!
//! The bytes of HTTP/1 have been judged before, where the edge has read them. HTTP/2 has other ways to say the same, and what
//! only it can say must not get into a request of HTTP/1.

use http::{HeaderValue, Version};

use crate::http::fields::Request;
use crate::http::target::Target;
use crate::http::target::host_alone;
use crate::request::error::Rejection;

/// Checks the target, the host, and what HTTP/2 calls malformed without seeing to it.
///
/// # Errors
///
/// [`Rejection::Malformed`].
pub(super) fn check(request: &impl Request) -> Result<(), Rejection> {
    let malformed = |why| Err(Rejection::Malformed(why));
    let target = std::str::from_utf8(request.target()).unwrap_or_default();
    if Target::of(request.method().as_str(), target).is_none() {
        return malformed("the target is neither a path nor a URL");
    }
    match request.host() {
        None if request.has("host") => return malformed("the host is not one"),
        None if request.version() == Version::HTTP_10 => {}
        None => return malformed("no host"),
        Some(host) if host_alone(host).is_none() => return malformed("the host is not one"),
        Some(_) => {}
    }
    // RFC 9113, 8.2.1.
    if request.version() == Version::HTTP_2 && request.has_padding() {
        return malformed("a header begins or ends with a space");
    }
    Ok(())
}

/// Makes a whole URL the path that a server gets which is no proxy, with the host that it names (RFC 9112, 3.2). A client of
/// HTTP/1.0 may have named none; of HTTP/1.1 it has to be said then too.
pub(super) fn for_server(request: &mut impl Request) {
    if request.version() != Version::HTTP_2 && request.authority().is_none() && !request.has("host")
    {
        request.append("Host", HeaderValue::from_static(""));
    }
    // As nearly all are.
    if request.target().starts_with(b"/") {
        return;
    }
    let Ok(target) = std::str::from_utf8(request.target()) else {
        return;
    };
    let method = request.method().as_str();
    let form = Target::of(method, target);
    let Some(form @ Target::Absolute { authority, .. }) = form else {
        return;
    };
    let (path, host) = (form.for_server(method), HeaderValue::from_str(authority));
    request.set("Host", host.expect("a host that has been checked"));
    if let Some(path) = path {
        request.set_target(path);
    }
}

#[cfg(test)]
mod tests {
    use http::header::HOST;
    use pingora::http::RequestHeader;

    use super::*;

    /// A header and its value.
    type Field = (&'static str, &'static [u8]);

    fn request(version: Version, method: &str, target: &str, headers: &[Field]) -> RequestHeader {
        let mut request = RequestHeader::build(method, target.as_bytes(), None).unwrap();
        request.set_version(version);
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value).unwrap();
            request.append_header((*name).to_owned(), value).unwrap();
        }
        request
    }

    #[test]
    fn what_has_no_host_or_no_path_is_malformed() {
        use Version as V;
        let cases: [(V, &str, &str, &[Field], bool); 12] = [
            (V::HTTP_11, "GET", "/", &[("host", b"a:80")], true),
            (V::HTTP_11, "GET", "/", &[], false),
            (V::HTTP_10, "GET", "/", &[], true),
            (V::HTTP_10, "GET", "/", &[("host", b"\xff")], false),
            (V::HTTP_11, "GET", "/", &[("host", b"a b")], false),
            (V::HTTP_2, "GET", "/", &[], false),
            (
                V::HTTP_2,
                "GET",
                "/",
                &[("host", b"a"), ("x", b"y z")],
                true,
            ),
            (
                V::HTTP_2,
                "GET",
                "/",
                &[("host", b"a"), ("x", b" y")],
                false,
            ),
            (
                V::HTTP_2,
                "GET",
                "/",
                &[("host", b"a"), ("x", b"y\t")],
                false,
            ),
            (V::HTTP_2, "GET", "a", &[("host", b"a")], false),
            (V::HTTP_2, "OPTIONS", "*", &[("host", b"a")], true),
            (V::HTTP_2, "GET", "*", &[("host", b"a")], false),
        ];
        for (version, method, target, headers, right) in cases {
            let request = request(version, method, target, headers);
            assert_eq!(
                check(&request).is_ok(),
                right,
                "{method} {target} {headers:?}"
            );
        }
    }

    #[test]
    fn a_whole_url_becomes_a_path_and_a_host() {
        let cases = [
            ("GET", "http://b:80/c?d", "/c?d", "b:80"),
            ("OPTIONS", "http://b", "*", "b"),
            ("GET", "/c?d=http://e/", "/c?d=http://e/", "a"),
        ];
        for (method, target, path, host) in cases {
            let mut request = request(Version::HTTP_11, method, target, &[("host", b"a")]);
            for_server(&mut request);
            assert_eq!(request.raw_path(), path.as_bytes(), "{target}");
            assert_eq!(request.headers[HOST], host, "{target}");
        }
    }

    #[test]
    fn a_client_without_a_host_is_passed_on_with_an_empty_one() {
        let mut request = request(Version::HTTP_10, "GET", "/", &[]);
        for_server(&mut request);
        assert_eq!(request.headers[HOST], "");
    }
}
