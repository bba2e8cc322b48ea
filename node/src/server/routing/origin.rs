//! Whether the page behind a request may connect.
//!
//! Only browsers send an Origin, and they cannot lie about it: this protects their users from pages
//! of others, not the node from programs. Script elements send none, so what they load is given only to
//! pages that are known by other headers.

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header;

use crate::config::AllowedOrigins;

/// From where a browser was sent, in its own words.
pub(crate) const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Where the client believes to be connected: what `same` is compared with.
pub(crate) struct Host<'a> {
    /// `http` or `https`.
    pub(crate) scheme: &'a str,
    /// Name and perhaps port, as in a `Host` header.
    pub(crate) authority: &'a str,
}

impl<'a> Host<'a> {
    /// From the headers. `X-Forwarded-*` is used only from a trusted proxy.
    pub(crate) fn of(headers: &'a HeaderMap, from_trusted_proxy: bool) -> Self {
        let forwarded = |name| {
            let value: &HeaderValue = headers.get(name).filter(|_| from_trusted_proxy)?;
            // Each proxy may have appended its own; the first one faced the client.
            value.to_str().ok()?.split(',').next().map(str::trim)
        };
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        Self {
            scheme: forwarded("x-forwarded-proto").unwrap_or("http"),
            authority: forwarded("x-forwarded-host").or(host).unwrap_or_default(),
        }
    }
}

/// Whether a request with these headers may go on. Without an Origin it may.
pub(crate) fn is_allowed(allowed: &AllowedOrigins, headers: &HeaderMap, host: &Host<'_>) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return true;
    };
    if allowed == &AllowedOrigins::Any {
        return true;
    }
    let (Ok(origin), None) = (origin.to_str(), origins.next()) else {
        return false;
    };
    let Some(origin) = Origin::parse(origin) else {
        return false; // `null` among them: a page without a place of its own.
    };
    origin.is_allowed(allowed, host)
}

/// Whether a request that a script element may have sent may go on: without an Origin, the page is known
/// by its Referer, which it can hide but not forge, or by the browser's word that it is of this origin.
pub(crate) fn is_script_allowed(
    allowed: &AllowedOrigins,
    headers: &HeaderMap,
    host: &Host<'_>,
) -> bool {
    if allowed == &AllowedOrigins::Any || headers.contains_key(header::ORIGIN) {
        return is_allowed(allowed, headers, host);
    }
    let site = headers.get(SEC_FETCH_SITE);
    if allowed == &AllowedOrigins::Same && site.is_some_and(|site| site == "same-origin") {
        return true;
    }
    headers
        .get(header::REFERER)
        .and_then(|page| page.to_str().ok())
        .and_then(Origin::parse)
        .is_some_and(|origin| origin.is_allowed(allowed, host))
}

/// A scheme, a name and a port, in lower case and without a default port.
#[derive(PartialEq, Eq)]
struct Origin {
    scheme: String,
    authority: String,
}

impl Origin {
    /// The origin of an address; an Origin is one without a path.
    fn parse(address: &str) -> Option<Self> {
        let (scheme, rest) = address.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        Some(Self::new(scheme, authority))
    }

    fn is_allowed(&self, allowed: &AllowedOrigins, host: &Host<'_>) -> bool {
        match allowed {
            AllowedOrigins::Any => true,
            AllowedOrigins::Same => *self == Self::new(host.scheme, host.authority),
            AllowedOrigins::Listed(listed) => listed
                .iter()
                .filter_map(|listed| Self::parse(listed))
                .any(|listed| listed == *self),
        }
    }

    fn new(scheme: &str, authority: &str) -> Self {
        let scheme = scheme.to_ascii_lowercase();
        let mut authority = authority.to_ascii_lowercase();
        let default_port = match &scheme[..] {
            "http" | "ws" => ":80",
            "https" | "wss" => ":443",
            _ => "",
        };
        if let Some(name) = authority.strip_suffix(default_port) {
            authority.truncate(name.len());
        }
        Self { scheme, authority }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(allowed: &AllowedOrigins, origin: &'static str, host: &Host<'_>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        is_allowed(allowed, &headers, host)
    }

    #[test]
    fn same_means_scheme_name_and_port() {
        let same = AllowedOrigins::Same;
        let plain = Host {
            scheme: "http",
            authority: "chat.example:8080",
        };
        assert!(allowed(&same, "http://chat.example:8080", &plain));
        assert!(allowed(&same, "http://Chat.Example:8080", &plain));
        for other in [
            "https://chat.example:8080",
            "http://chat.example",
            "http://evil.example:8080",
            "http://chat.example:8080.evil.example",
            "chat.example:8080",
            "null",
            "",
        ] {
            assert!(!allowed(&same, other, &plain), "{other}");
        }
    }

    #[test]
    fn a_default_port_may_be_left_out() {
        let tls = Host {
            scheme: "https",
            authority: "chat.example",
        };
        assert!(allowed(
            &AllowedOrigins::Same,
            "https://chat.example:443",
            &tls
        ));
        assert!(!allowed(
            &AllowedOrigins::Same,
            "https://chat.example:80",
            &tls
        ));
        let plain = Host {
            scheme: "http",
            authority: "chat.example:80",
        };
        assert!(allowed(
            &AllowedOrigins::Same,
            "http://chat.example",
            &plain
        ));
    }

    #[test]
    fn a_list_allows_what_it_names() {
        let listed = AllowedOrigins::Listed(vec!["https://chat.example".to_owned()]);
        let host = Host {
            scheme: "http",
            authority: "node",
        };
        assert!(allowed(&listed, "https://chat.example", &host));
        assert!(allowed(&listed, "https://chat.example:443", &host));
        assert!(!allowed(&listed, "http://chat.example", &host));
        assert!(!allowed(&listed, "https://sub.chat.example", &host));
    }

    #[test]
    fn any_allows_null_and_no_origin_is_always_allowed() {
        let host = Host {
            scheme: "http",
            authority: "node",
        };
        assert!(allowed(&AllowedOrigins::Any, "null", &host));
        assert!(is_allowed(&AllowedOrigins::Same, &HeaderMap::new(), &host));
        assert!(is_allowed(
            &AllowedOrigins::Listed(Vec::new()),
            &HeaderMap::new(),
            &host
        ));
    }

    #[test]
    fn a_script_is_given_to_pages_that_are_known_to_be_allowed() {
        let host = Host {
            scheme: "http",
            authority: "node:9000",
        };
        let same = AllowedOrigins::Same;
        let listed = AllowedOrigins::Listed(vec!["https://chat.example".to_owned()]);
        let own = "http://node:9000/page?x=1";
        let other = "https://chat.example/";
        for (allowed, site, referer, expected) in [
            (&AllowedOrigins::Any, None, None, true),
            (&AllowedOrigins::Any, Some("cross-site"), Some(other), true),
            (&same, None, None, false),
            (&same, None, Some(own), true),
            (&same, None, Some(other), false),
            (&same, None, Some("http://node:9000.evil.example/"), false),
            (&same, Some("same-origin"), None, true),
            (&same, Some("same-site"), None, false),
            (&same, Some("cross-site"), Some(other), false),
            (&same, Some("none"), None, false),
            (&listed, None, None, false),
            (&listed, Some("cross-site"), None, false),
            (&listed, Some("cross-site"), Some(other), true),
            (&listed, Some("same-origin"), Some(own), false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(SEC_FETCH_SITE, site), (header::REFERER, referer)] {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_static(value));
                }
            }
            let verdict = is_script_allowed(allowed, &headers, &host);
            assert_eq!(verdict, expected, "{allowed:?} {site:?} {referer:?}");
        }
    }

    #[test]
    fn a_script_with_an_origin_is_judged_by_it() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::ORIGIN,
            HeaderValue::from_static("http://evil.example"),
        );
        headers.insert(header::REFERER, HeaderValue::from_static("http://node/"));
        let host = Host {
            scheme: "http",
            authority: "node",
        };
        assert!(!is_script_allowed(&AllowedOrigins::Same, &headers, &host));
    }

    #[test]
    fn two_origins_are_refused() {
        let mut headers = HeaderMap::new();
        for _ in 0..2 {
            headers.append(header::ORIGIN, HeaderValue::from_static("http://node"));
        }
        let host = Host {
            scheme: "http",
            authority: "node",
        };
        assert!(!is_allowed(&AllowedOrigins::Same, &headers, &host));
    }

    #[test]
    fn forwarded_headers_count_only_from_trusted_proxies() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("10.0.0.1:9000"));
        headers.insert("x-forwarded-proto", HeaderValue::from_static("https, http"));
        headers.insert("x-forwarded-host", HeaderValue::from_static("chat.example"));
        let trusted = Host::of(&headers, true);
        assert_eq!(
            (trusted.scheme, trusted.authority),
            ("https", "chat.example")
        );
        let plain = Host::of(&headers, false);
        assert_eq!((plain.scheme, plain.authority), ("http", "10.0.0.1:9000"));
    }
}
