//! Redirects plain HTTP requests to the https listener.
//!
//! The host of the URL comes from the request's own `Host`, which a client may forge: so it is used only if it is a valid host
//! (RFC 3986, 3.2.2), and its port is replaced by that of the https listener. The response may not be cached, so only the sender
//! of a forged host sees it.

use crate::http::target::host_alone;

/// Certificate authorities request challenges here without TLS (RFC 8555, 8.3).
const ACME: &str = "/.well-known/acme-challenge/";

/// What to do with a plain HTTP request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Serve it: it may be a challenge of a certificate authority.
    Serve,
    /// Redirect it to this URL.
    Redirect(String),
    /// Reject it: there is no valid host, or the path is not valid.
    Malformed,
}

/// Decides about a request for `target` with this `Host`.
pub(super) fn decide(target: &str, host: Option<&str>, port: u16) -> Decision {
    // A URL within the path or query of a target does not count.
    let url = target
        .split_once("://")
        .filter(|_| !target.starts_with('/'));
    let (host, path) = match url {
        Some((_, rest)) => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            (Some(&rest[..end]), &rest[end..])
        }
        None => (host, target),
    };
    if path.starts_with(ACME) && !path.contains("..") {
        return Decision::Serve;
    }
    let Some(host) = host.and_then(host_alone) else {
        return Decision::Malformed;
    };
    let is_valid = |byte: u8| byte.is_ascii_graphic();
    if !(path.starts_with('/') || path.starts_with('?') || path.is_empty())
        || !path.bytes().all(is_valid)
    {
        return Decision::Malformed;
    }
    let port = match port {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    Decision::Redirect(format!("https://{host}{port}{slash}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_redirected_to_the_same_url_with_https() {
        let to = |url: &str| Decision::Redirect(url.to_owned());
        let cases = [
            (
                "/a?b=c",
                Some("chat.example"),
                443,
                to("https://chat.example/a?b=c"),
            ),
            (
                "/",
                Some("chat.example:80"),
                8443,
                to("https://chat.example:8443/"),
            ),
            (
                "/",
                Some("[2001:db8::1]:80"),
                443,
                to("https://[2001:db8::1]/"),
            ),
            (
                "http://other.example/x",
                Some("chat.example"),
                443,
                to("https://other.example/x"),
            ),
            (
                "http://other.example?x",
                None,
                443,
                to("https://other.example/?x"),
            ),
            (
                "/a?next=https://evil.example/",
                Some("chat.example"),
                443,
                to("https://chat.example/a?next=https://evil.example/"),
            ),
            (
                "/.well-known/acme-challenge/token",
                Some("chat.example"),
                443,
                Decision::Serve,
            ),
            (
                "/.well-known/acme-challenge/../x",
                Some("a"),
                443,
                to("https://a/.well-known/acme-challenge/../x"),
            ),
        ];
        for (target, host, port, expected) in cases {
            assert_eq!(decide(target, host, port), expected, "{target} {host:?}");
        }
    }

    #[test]
    fn a_request_without_a_valid_host_is_not_redirected() {
        let long = "a".repeat(254);
        for host in [
            "", "a@b", "a/b", "a b", "a\\b", "a:b", "a:80:80", "[::1", "[x]", "[::1]x", "a#",
            "a?b", "%61", &long,
        ] {
            assert_eq!(decide("/", Some(host), 443), Decision::Malformed, "{host}");
        }
        assert_eq!(decide("/", None, 443), Decision::Malformed);
        assert_eq!(
            decide("//evil.example", Some("a"), 443),
            Decision::Redirect("https://a//evil.example".to_owned())
        );
        assert_eq!(decide("*", Some("a"), 443), Decision::Malformed);
        assert_eq!(
            decide("http://u@evil.example/", Some("a"), 443),
            Decision::Malformed
        );
        assert_eq!(decide("/\u{e4}", Some("a"), 443), Decision::Malformed);
    }
}
