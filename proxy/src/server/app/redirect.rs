//! Sends plain requests to the https listener.
//!
//! Where to comes from the request's own `Host`, which a client may forge: so it is taken only if it is a host as RFC 3986,
//! 3.2.2 has it and nothing else, and its port is replaced by ours. Nobody but the sender of a forged host gets to see it,
//! because the answer may not be stored.

use crate::http::target::host_alone;

/// Certificate authorities look here without TLS (RFC 8555, 8.3).
const ACME: &str = "/.well-known/acme-challenge/";

/// What becomes of a plain request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// A challenge of a certificate authority.
    Serve,
    /// The client is to come back to this URL.
    Redirect(String),
    /// There is no host to send it to.
    Malformed,
}

/// Decides about a request for `target` (of its request line) with this `Host`.
pub(super) fn fate(target: &str, host: Option<&str>, port: u16) -> Fate {
    // What stands in a query is no URL that is asked for.
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
        return Fate::Serve;
    }
    let Some(host) = host.and_then(host_alone) else {
        return Fate::Malformed;
    };
    let right = |byte: u8| byte.is_ascii_graphic();
    if !(path.starts_with('/') || path.starts_with('?') || path.is_empty())
        || !path.bytes().all(right)
    {
        return Fate::Malformed;
    }
    let port = match port {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    Fate::Redirect(format!("https://{host}{port}{slash}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_to_the_same_place_with_https() {
        let to = |url: &str| Fate::Redirect(url.to_owned());
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
                Fate::Serve,
            ),
            (
                "/.well-known/acme-challenge/../x",
                Some("a"),
                443,
                to("https://a/.well-known/acme-challenge/../x"),
            ),
        ];
        for (target, host, port, expected) in cases {
            assert_eq!(fate(target, host, port), expected, "{target} {host:?}");
        }
    }

    #[test]
    fn a_host_that_is_none_sends_nobody_anywhere() {
        let long = "a".repeat(254);
        for host in [
            "", "a@b", "a/b", "a b", "a\\b", "a:b", "a:80:80", "[::1", "[x]", "[::1]x", "a#",
            "a?b", "%61", &long,
        ] {
            assert_eq!(fate("/", Some(host), 443), Fate::Malformed, "{host}");
        }
        assert_eq!(fate("/", None, 443), Fate::Malformed);
        assert_eq!(
            fate("//evil.example", Some("a"), 443),
            Fate::Redirect("https://a//evil.example".to_owned())
        );
        assert_eq!(fate("*", Some("a"), 443), Fate::Malformed);
        assert_eq!(
            fate("http://u@evil.example/", Some("a"), 443),
            Fate::Malformed
        );
        assert_eq!(fate("/\u{e4}", Some("a"), 443), Fate::Malformed);
    }
}
