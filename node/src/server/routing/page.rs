//! The chat page: three files, built into the program.

use http::HeaderMap;
use http::HeaderValue;
use http::Response;
use http::header;

use crate::transport::Body;

/// One file of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asset {
    /// `/`
    Index,
    /// `/page.css`
    Style,
    /// `/page.js`
    Script,
}

/// The page may load its own files, connect to its own node, and nothing else.
const SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

impl Asset {
    /// The file at `path`.
    pub(crate) fn find(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Index),
            "/page.css" => Some(Self::Style),
            "/page.js" => Some(Self::Script),
            _ => None,
        }
    }

    /// The file as a response. It is small, so it is fetched anew each time and never out of date.
    pub(crate) fn respond(self) -> Response<Body> {
        let (content_type, text) = match self {
            Self::Index => (
                "text/html; charset=utf-8",
                include_str!("../page/index.html"),
            ),
            Self::Style => ("text/css; charset=utf-8", include_str!("../page/page.css")),
            Self::Script => (
                "text/javascript; charset=utf-8",
                include_str!("../page/page.js"),
            ),
        };
        let mut response = Response::new(Body::from(text));
        let headers: &mut HeaderMap = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        let policy = HeaderValue::from_static(SECURITY_POLICY);
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        headers.insert(
            header::REFERRER_POLICY,
            HeaderValue::from_static("same-origin"),
        );
        response
    }
}
