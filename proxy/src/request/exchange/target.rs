//! The requested target and host: checked as received over HTTP/1 or HTTP/2, and rewritten for a backend.
//!
//! The syntax of HTTP/1 is checked earlier, by the reader of the head. What HTTP/2 allows and HTTP/1 does not must not get into a
//! request to a backend.

use http::{HeaderValue, Version};

use crate::http::fields::Request;
use crate::http::fields::text;
use crate::http::target::Target;
use crate::http::target::host_alone;
use crate::request::error::Rejection;

/// Checks the target, the host, the expectation, and header values that RFC 9113 calls malformed but the HTTP/2 library accepts.
///
/// # Errors
///
/// [`Rejection::Malformed`], or [`Rejection::ExpectationFailed`].
pub(super) fn check(request: &impl Request) -> Result<(), Rejection> {
    let malformed = |why| Err(Rejection::Malformed(why));
    let target = std::str::from_utf8(request.target()).unwrap_or_default();
    if Target::of(request.method().as_str(), target).is_none() {
        return malformed("the target is neither a path nor a URL");
    }
    match request.host() {
        None if request.has("host") => return malformed("the host is not valid"),
        None if request.version() == Version::HTTP_10 => {}
        None => return malformed("no host"),
        Some(host) if host_alone(host).is_none() => return malformed("the host is not valid"),
        Some(_) => {}
    }
    // RFC 9113, 8.2.1.
    if request.version() == Version::HTTP_2 && request.has_padding() {
        return malformed("a header begins or ends with a space");
    }
    if request.version() != Version::HTTP_10 && expects_unknown(request) {
        return Err(Rejection::ExpectationFailed);
    }
    Ok(())
}

/// Whether `Expect` holds anything but `100-continue`, for which RFC 9110, 10.1.1 has status 417. The RFC would pass it on too, but
/// a backend that takes `y 100-continue` for a 100-continue, and responds before the body, enables request smuggling.
fn expects_unknown(request: &impl Request) -> bool {
    let is_known = |element: &str| {
        let element = element.trim();
        element.is_empty() || element.eq_ignore_ascii_case("100-continue")
    };
    let mut values = request.values("expect");
    values.any(|value| text(value).is_none_or(|list| !list.split(',').all(is_known)))
}

/// Rewrites a target in absolute form to the origin form, with the host from it (RFC 9112, 3.2). A request of HTTP/1.0 without a
/// host gets an empty `Host` header, which HTTP/1.1 requires. Its expectation
/// is ignored (RFC 9110, 10.1.1): over HTTP/1.1 the backend would act on it.
pub(super) fn for_server(request: &mut impl Request) {
    if request.version() == Version::HTTP_10 {
        request.remove("expect");
    }
    if request.version() != Version::HTTP_2 && request.authority().is_none() && !request.has("host")
    {
        request.append("Host", HeaderValue::from_static(""));
    }
    // The origin form, as in nearly all requests.
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
    let (path, host) = (
        form.to_origin_form(method),
        HeaderValue::from_str(authority),
    );
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
    fn a_request_without_a_valid_host_or_path_is_malformed() {
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
    fn only_100_continue_is_accepted_and_over_http_10_expect_is_ignored() {
        let cases: [(Version, &[u8], bool); 9] = [
            (Version::HTTP_11, b"100-continue", true),
            (Version::HTTP_2, b"100-Continue", true),
            (Version::HTTP_11, b"100-continue, 100-continue", true),
            (Version::HTTP_11, b"", true),
            (Version::HTTP_11, b"unknown", false),
            (Version::HTTP_2, b"100-continue, token=param", false),
            (Version::HTTP_11, b"y 100-continue", false),
            (Version::HTTP_11, b"100-continue\xff", false),
            (Version::HTTP_10, b"unknown", true),
        ];
        for (version, expect, right) in cases {
            let headers: &[Field] = &[("host", b"a"), ("expect", expect)];
            let mut request = request(version, "POST", "/", headers);
            let checked = check(&request);
            let rejected = checked == Err(Rejection::ExpectationFailed);
            assert!(checked.is_ok() == right && rejected != right, "{expect:?}");
            for_server(&mut request);
            assert_eq!(
                request.headers.contains_key("expect"),
                version != Version::HTTP_10
            );
        }
    }

    #[test]
    fn a_target_in_absolute_form_becomes_a_path_and_a_host() {
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
    fn a_request_without_a_host_is_forwarded_with_an_empty_one() {
        let mut request = request(Version::HTTP_10, "GET", "/", &[]);
        for_server(&mut request);
        assert_eq!(request.headers[HOST], "");
    }
}
