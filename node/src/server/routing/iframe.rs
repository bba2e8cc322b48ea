//! The page that a page of another site loads in a frame, where sockjs-client then speaks for it.
//!
//! Requests from within the frame come from this origin, so `allowed_origins` cannot be held when they
//! arrive: the page itself states which pages may frame it. Old browsers without `frame-ancestors` support only
//! `same`, by `X-Frame-Options`.

use std::hash::DefaultHasher;
use std::hash::Hash;
use std::hash::Hasher;
use std::time::SystemTime;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header;

use crate::config::AllowedOrigins;
use crate::server::routing::cors;
use crate::transport::Body;

/// The page up to the address of the script, and behind it; to the letter of the protocol.
const PAGE: [&str; 2] = [
    r#"<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
  <script src=""#,
    r#""></script>
  <script>
    document.domain = document.domain;
    SockJS.bootstrap_iframe();
  </script>
</head>
<body>
  <h2>Don't panic!</h2>
  <p>This is a SockJS hidden iframe. It's used for cross domain magic.</p>
</body>
</html>"#,
];

/// One endpoint's page, the same for every version that the path may name.
pub(crate) struct IframePage {
    html: Bytes,
    etag: HeaderValue,
    framing: Vec<(header::HeaderName, HeaderValue)>,
}

impl IframePage {
    /// The page that loads `client_script`, an address that the configuration has checked.
    pub(crate) fn new(client_script: &str, allowed_origins: &AllowedOrigins) -> Self {
        let [before, behind] = PAGE;
        let html = format!("{before}{}{behind}", client_script.replace('&', "&amp;"));
        // Nodes of one version agree on it, and that is all it needs.
        let mut hasher = DefaultHasher::new();
        html.hash(&mut hasher);
        let etag = format!("\"{:016x}\"", hasher.finish());
        Self {
            html: html.into(),
            etag: HeaderValue::try_from(etag).expect("hexadecimal is ASCII"),
            framing: framing(allowed_origins),
        }
    }

    /// The page, or 304 if `request` says that the browser has it.
    pub(crate) fn respond(&self, request: &HeaderMap, now: SystemTime) -> Response<Body> {
        let mut response = if self.is_known(request) {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            let mut response = Response::new(Body::Whole(self.html.clone()));
            let html = HeaderValue::from_static("text/html; charset=UTF-8");
            response.headers_mut().insert(header::CONTENT_TYPE, html);
            response
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.etag.clone());
        headers.extend(self.framing.iter().cloned());
        cors::cache_for_a_year(now, headers);
        response
    }

    /// If-None-Match, RFC 9110 section 13.1.2: a list that may hold weak tags, or `*`.
    fn is_known(&self, request: &HeaderMap) -> bool {
        request
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .flat_map(|tags| tags.as_bytes().split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
            .any(|tag| {
                tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == self.etag.as_bytes()
            })
    }
}

/// The headers that state which pages may frame this one.
fn framing(allowed_origins: &AllowedOrigins) -> Vec<(header::HeaderName, HeaderValue)> {
    let ancestors = match allowed_origins {
        AllowedOrigins::Any => return Vec::new(),
        AllowedOrigins::Same => "'self'".to_owned(),
        AllowedOrigins::Listed(origins) => origins.join(" "),
    };
    let policy = HeaderValue::try_from(format!("frame-ancestors {ancestors}"))
        .expect("the configuration takes no origin that is not ASCII");
    let mut headers = vec![(header::CONTENT_SECURITY_POLICY, policy)];
    if allowed_origins == &AllowedOrigins::Same {
        headers.push((
            header::X_FRAME_OPTIONS,
            HeaderValue::from_static("SAMEORIGIN"),
        ));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(page: &IframePage, if_none_match: &str) -> Response<Body> {
        let mut request = HeaderMap::new();
        let tags = HeaderValue::from_str(if_none_match).unwrap();
        request.insert(header::IF_NONE_MATCH, tags);
        page.respond(&request, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_browser_that_has_the_page_gets_no_body() {
        let page = IframePage::new("/sockjs.js", &AllowedOrigins::Any);
        let etag = page.etag.to_str().unwrap();
        for known in [etag, "*", &format!("W/{etag}"), &format!("\"x\" , {etag}")] {
            let response = response(&page, known);
            assert_eq!(response.status(), 304, "{known}");
            assert_eq!(response.headers().get(header::CONTENT_TYPE), None);
            assert_eq!(response.headers()[header::ETAG], page.etag);
            assert!(http_body::Body::is_end_stream(response.body()));
        }
        for unknown in ["\"x\"", "", etag.trim_matches('"')] {
            assert_eq!(response(&page, unknown).status(), 200, "{unknown}");
        }
    }

    #[test]
    fn the_tag_is_the_pages_own() {
        let page = |script| IframePage::new(script, &AllowedOrigins::Any);
        assert_eq!(page("/a.js").etag, page("/a.js").etag);
        assert_ne!(page("/a.js").etag, page("/b.js").etag);
    }

    #[test]
    fn only_pages_that_may_connect_may_frame_it() {
        let listed = ["https://a.example", "http://b.example:81"].map(str::to_owned);
        for (allowed, policy, options) in [
            (AllowedOrigins::Any, None, None),
            (
                AllowedOrigins::Same,
                Some("frame-ancestors 'self'"),
                Some("SAMEORIGIN"),
            ),
            (
                AllowedOrigins::Listed(listed.to_vec()),
                Some("frame-ancestors https://a.example http://b.example:81"),
                None,
            ),
        ] {
            let response = response(&IframePage::new("/x", &allowed), "");
            let header = |name| {
                let value: Option<&HeaderValue> = response.headers().get(name);
                value.map(|value| value.to_str().unwrap())
            };
            assert_eq!(header(header::CONTENT_SECURITY_POLICY), policy);
            assert_eq!(header(header::X_FRAME_OPTIONS), options);
        }
    }
}
