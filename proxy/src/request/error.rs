//! The error responses of the edge itself: the one place that maps a failure to an HTTP response.
//!
//! Bodies are short and tell nothing about the backends: the details are in the access log.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

use crate::limits::Limit;

/// Why the edge itself responds to a request, not a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    /// The head is not HTTP, or ambiguous.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// The head was not complete within its deadline.
    #[error("the request head did not arrive in time")]
    HeadTimeout,
    /// The body stalled for `timeouts.downstream_read`, or arrived more slowly than `timeouts.request_body_rate`.
    #[error("the request body did not arrive in time: {0}")]
    BodyTimeout(&'static str),
    /// The head is larger than `limits.head_size`.
    #[error("the request head is too large")]
    HeadTooLarge,
    /// The request line alone is larger than `limits.head_size`.
    #[error("the target of the request is too long")]
    TargetTooLong,
    /// CONNECT: the edge is a reverse proxy only.
    #[error("the method CONNECT is not supported")]
    MethodNotAllowed,
    /// The body has a transfer coding other than chunked.
    #[error("the transfer coding is not supported")]
    CodingNotSupported,
    /// `Expect` has something besides `100-continue` in it.
    #[error("the expectation is not known here")]
    ExpectationFailed,
    /// The request line has an unsupported version of HTTP.
    #[error("the version of HTTP is not supported")]
    VersionNotSupported,
    /// No route matches: the configured response.
    #[error("no route matches")]
    NoRoute {
        status: StatusCode,
        body: Cow<'static, str>,
    },
    /// The listener only redirects to https, to this URL.
    #[error("the listener redirects to https")]
    UseHttps(String),
    /// A limit is reached.
    #[error("rejected because of limits.{}", .0.name())]
    Limited(Limit),
    /// No backend is left to try.
    #[error("no backend is available")]
    NoBackend,
    /// The connection to the backend broke after the request was sent, or the response cannot be forwarded.
    #[error("the backend failed: {0}")]
    BackendFailed(&'static str),
    /// Connecting to the backend, or its response, took too long.
    #[error("the backend did not respond in time: {0}")]
    BackendTimeout(&'static str),
}

impl Rejection {
    /// The value of the label `reason` in the metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::HeadTimeout => "head_timeout",
            Self::BodyTimeout(_) => "body_timeout",
            Self::HeadTooLarge => "head_size",
            Self::TargetTooLong => "target_size",
            Self::MethodNotAllowed => "method",
            Self::CodingNotSupported => "coding",
            Self::ExpectationFailed => "expectation",
            Self::VersionNotSupported => "version",
            Self::NoRoute { .. } => "no_route",
            Self::UseHttps(_) => "use_https",
            Self::Limited(limit) => limit.name(),
            Self::NoBackend => "no_backend",
            Self::BackendFailed(_) => "backend_failed",
            Self::BackendTimeout(_) => "backend_timeout",
        }
    }
}

/// A complete response with a text body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ErrorResponse {
    pub(crate) status: StatusCode,
    pub(crate) body: Cow<'static, str>,
    /// For the `Retry-After` header, in whole seconds.
    pub(crate) retry_after: Option<Duration>,
    /// For the `Location` header.
    pub(crate) location: Option<String>,
    /// For the `Allow` header.
    pub(crate) allow: Option<&'static str>,
}

/// The `Allow` header of a 405 (RFC 9110, 15.5.6): the methods of HTTP itself. Other methods are forwarded too.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";

/// When a client may retry after a 503 or a 429: about one interval of health checks.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The response for `rejection`.
pub(crate) fn error_response(rejection: Rejection) -> ErrorResponse {
    let (mut location, mut allow) = (None, None);
    let (status, body) = match rejection {
        Rejection::NoRoute { status, body } => (status, body),
        Rejection::Malformed(why) => (
            StatusCode::BAD_REQUEST,
            format!("bad request: {why}\n").into(),
        ),
        Rejection::TargetTooLong => (StatusCode::URI_TOO_LONG, "target too long\n".into()),
        Rejection::MethodNotAllowed => {
            allow = Some(METHODS);
            (
                StatusCode::METHOD_NOT_ALLOWED,
                "method not allowed\n".into(),
            )
        }
        Rejection::CodingNotSupported => (
            StatusCode::NOT_IMPLEMENTED,
            "transfer coding not implemented\n".into(),
        ),
        Rejection::ExpectationFailed => (
            StatusCode::EXPECTATION_FAILED,
            "expectation not supported\n".into(),
        ),
        Rejection::VersionNotSupported => (
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "version of HTTP not supported\n".into(),
        ),
        // 308: the client repeats the same method and body (RFC 9110, 15.4.9).
        Rejection::UseHttps(url) => {
            location = Some(url);
            (StatusCode::PERMANENT_REDIRECT, "use https\n".into())
        }
        Rejection::HeadTimeout | Rejection::BodyTimeout(_) => {
            (StatusCode::REQUEST_TIMEOUT, "request timeout\n".into())
        }
        Rejection::HeadTooLarge => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "request head too large\n".into(),
        ),
        Rejection::Limited(limit) => (limit.status(), limit.body().into()),
        Rejection::NoBackend => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no backend available\n".into(),
        ),
        Rejection::BackendFailed(_) => (StatusCode::BAD_GATEWAY, "bad gateway\n".into()),
        Rejection::BackendTimeout(_) => (StatusCode::GATEWAY_TIMEOUT, "gateway timeout\n".into()),
    };
    let later = matches!(
        status,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
    );
    let retry_after = later.then_some(RETRY_AFTER);
    ErrorResponse {
        status,
        body,
        retry_after,
        location,
        allow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rejection_has_the_status_of_its_rfc() {
        let cases = [
            (Rejection::Malformed("two hosts"), 400, false),
            (Rejection::UseHttps("https://a/".to_owned()), 308, false),
            (Rejection::HeadTimeout, 408, false),
            (Rejection::HeadTooLarge, 431, false),
            (Rejection::TargetTooLong, 414, false),
            (Rejection::MethodNotAllowed, 405, false),
            (Rejection::CodingNotSupported, 501, false),
            (Rejection::ExpectationFailed, 417, false),
            (Rejection::VersionNotSupported, 505, false),
            (Rejection::BackendFailed("it broke"), 502, false),
            (Rejection::BodyTimeout("it is slow"), 408, false),
            (Rejection::NoBackend, 503, true),
            (Rejection::Limited(Limit::Connections), 503, true),
            (Rejection::Limited(Limit::ConnectionsPerAddress), 429, true),
            (Rejection::Limited(Limit::ConnectionRate), 429, true),
            (Rejection::Limited(Limit::Requests), 503, true),
            (Rejection::Limited(Limit::RequestsPerAddress), 429, true),
            (Rejection::Limited(Limit::Tunnels), 503, true),
            (Rejection::Limited(Limit::TunnelsPerAddress), 429, true),
            (Rejection::Limited(Limit::TunnelsPerBackend), 503, true),
            (Rejection::Limited(Limit::RequestsPerBackend), 503, true),
            (Rejection::Limited(Limit::BodySize), 413, false),
            (Rejection::BackendTimeout("it is slow"), 504, false),
        ];
        for (rejection, status, retries) in cases {
            let error_response = error_response(rejection.clone());
            assert_eq!(error_response.status.as_u16(), status, "{rejection}");
            assert_eq!(error_response.retry_after.is_some(), retries, "{rejection}");
            assert!(error_response.body.ends_with('\n') && error_response.body.len() < 40);
        }
    }

    #[test]
    fn a_request_without_a_route_gets_the_configured_response() {
        let error_response = error_response(Rejection::NoRoute {
            status: StatusCode::GONE,
            body: "moved\n".into(),
        });
        assert_eq!(
            (error_response.status, &*error_response.body),
            (StatusCode::GONE, "moved\n")
        );
        assert_eq!(error_response.retry_after, None);
    }
}
